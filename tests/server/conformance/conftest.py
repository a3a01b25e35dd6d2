# SPDX-License-Identifier: Apache-2.0
"""Servers for the conformance cases: the story model, and simulated ones that say what a case wants.

The cases talk through the official client, so what they check is what users of that client see.
"""
import os
import re
import subprocess

import openai
import pytest

QUATRAIN = os.environ["QUATRAIN"]
MODEL = os.environ["QUATRAIN_MODEL"]
EOS = "<｜end▁of▁sentence｜>"


class Server:
    """A `quatrain serve` on a free port, and clients of it."""

    def __init__(self, *flags):
        self.process = subprocess.Popen(
            [QUATRAIN, "serve", MODEL, "--backend", "cpu", "--port", "0", "--max-model-len", "2048",
             "--served-model-name", "story", *map(str, flags)], stderr=subprocess.PIPE, text=True)
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            found = re.search(r"serving at (http://127\.0\.0\.1:\d+)", line)
            if found:
                self.url = found.group(1)
                break
        else:
            raise AssertionError("".join(lines))

    def options(self, **more):
        return {"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **more}

    def client(self, **more):
        return openai.OpenAI(**self.options(**more))

    def stop(self):
        self.process.terminate()
        rest = self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.wait(timeout=60) == 0, rest


@pytest.fixture(scope="session")
def story():
    """The server of the story model."""
    server = Server("--max-num-seqs", 16)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(story):
    with story.client() as client:
        yield client


@pytest.fixture(scope="session")
def saying():
    """saying(text): a client of a server that answers with this text; control tokens count."""
    servers, clients = {}, {}

    def client_of(text, rate=20000):
        if (text, rate) not in servers:
            servers[text, rate] = Server("--simulate", rate, "--simulate-text", text + EOS)
            clients[text, rate] = servers[text, rate].client()
        return clients[text, rate]

    yield client_of
    for client in clients.values():
        client.close()
    for server in servers.values():
        server.stop()
