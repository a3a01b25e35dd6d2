# SPDX-License-Identifier: Apache-2.0
"""What is not an answer: models, keys, tokens, clients that leave, request ids, many at once."""
import asyncio
import json
import time
import urllib.request

import openai
import pytest
from conftest import EOS, Server


def get(url, path, headers=None):
    with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers or {})) as reply:
        return json.load(reply)


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("story", "model", "quatrain")
    assert model.model_extra["max_model_len"] == 2048
    assert client.models.retrieve("story") == model


def test_names_may_be_several():
    server = Server("--simulate", 1000, "--served-model-name", "other")
    try:
        with server.client() as client:
            assert [m.id for m in client.models.list().data] == ["story", "other"]
            for name in ("story", "other"):
                reply = client.completions.create(model=name, prompt="Hi", max_tokens=1)
                assert reply.model == name
    finally:
        server.stop()


@pytest.fixture(scope="module")
def locked():
    server = Server("--simulate", 1000, "--api-key", "first", "--api-key", "second")
    yield server
    server.stop()


@pytest.mark.parametrize("key", ["none", "firs", "firstx", "FIRST", "first,second"])
def test_wrong_keys(locked, key):
    with locked.client(api_key=key) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="story", messages=[{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("key", ["first", "second"])
def test_right_keys(locked, key):
    with locked.client(api_key=key) as client:
        assert client.completions.create(model="story", prompt="Hi", max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_paths_without_a_key(locked, path):
    with urllib.request.urlopen(locked.url + path) as reply:
        assert reply.status == 200


@pytest.mark.parametrize("text", ["", "Hi", "The owl said: “naïve — 123!” 🦉\n", " a  b ", "<think>", EOS, "\u0000x"])
def test_tokens_and_back(story, text):
    reply = post(story.url, "/tokenize", {"prompt": text, "add_special_tokens": False})
    assert reply["count"] == len(reply["tokens"])
    if text:
        assert post(story.url, "/detokenize", {"tokens": reply["tokens"]})["prompt"] == text


@pytest.mark.parametrize("messages", [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "You are an owl."}, {"role": "user", "content": "Hi"}]])
def test_tokens_of_a_chat_are_those_of_its_prompt(story, client, messages):
    tokens = post(story.url, "/tokenize", {"messages": messages})
    usage = client.chat.completions.create(model="story", messages=messages, max_tokens=1).usage
    assert tokens["count"] == usage.prompt_tokens


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_closing_a_stream_cancels(saying, kind):
    client = saying("</think>" + "The owl flew. " * 400, rate=50)
    url = str(client.base_url).removesuffix("/v1/")
    if kind == "chat":
        stream = client.chat.completions.create(model="story", stream=True,
                                                messages=[{"role": "user", "content": "Hi"}])
    else:
        stream = client.completions.create(model="story", prompt="Hi", stream=True, max_tokens=1000)
    with stream:
        next(iter(stream))
        # A chat's first event carries the role and may come while its request still waits.
        assert get(url, "/load")["server_load"] == 1
        wait_for(lambda: get(url, "/load")["running"] == 1)
    wait_for(lambda: get(url, "/load")["server_load"] == 0)
    assert get(url, "/load")["kv_blocks_used"] == 0


def test_a_timeout_cancels(saying):
    client = saying("</think>" + "The owl flew. " * 400, rate=50)
    url = str(client.base_url).removesuffix("/v1/")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(model="story", prompt="Hi", max_tokens=1000)
    wait_for(lambda: get(url, "/load")["server_load"] == 0)


def test_request_ids_come_back(client):
    reply = client.completions.with_raw_response.create(
        model="story", prompt="Hi", max_tokens=1, extra_headers={"X-Request-Id": "owl-1"})
    assert reply.headers["x-request-id"] == "owl-1"
    assert reply.parse()._request_id == "owl-1"


def test_headers_of_a_stream(client):
    with client.completions.with_streaming_response.create(
            model="story", prompt="Hi", max_tokens=1, stream=True) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert "no-cache" in reply.headers["cache-control"]
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_many_at_once_have_the_text_they_have_alone(story, client, stream):
    def args(i):
        return {"model": "story", "prompt": f"Story {i}:", "seed": i, "max_tokens": 4 + i % 5}

    async def one(everyone, i):
        if not stream:
            return (await everyone.completions.create(**args(i))).choices[0].text
        return "".join([c.choices[0].text async for c in
                        await everyone.completions.create(**args(i), stream=True)])

    async def all_of_them():
        async with openai.AsyncOpenAI(**story.options()) as everyone:
            return await asyncio.gather(*(one(everyone, i) for i in range(64)))

    together = asyncio.run(all_of_them())
    for i in range(0, 64, 9):
        assert client.completions.create(**args(i)).choices[0].text == together[i]


def test_a_full_server_says_when_to_come_back():
    server = Server("--simulate", 20, "--max-num-seqs", 1, "--max-num-queued-reqs", 1)
    body = {"model": "story", "prompt": "Hi", "max_tokens": 1000}

    async def fill():
        """One request runs, one waits; the third is refused."""
        async with openai.AsyncOpenAI(**server.options()) as client:
            asked = [asyncio.create_task(client.completions.create(**body))]
            await until(lambda: get(server.url, "/load")["running"] == 1)
            asked.append(asyncio.create_task(client.completions.create(**body)))
            await until(lambda: get(server.url, "/load")["waiting"] == 1)
            with pytest.raises(openai.InternalServerError) as caught:
                await client.completions.create(**body)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            return caught.value

    try:
        error = asyncio.run(fill())
    finally:
        server.stop()
    assert (error.status_code, error.code) == (503, "server_full")
    assert int(error.response.headers["retry-after"]) >= 1


async def until(condition):
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(0.01)
