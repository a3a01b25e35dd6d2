# SPDX-License-Identifier: Apache-2.0
"""/v1/completions through the official client, with the story model."""
import json
import math
import urllib.request

import pytest

PROMPT = "Once upon a time"
GREEDY = {"model": "story", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}


def create(client, **more):
    return client.completions.create(**{**GREEDY, **more})


def streamed(client, **more):
    return list(create(client, stream=True, **more))


def token_id(server, text):
    body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
    request = urllib.request.Request(server.url + "/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        (token,) = json.load(reply)["tokens"]
    return token


@pytest.fixture(scope="module")
def greedy(client):
    return create(client)


def test_shape(greedy):
    assert greedy.object == "text_completion"
    assert greedy.id.startswith("cmpl-")
    assert greedy.model == "story"
    assert greedy.created > 1_600_000_000
    (choice,) = greedy.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text


def test_usage(greedy):
    usage = greedy.usage
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 20])
def test_max_tokens(client, max_tokens):
    reply = create(client, max_tokens=max_tokens)
    assert reply.usage.completion_tokens == max_tokens
    assert reply.choices[0].finish_reason == "length"


def test_max_tokens_is_16_unless_said(client):
    reply = client.completions.create(model="story", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 16


def test_a_longer_answer_begins_with_the_shorter(client, greedy):
    assert create(client, max_tokens=20).choices[0].text.startswith(greedy.choices[0].text)


@pytest.mark.parametrize("max_tokens", [1, 5, 30])
@pytest.mark.parametrize("seed", [0, 1, 2**62, -1])
def test_a_stream_adds_up(client, max_tokens, seed):
    args = {"temperature": 1, "seed": seed, "max_tokens": max_tokens}
    whole = create(client, **args)
    chunks = streamed(client, **args)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"text_completion"}


@pytest.mark.parametrize("include", [True, False, None])
def test_stream_options(client, include):
    more = {} if include is None else {"stream_options": {"include_usage": include}}
    chunks = streamed(client, **more)
    usages = [c for c in chunks if c.usage is not None]
    if not include:
        assert not usages
        return
    assert usages == [chunks[-1]]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_n(client, n, stream):
    args = {"n": n, "temperature": 1, "seed": 40, "max_tokens": 6}
    if not stream:
        reply = create(client, **args)
        texts = [c.text for c in reply.choices]
        assert [c.index for c in reply.choices] == list(range(n))
        assert reply.usage.completion_tokens <= 6 * n
    else:
        texts = [""] * n
        finished = []
        for chunk in streamed(client, **args):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                finished += [choice.index] if choice.finish_reason else []
        assert sorted(finished) == list(range(n))
    for i, text in enumerate(texts):  # choice i has seed + i
        assert create(client, **{**args, "n": 1, "seed": 40 + i}).choices[0].text == text


@pytest.mark.parametrize("prompt,count", [
    ("The owl", 1), (["The owl"], 1), (["The owl", "A fox", "The king"], 3),
    ([300, 301, 302], 1), ([[300, 301], [302]], 2), (["é🦉", "“x”"], 2)])
def test_prompts(client, prompt, count):
    reply = create(client, prompt=prompt, max_tokens=4)
    assert len(reply.choices) == count
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        assert reply.usage.prompt_tokens == len(prompt)
    for i, choice in enumerate(reply.choices):
        alone = prompt[i] if isinstance(prompt, list) and not isinstance(prompt[0], int) else prompt
        assert create(client, prompt=alone, max_tokens=4).choices[0].text == choice.text


def test_several_prompts_times_n(client):
    reply = create(client, prompt=["The owl", "A fox"], n=3, temperature=1, seed=1, max_tokens=3)
    assert [c.index for c in reply.choices] == list(range(6))


@pytest.mark.parametrize("begin,end", [(2, 3), (0, 1), (4, 9), (5, 12)])
@pytest.mark.parametrize("stream", [False, True])
def test_stop(client, greedy, begin, end, stream):
    whole = create(client, max_tokens=30).choices[0].text
    stop = whole[begin:end]
    if stream:
        chunks = streamed(client, max_tokens=30, stop=stop)
        text, reason = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = create(client, max_tokens=30, stop=[stop]).choices[0]
        text, reason = choice.text, choice.finish_reason
    assert text == whole[:whole.index(stop)]
    assert reason == "stop"


def test_the_first_of_several_stops_counts(client):
    whole = create(client, max_tokens=30).choices[0].text
    stops = ["no such words", whole[8:11], whole[4:6]]
    assert create(client, max_tokens=30, stop=stops).choices[0].text == \
        whole[:min(whole.index(s) for s in stops[1:])]


def test_a_stop_that_never_comes(client, greedy):
    assert create(client, stop="§§§").choices[0].text == greedy.choices[0].text


def test_stop_in_the_output(client):
    whole = create(client, max_tokens=30).choices[0].text
    reply = create(client, max_tokens=30, stop=whole[4:8], extra_body={"include_stop_str_in_output": True})
    assert reply.choices[0].text == whole[:whole.index(whole[4:8]) + 4]


