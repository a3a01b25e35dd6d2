# SPDX-License-Identifier: Apache-2.0
"""/v1/chat/completions through the official client."""
import math

import pytest

USER = [{"role": "user", "content": "Tell me a story."}]
OFF = {"thinking": {"type": "disabled"}}


def chat(client, messages=USER, **more):
    return client.chat.completions.create(model="story", messages=messages, **more)


def deltas(client, **more):
    return list(chat(client, stream=True, **more))


def test_shape(client):
    reply = chat(client, max_tokens=8, extra_body=OFF)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "You are an owl."}, {"role": "user", "content": "Hi"}],
    [{"role": "developer", "content": "You are an owl."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}],
    [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}],
    [{"role": "user", "content": "Hi", "name": "anna"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"},
     {"role": "user", "content": "d"}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"n\": 1}"}}]},
     {"role": "tool", "tool_call_id": "c1", "content": "an owl"}],
])
@pytest.mark.parametrize("stream", [False, True])
def test_messages(saying, messages, stream):
    client = saying("</think>The owl flew.")
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in deltas(client, messages=messages))
    else:
        text = chat(client, messages).choices[0].message.content
    assert text == "The owl flew."


@pytest.mark.parametrize("switch", [
    {"reasoning_effort": "none"}, {"extra_body": {"thinking": {"type": "disabled"}}},
    {"extra_body": {"thinking": False}}, {"extra_body": {"enable_thinking": False}},
    {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}])
def test_thinking_off(saying, switch):
    message = chat(saying("Plain."), **switch).choices[0].message
    assert message.content == "Plain."
    assert "reasoning_content" not in (message.model_extra or {})


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max", "ultra"])
def test_efforts(saying, effort):
    reply = chat(saying("Why?</think>Because."), reasoning_effort=effort)
    message = reply.choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Why?", "Because.")
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("text,reasoning,content", [
    ("Why?</think>Because.", "Why?", "Because."),
    ("</think>Because.", "", "Because."),
    ("Only thoughts", "Only thoughts", ""),
    ("<think>Why?</think>Because.", "Why?", "Because."),
    ("A 🦉 — “why”?\n\n</think>\n\nπ = 3,14…", "A 🦉 — “why”?\n\n", "\n\nπ = 3,14…")])
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_apart(saying, text, reasoning, content, stream):
    client = saying(text)
    if not stream:
        message = chat(client).choices[0].message
        assert (message.model_extra or {}).get("reasoning_content", "") == reasoning
        assert message.content == content
        return
    thoughts = said = ""
    for chunk in deltas(client):
        delta = chunk.choices[0].delta
        if "reasoning_content" in (delta.model_extra or {}):
            assert not said
            thoughts += delta.model_extra["reasoning_content"]
        said += delta.content or ""
    assert (thoughts, said) == (reasoning, content)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_stream_begins_with_roles_and_ends_with_reasons(saying, n):
    chunks = deltas(saying("</think>The owl flew."), n=n)
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    for i in range(n):
        own = [c.choices[0] for c in chunks if c.choices[0].index == i]
        assert own[0].delta.role == "assistant"
        assert [c.finish_reason for c in own if c.finish_reason] == ["stop"]
        assert own[-1].finish_reason == "stop"
        assert "".join(c.delta.content or "" for c in own) == "The owl flew."


@pytest.mark.parametrize("include", [True, False, None])
def test_stream_options(saying, include):
    more = {} if include is None else {"stream_options": {"include_usage": include}}
    chunks = deltas(saying("</think>The owl flew."), **more)
    usages = [c for c in chunks if c.usage is not None]
    assert len(usages) == (1 if include else 0)
    if include:
        whole = chat(saying("</think>The owl flew.")).usage
        assert chunks[-1].usage == whole
        assert chunks[-1].choices == []


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("stream", [False, True])
def test_limits(client, key, count, stream):
    args = {key: count, "seed": 1, "extra_body": {"ignore_eos": True}}
    if stream:
        chunks = deltas(client, stream_options={"include_usage": True}, **args)
        assert chunks[-1].usage.completion_tokens == count
        assert chunks[-2].choices[0].finish_reason == "length"
    else:
        reply = chat(client, **args)
        assert reply.usage.completion_tokens == count
        assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("seed", [0, 7, 2**40])
