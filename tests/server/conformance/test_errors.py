# SPDX-License-Identifier: Apache-2.0
"""Faults: the class the official client raises, and the field that the error names."""
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Hi"}]
COMMON = [
    ("temperature", -0.1), ("temperature", 2.5), ("temperature", "hot"), ("top_p", 0), ("top_p", 1.1),
    ("n", 0), ("n", 129), ("n", 1.5), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "many"),
    ("seed", "x"), ("seed", 0.5), ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("stop", 5),
    ("stop", ""), ("stop", ["a"] * 17), ("logit_bias", [1]), ("logit_bias", {"x": 1}),
    ("logit_bias", {"4096": 1}), ("top_k", -2), ("min_p", 1.5), ("repetition_penalty", 0),
    ("min_tokens", -1), ("stop_token_ids", [-1]), ("ignore_eos", "yes"), ("priority", 0.5),
    ("prompt_logprobs", 21), ("suffix", "x"), ("best_of", 3), ("model", 5)]


@pytest.fixture(scope="module")
def client(saying):
    return saying("</think>Yes.")


@pytest.mark.parametrize("field,value", COMMON)
def test_completion_fields(client, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "story", "prompt": "Hi"}, extra_body={field: value})
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    assert field in caught.value.body["message"]


@pytest.mark.parametrize("field,value", COMMON + [
    ("max_completion_tokens", 0), ("logprobs", 5), ("top_logprobs", 21), ("tools", 5),
    ("reasoning_effort", "extreme"), ("thinking", {"type": "perhaps"}), ("stream_options", {"include_usage": True})])
def test_chat_fields(client, field, value):
    extra = {field: value, **({"logprobs": True} if field == "top_logprobs" else {})}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="story", messages=MESSAGES, extra_body=extra)
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("messages,param", [
    ([], "messages"), ("Hi", "messages"), ([5], "messages[0]"),
    ([{"role": "king", "content": "Hi"}], "messages[0].role"),
    ([{"content": "Hi"}], "messages[0].role"), ([{"role": "user", "content": 5}], "messages[0].content"),
    ([*MESSAGES, {"role": "assistant", "tool_calls": [{"type": "function"}]}], "messages[1].tool_calls[0]")])
def test_messages(client, messages, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="story", messages=messages)
    assert caught.value.param.startswith(param)


@pytest.mark.parametrize("prompt,param", [
    ([], "prompt"), ([-1], "prompt"), ([4096], "prompt"), (["a", 5], "prompt[1]"), (["a"] * 129, "prompt"),
    ([300] * 2048, "prompt"), ("owl " * 4000, "prompt"), (5, "prompt"), ({"a": 1}, "prompt")])
def test_prompts(client, prompt, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="story", prompt=prompt)
    assert caught.value.param == param


def test_a_prompt_that_is_too_long_has_its_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="story", messages=[{"role": "user", "content": "owl " * 4000}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_unknown_model(client, kind, stream):
    with pytest.raises(openai.NotFoundError) as caught:
        if kind == "chat":
            client.chat.completions.create(model="other", messages=MESSAGES, stream=stream)
        else:
            client.completions.create(model="other", prompt="Hi", stream=stream)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize("call", [
    lambda c: c.embeddings.create(model="story", input="Hi"),
    lambda c: c.images.generate(model="story", prompt="Hi"),
    lambda c: c.moderations.create(model="story", input="Hi"),
    lambda c: c.responses.create(model="story", input="Hi")], ids=["embeddings", "images", "moderations", "responses"])
def test_what_is_not_implemented(client, call):
    with pytest.raises(openai.APIStatusError) as caught:
        call(client)
    assert caught.value.status_code == 501


@pytest.mark.parametrize("call", [
    lambda c: c.files.list(), lambda c: c.batches.list(), lambda c: c.models.retrieve("other")],
    ids=["files", "batches", "model"])
def test_what_is_not_there(client, call):
    with pytest.raises(openai.NotFoundError):
        call(client)


def test_stream_faults_come_as_a_status(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="story", messages=MESSAGES, stream=True, temperature=9)
    assert caught.value.param == "temperature"
