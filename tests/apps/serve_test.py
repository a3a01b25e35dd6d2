#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The server as clients see it: `quatrain serve` with the story model, over the loopback.

usage: serve_test.py QUATRAIN MODEL
"""
import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import warnings

QUATRAIN, MODEL = sys.argv[1:3]


class Server:
    """A running server; its stderr is read until it says where it serves."""

    def __init__(self, *flags):
        self.process = subprocess.Popen(
            [QUATRAIN, "serve", MODEL, "--backend", "cpu", "--port", "0", "--max-model-len", "2048",
             "--served-model-name", "story", *map(str, flags)], stderr=subprocess.PIPE, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"https?://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                return
        raise AssertionError("".join(self.lines))

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        text = None if body is None else json.dumps(body)
        fields = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, text, {**fields, **(headers or {})})
        response = connection.getresponse()
        data = response.read().decode()
        connection.close()
        return response, data

    def post(self, path, **body):
        response, data = self.request("POST", path, body)
        return response.status, json.loads(data)

    def complete(self, prompt="Once upon a time", **body):
        status, reply = self.post("/v1/completions", prompt=prompt, **body)
        assert status == 200, reply
        return reply

    def stream(self, path, **body):
        """The parsed events of a stream, without [DONE]."""
        response, data = self.request("POST", path, {**body, "stream": True})
        assert response.status == 200, data
        events = [e[6:] for e in data.split("\n\n") if e.startswith("data: ")]
        assert events.pop() == "[DONE]", data
        return [json.loads(e) for e in events]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(timeout=60), rest


class Serving(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-num-seqs", 8)

    @classmethod
    def tearDownClass(cls):
        code, rest = cls.server.stop()
        assert code == 0, rest

    def test_state(self):
        self.assertEqual(self.server.request("GET", "/health")[0].status, 200)
        models = json.loads(self.server.request("GET", "/v1/models")[1])
        self.assertEqual([m["id"] for m in models["data"]], ["story"])
        self.assertEqual(models["data"][0]["max_model_len"], 2048)
        self.assertIn("quatrain:num_requests_running", self.server.request("GET", "/metrics")[1])
        self.assertIn("<!DOCTYPE html>", self.server.request("GET", "/")[1])

    def test_a_completion_is_what_the_command_writes(self):
        told = subprocess.run([QUATRAIN, "run", MODEL, "--backend", "cpu", "-p", "The king", "-n", "24",
                               "--temp", "0"], capture_output=True, text=True, check=True).stdout
        reply = self.server.complete("The king", max_tokens=24, temperature=0)
        self.assertEqual(reply["choices"][0]["text"], told.rstrip("\n"))
        self.assertEqual(reply["usage"]["completion_tokens"], 24)
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")

    def test_a_seed_gives_one_text_alone_and_in_a_crowd(self):
        def ask(seed):
            return self.server.complete(max_tokens=24, seed=seed)["choices"][0]["text"]
        alone = [ask(seed) for seed in range(8)]
        self.assertGreater(len(set(alone)), 4)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(list(pool.map(ask, range(8))), alone)

    def test_a_stream_adds_up_to_the_answer(self):
        args = {"prompt": "A fox", "max_tokens": 30, "seed": 3}
        whole = self.server.complete(**args)
        chunks = self.server.stream("/v1/completions", **args, stream_options={"include_usage": True})
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks if c["choices"]),
                         whole["choices"][0]["text"])
        self.assertEqual(chunks[-1]["choices"], [])
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(chunks[-1]["usage"][key], whole["usage"][key])
        self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "length")

    def test_chat_streams_role_reasoning_content(self):
        messages = [{"role": "user", "content": "Tell me a story."}]
        for effort in ("none", "low"):
            args = {"messages": messages, "max_tokens": 24, "seed": 1, "reasoning_effort": effort}
            message = self.server.post("/v1/chat/completions", **args)[1]["choices"][0]["message"]
            deltas = [c["choices"][0]["delta"] for c in self.server.stream("/v1/chat/completions", **args)]
            self.assertEqual(deltas[0]["role"], "assistant")
            for key in ("content", "reasoning_content"):
                self.assertEqual("".join(d.get(key) or "" for d in deltas), message.get(key) or "")

    def test_stop_logprobs_n_and_echo(self):
        whole = self.server.complete(max_tokens=40, temperature=0)["choices"][0]["text"]
        stop = whole[10:14]
        cut = self.server.complete(max_tokens=40, temperature=0, stop=[stop])["choices"][0]
        self.assertEqual(cut["text"], whole[:whole.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")
        logprobs = self.server.complete(max_tokens=5, temperature=0, logprobs=3)["choices"][0]["logprobs"]
        self.assertEqual(len(logprobs["tokens"]), 5)
        for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertLessEqual(own, 0)
            self.assertAlmostEqual(own, max(top.values()), places=5)
        choices = self.server.complete(max_tokens=12, n=3, seed=9, echo=True)["choices"]
        self.assertEqual(len({c["text"] for c in choices}), 3)
        self.assertTrue(all(c["text"].startswith("Once upon a time") for c in choices))

    def test_the_prefix_cache_shows_in_usage(self):
        prompt = "The owl and the fox went up the hill to see the king of the forest. " * 20
        first = self.server.complete(prompt, max_tokens=8, temperature=0)
        again = self.server.complete(prompt, max_tokens=8, temperature=0)
        self.assertEqual(again["choices"][0]["text"], first["choices"][0]["text"])
        self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_faults_name_the_field(self):
        for body, param in (({"prompt": "a", "temperature": -1}, "temperature"),
                            ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
                            ({"prompt": list(range(3000))}, "prompt"),
                            ({}, "prompt")):
            status, reply = self.server.post("/v1/completions", **body)
            self.assertEqual((status, reply["error"]["param"]), (400, param))
            self.assertEqual(reply["error"]["type"], "invalid_request_error")

    def test_a_client_that_leaves_stops_its_request(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "a", "max_tokens": 1900, "ignore_eos": True, "stream": True}))
        connection.getresponse().read(200)
        connection.close()
        for _ in range(200):
            if json.loads(self.server.request("GET", "/load")[1])["running"] == 0:
                return
            time.sleep(0.02)
        self.fail("the request goes on")

    def test_tokenize_agrees_with_the_command(self):
        text = "The owl said: naïve!"
        told = subprocess.run([QUATRAIN, "tokenize", MODEL, text], capture_output=True, text=True,
                              check=True).stdout
        status, reply = self.server.post("/tokenize", prompt=text, add_special_tokens=False)
        self.assertEqual(status, 200)
        self.assertEqual([int(x) for x in re.findall(r"\d+", told)][:len(reply["tokens"])], reply["tokens"])
        self.assertEqual(self.server.post("/detokenize", tokens=reply["tokens"])[1]["prompt"], text)


class Lifecycle(unittest.TestCase):
    def test_sigterm_drains(self):
        server = Server("--max-num-seqs", 4)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(server.stream, "/v1/completions", prompt="The king", max_tokens=200,
                                   seed=i, ignore_eos=True) for i in range(4)]
            while json.loads(server.request("GET", "/load")[1])["running"] < 4:
                time.sleep(0.01)
            code, rest = server.stop()
            for answer in answers:
                self.assertEqual(answer.result()[-1]["choices"][0]["finish_reason"], "length")
        self.assertEqual(code, 0, rest)
        self.assertIn("every request was finished", rest)

    def test_flags_from_a_file_and_keys(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write('[serve]\nmax-num-seqs = 2\napi-key = ["secret"]\n')
            file.flush()
            server = Server("--config", file.name)
        self.assertIn("2 sequences at once", "".join(server.lines))
        self.assertEqual(server.request("GET", "/v1/models")[0].status, 401)
        fields = {"Authorization": "Bearer secret"}
        self.assertEqual(server.request("GET", "/v1/models", headers=fields)[0].status, 200)
        self.assertEqual(server.stop()[0], 0)

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "certificate.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
                            "-keyout", key, "-out", certificate], check=True, capture_output=True)
            server = Server("--simulate", 500, "--ssl-certfile", certificate, "--ssl-keyfile", key)
            context = ssl.create_default_context(cafile=certificate)
        self.assertIn("https://", server.lines[-1])

        def ask(**body):
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=60)
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "The owl", **body}))
            reply = connection.getresponse().read().decode()
            connection.close()
            return reply

        self.assertEqual(json.loads(ask(max_tokens=4))["usage"]["completion_tokens"], 4)
        self.assertTrue(ask(max_tokens=300, stream=True).endswith("data: [DONE]\n\n"))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context.minimum_version = context.maximum_version = version
            self.assertEqual(json.loads(ask(max_tokens=2))["usage"]["completion_tokens"], 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old version is what is tested
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises(ssl.SSLError):
            ask(max_tokens=2)
        with self.assertRaises((http.client.BadStatusLine, ConnectionError)):
            server.request("GET", "/health")  # without TLS
        # A client that leaves in the middle of the handshake or of a stream.
        for count in (0, 100):
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.send(b"\x16\x03\x01" + b"\x00" * count)
        self.assertEqual(server.stop()[0], 0)

    def test_json_logs(self):
        server = Server("--log-jsonl", "--log-level", "debug", "--stats-interval", 1)
        server.stream("/v1/completions", prompt="The king", max_tokens=400, ignore_eos=True)
        time.sleep(1.2)
        code, rest = server.stop()
        self.assertEqual(code, 0)
        events = [json.loads(line) for line in "".join(server.lines + [rest]).splitlines()]
        for event in events:
            self.assertRegex(event["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertIn(event["level"], ("error", "warn", "info", "debug"))
        named = {event["event"]: event for event in events}
        self.assertLessEqual({"loading", "model", "ready", "request", "answer", "stats", "log"}, set(named))
        self.assertEqual(named["answer"]["output_tokens"], 400)
        self.assertEqual(named["model"]["max_model_len"], 2048)
        self.assertGreater(named["stats"]["output_tokens_per_s"], 0)

    def test_prefix_cache_flags(self):
        prompt = list(range(300, 700))
        for flags, cached in ((["--snapshot-interval", 0, "--kv-blocks", 40], 384),
                              (["--no-enable-prefix-caching"], 0)):
            server = Server(*flags)
            server.complete(prompt, max_tokens=1)
            usage = server.complete(prompt, max_tokens=1)["usage"]
            self.assertEqual(usage["prompt_tokens_details"]["cached_tokens"], cached)
            blocks = json.loads(server.request("GET", "/load")[1])["kv_blocks_total"]
            self.assertEqual(blocks == 40, "--kv-blocks" in flags)
            server.stop()

    def test_faults_at_start_are_one_line(self):
        for flags in (("--host", "999.1.1.1"), ("--ssl-certfile", "/no/such/file"), ("--port", "0", "-m2"),
                      ("--snapshot-interval", "100"), ("--kv-blocks", "40", "--kv-cache-tokens", "5120"),
                      ("--simulate-text", "x")):
            result = subprocess.run([QUATRAIN, "serve", MODEL, "--backend", "cpu", *flags],
                                    capture_output=True, text=True, timeout=60,
                                    env={**os.environ, "QUATRAIN_WORKERS": "1"})
            self.assertNotEqual(result.returncode, 0, flags)
            self.assertLessEqual(len(result.stderr.strip().splitlines()), 3, result.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