@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_stream_adds_up(client, seed, effort):
    args = {"seed": seed, "max_tokens": 16, "reasoning_effort": effort}
    message = chat(client, **args).choices[0].message
    content = thoughts = ""
    for chunk in deltas(client, **args):
        content += chunk.choices[0].delta.content or ""
        thoughts += (chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "")
    assert content == message.content
    assert thoughts == (message.model_extra or {}).get("reasoning_content", "")


@pytest.mark.parametrize("stop,content", [
    ("owl", "Two "), (["xyz", "flew"], "Two owls "), ("Two", ""), (["."], "Two owls flew"), ("!", "Two owls flew.")])
@pytest.mark.parametrize("stream", [False, True])
def test_stop(saying, stop, content, stream):
    client = saying("One owl.</think>Two owls flew.")
    if stream:
        chunks = deltas(client, stop=stop)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == content
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        choice = chat(client, stop=stop).choices[0]
        assert (choice.message.content, choice.finish_reason) == (content, "stop")
        assert choice.message.model_extra["reasoning_content"] == "One owl."


@pytest.mark.parametrize("top", [None, 0, 1, 3, 20])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client, top, stream):
    args = {"logprobs": True, "max_tokens": 8, "seed": 2, "extra_body": OFF}
    if top is not None:
        args["top_logprobs"] = top
    if stream:
        parts = [c.choices[0] for c in deltas(client, **args)]
        tokens = sum((p.logprobs.content for p in parts if p.logprobs), [])
        text = "".join(p.delta.content or "" for p in parts)
    else:
        choice = chat(client, **args).choices[0]
        tokens, text = choice.logprobs.content, choice.message.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace").startswith(text)
    for token in tokens:
        assert math.isfinite(token.logprob) and token.logprob <= 0
        assert len(token.top_logprobs) == (top or 0)
        likely = [t.logprob for t in token.top_logprobs]
        assert likely == sorted(likely, reverse=True)


def test_no_logprobs_unless_asked(client):
    assert chat(client, max_tokens=2).choices[0].logprobs is None


def test_logprobs_of_reasoning_come_apart(saying):
    logprobs = chat(saying("Why?</think>Because."), logprobs=True).choices[0].logprobs
    said = b"".join(bytes(t.bytes) for t in logprobs.content)
    assert said == b"Because."
    assert b"Why?" in b"".join(bytes(t["bytes"]) for t in logprobs.model_extra["reasoning_content"])


@pytest.mark.parametrize("extra", [
    {"user": "u"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"},
    {"parallel_tool_calls": True}, {"safety_identifier": "x"}, {"extra_body": {"no_such_field": [1]}}])
def test_fields_without_effect(saying, extra):
    if "parallel_tool_calls" in extra:
        extra = {**extra, "tools": [{"type": "function", "function": {"name": "look"}}]}
    assert chat(saying("</think>Yes."), **extra).choices[0].message.content == "Yes."


def test_the_helper_that_streams(saying):
    """client.chat.completions.stream() puts the chunks together itself."""
    client = saying("Hm.</think>The owl flew.")
    with client.chat.completions.stream(model="story", messages=USER) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "The owl flew."
    assert final.choices[0].finish_reason == "stop"


def test_prompt_logprobs_of_a_chat(client):
    reply = chat(client, max_tokens=1, extra_body={"prompt_logprobs": 1})
    assert len(reply.model_extra["prompt_logprobs"]) == reply.usage.prompt_tokens
