# SPDX-License-Identifier: Apache-2.0
"""Tool calls: DSML as the model writes it, tool_calls as the official client reads them."""
import json

import pytest

TOOLS = [{"type": "function", "function": {
    "name": "look", "description": "Look at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "n": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "fly", "parameters": {"type": "object", "properties": {}}}}]
MESSAGES = [{"role": "user", "content": "Where is the owl?"}]


def parameter(name, value, string=True):
    return (f'<｜DSML｜parameter name="{name}" string="{"true" if string else "false"}">{value}'
            "</｜DSML｜parameter>\n")


def invoke(name, *parameters):
    return f'<｜DSML｜invoke name="{name}">\n' + "".join(parameters) + "</｜DSML｜invoke>\n"


def block(*invokes):
    return "\n\n<｜DSML｜tool_calls>\n" + "".join(invokes) + "</｜DSML｜tool_calls>"


LOOK = invoke("look", parameter("place", "the hill"), parameter("n", "2", False))
CASES = {
    "one": ("Hm.</think>Let me see." + block(LOOK), "Let me see.",
            [("look", {"place": "the hill", "n": 2})]),
    "two": ("</think>" + block(LOOK, invoke("fly")), "", [("look", {"place": "the hill", "n": 2}), ("fly", {})]),
    "three": ("</think>Go." + block(invoke("fly"), invoke("fly"), invoke("look", parameter("n", "[1,2]", False))),
              "Go.", [("fly", {}), ("fly", {}), ("look", {"n": [1, 2]})]),
    "inside reasoning": ("Let me look" + block(LOOK), "", [("look", {"place": "the hill", "n": 2})]),
    "unicode": ("</think>" + block(invoke("look", parameter("place", "“🦉”\n<hill> & \\"))), "",
                [("look", {"place": "“🦉”\n<hill> & \\"})]),
    "object": ("</think>" + block(invoke("look", parameter("place", '{"a": {"b": [null, true]}}', False))), "",
               [("look", {"place": {"a": {"b": [None, True]}}})]),
    "not JSON": ("</think>" + block(invoke("look", parameter("n", "about two", False))), "",
                 [("look", {"n": "about two"})]),
    "no end of block": ("</think>See." + "\n\n<｜DSML｜tool_calls>\n" + LOOK, "See.",
                        [("look", {"place": "the hill", "n": 2})]),
    "ASCII bars": ("</think>See." + block(LOOK).replace("｜", "|"), "See.",
                   [("look", {"place": "the hill", "n": 2})]),
}


def ask(client, **more):
    return client.chat.completions.create(model="story", messages=MESSAGES, **more)


def gather(chunks):
    content, calls, reason = "", [], None
    for chunk in chunks:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            if call.index == len(calls):
                assert call.id.startswith("call_") and call.type == "function"
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
        reason = choice.finish_reason or reason
    return content, [(name, json.loads(text)) for name, text in calls], reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_calls(saying, name, stream):
    text, content, calls = CASES[name]
    client = saying(text)
    if stream:
        got = gather(ask(client, tools=TOOLS, stream=True))
    else:
        choice = ask(client, tools=TOOLS).choices[0]
        got = (choice.message.content or "",
               [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls],
               choice.finish_reason)
        assert all(c.id.startswith("call_") and c.type == "function" for c in choice.message.tool_calls)
        assert len({c.id for c in choice.message.tool_calls}) == len(calls)
        assert (choice.message.content is None) == (content == "")
    assert (got[0].rstrip("\n"), got[1], got[2]) == (content, calls, "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_no_calls_unless_asked_for(saying, asked, stream):
    client = saying(CASES["one"][0])
    if stream:
        content, calls, reason = gather(ask(client, stream=True, **asked))
        assert calls == []
    else:
        choice = ask(client, **asked).choices[0]
        content, reason = choice.message.content, choice.finish_reason
        assert choice.message.tool_calls is None
    assert (content.rstrip("\n"), reason) == ("Let me see.", "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [4, 8, 12, 16, 20, 28, 36])
def test_a_cut_call_is_not_shown(saying, count, stream):
    client = saying(CASES["one"][0])
    if stream:
        content, calls, reason = gather(ask(client, tools=TOOLS, max_tokens=count, stream=True))
    else:
        choice = ask(client, tools=TOOLS, max_tokens=count).choices[0]
        content, reason = choice.message.content or "", choice.finish_reason
        calls = choice.message.tool_calls or []
    assert "DSML" not in content and "｜" not in content
    assert "Let me see.".startswith(content.rstrip("\n<"))
    assert not calls and reason == "length"


def test_the_second_turn(saying):
    """What the client was given can be sent back with the tool's answer."""
    first = ask(saying(CASES["two"][0]), tools=TOOLS).choices[0].message
    messages = [*MESSAGES, first.model_dump(exclude_none=True)]
    for call in first.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "nothing"})
    reply = saying("</think>No owl.").chat.completions.create(model="story", messages=messages, tools=TOOLS)
    assert reply.choices[0].message.content == "No owl."


def test_the_helper_that_streams(saying):
    client = saying(CASES["two"][0])
    with client.chat.completions.stream(model="story", messages=MESSAGES, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert [c.function.name for c in final.choices[0].message.tool_calls] == ["look", "fly"]


def test_several_choices_with_calls(saying):
    reply = ask(saying(CASES["one"][0]), tools=TOOLS, n=3)
    ids = [c.message.tool_calls[0].id for c in reply.choices]
    assert len(set(ids)) == 3