def test_stop_token_ids(client, story):
    tokens = create(client, logprobs=0).choices[0].logprobs.tokens
    reply = create(client, extra_body={"stop_token_ids": [token_id(story, tokens[2])]})
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].text == "".join(tokens[:tokens.index(tokens[2])])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 20])
def test_logprobs(client, greedy, count, stream):
    if stream:
        parts = [c.choices[0].logprobs for c in streamed(client, logprobs=count)]
        parts = [p for p in parts if p]
        tokens = sum((p.tokens for p in parts), [])
        own = sum((p.token_logprobs for p in parts), [])
        tops = sum((p.top_logprobs for p in parts), [])
        offsets = sum((p.text_offset for p in parts), [])
    else:
        found = create(client, logprobs=count).choices[0].logprobs
        tokens, own, tops, offsets = (found.tokens, found.token_logprobs, found.top_logprobs,
                                      found.text_offset)
    assert len(tokens) == len(own) == len(tops) == len(offsets) == 12
    assert "".join(tokens) == greedy.choices[0].text
    at = 0
    for token, logprob, top, offset in zip(tokens, own, tops, offsets):
        assert math.isfinite(logprob) and logprob <= 0
        assert top[token] == logprob
        assert max(1, count) <= len(top) + (len(top) < count)  # two tokens may have one text
        assert max(top.values()) == logprob  # greedy
        assert offset == at
        at += len(token.encode())


def test_logprobs_of_several_choices(client):
    reply = create(client, logprobs=1, n=3, temperature=1, seed=3)
    for choice in reply.choices:
        assert "".join(choice.logprobs.tokens) == choice.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, ["The owl", "A fox"], [300, 301]])
def test_echo(client, prompt, stream):
    plain = create(client, prompt=prompt, max_tokens=3)
    if stream:
        texts = [""] * len(plain.choices)
        for chunk in streamed(client, prompt=prompt, max_tokens=3, echo=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        texts = [c.text for c in create(client, prompt=prompt, max_tokens=3, echo=True).choices]
    for text, choice in zip(texts, plain.choices):
        assert text.endswith(choice.text)
        assert len(text) > len(choice.text)
    if prompt == PROMPT:
        assert texts[0] == PROMPT + plain.choices[0].text


@pytest.mark.parametrize("count", [0, 1, 5])
def test_prompt_logprobs(client, count):
    reply = create(client, prompt=[300, 301, 302, 303], max_tokens=1, extra_body={"prompt_logprobs": count})
    found = reply.choices[0].model_extra["prompt_logprobs"]
    assert found[0] is None and len(found) == 4
    for token, position in zip([301, 302, 303], found[1:]):
        assert count <= len(position) <= count + 1 or len(position) == 1
        assert position[str(token)]["logprob"] <= 0
        assert position[str(token)]["rank"] >= 1


def test_prompt_logprobs_are_the_logprobs_of_the_same_tokens(client):
    """What was sampled greedily, scored as a prompt, has the same likelihoods."""
    first = create(client, prompt=[300, 301], logprobs=0, max_tokens=5,
                   extra_body={"skip_special_tokens": False}).choices[0]
    again = create(client, prompt=[300, 301], max_tokens=1, logprobs=3)
    assert again.choices[0].logprobs.token_logprobs[0] == first.logprobs.token_logprobs[0]


@pytest.mark.parametrize("seed", range(6))
def test_seeds_repeat(client, seed):
    args = {"temperature": 1, "seed": seed, "max_tokens": 10}
    assert create(client, **args).choices[0].text == create(client, **args).choices[0].text


def test_seeds_differ(client):
    texts = {create(client, temperature=1, seed=s, max_tokens=10).choices[0].text for s in range(6)}
    assert len(texts) > 3


def test_no_seed_differs(client):
    texts = {create(client, temperature=1, max_tokens=16).choices[0].text for _ in range(6)}
    assert len(texts) > 3


@pytest.mark.parametrize("sampling", [
    {"top_p": 0.01}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}])
def test_narrow_sampling_is_greedy(client, greedy, sampling):
    assert create(client, temperature=1, seed=1, **sampling).choices[0].text == greedy.choices[0].text


@pytest.mark.parametrize("sampling", [
    {"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 5}}])
def test_penalties_change_the_text(client, sampling):
    args = {"max_tokens": 40}
    assert create(client, **args, **sampling).choices[0].text != create(client, **args).choices[0].text


def test_logit_bias(client, greedy):
    assert create(client, logit_bias={"300": 100}, max_tokens=3, logprobs=0).choices[0].logprobs.tokens == \
        [create(client, logit_bias={"300": 100}, max_tokens=1).choices[0].text] * 3


def test_min_tokens(client, story):
    """A stop token that would come at once is held off until then."""
    first = token_id(story, create(client, max_tokens=1, logprobs=0).choices[0].logprobs.tokens[0])
    stops = {"stop_token_ids": [first]}
    assert create(client, extra_body=stops).usage.completion_tokens == 0
    assert create(client, max_tokens=10, extra_body={**stops, "min_tokens": 10}).usage.completion_tokens == 10


@pytest.mark.parametrize("shared", [130, 257, 1000])
def test_shared_prefixes_show_in_usage(client, shared):
    base = [300 + (i * i + shared) % 3000 for i in range(shared)]
    ask = lambda rest: create(client, prompt=base + rest, max_tokens=8, logprobs=5)
    cold = ask([7, 8, 9])
    warm = ask([7, 8, 9])
    other = ask([10, 11])
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    blocks = (shared + 2) // 128 * 128
    assert warm.usage.prompt_tokens_details.cached_tokens == blocks
    assert other.usage.prompt_tokens_details.cached_tokens == shared // 128 * 128
    assert warm.choices[0].logprobs == cold.choices[0].logprobs
    assert warm.usage.model_extra["prompt_cache_hit_tokens"] == blocks
    assert warm.usage.model_extra["prompt_cache_miss_tokens"] == shared + 3 - blocks


def test_cached_is_less_than_the_prompt(client):
    prompt = [301] * 256
    for _ in range(2):
        cached = create(client, prompt=prompt, max_tokens=1).usage.prompt_tokens_details.cached_tokens
    assert cached == 128
