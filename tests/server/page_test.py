#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The page at / in headless Chromium: chats, stops, shows the server's state, asks nobody else.

usage: page_test.py QUATRAIN MODEL [--screenshot FILE.png]

Exit status 77 says that there is no Chromium here: the test was skipped.
"""
import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time


class Browser:
    """Chromium, spoken to in its debugging protocol over a pipe."""

    def __init__(self, program, profile):
        ours, self.output = os.pipe()
        self.input, theirs = os.pipe()

        def place():  # Chromium reads descriptor 3 and writes descriptor 4
            first, second = os.dup(ours), os.dup(theirs)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(ours)
        os.close(theirs)
        self.changed = threading.Condition()
        self.replies, self.events, self.last_id, self.session = {}, [], 0, None
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        buffer = b""
        while piece := os.read(self.input, 1 << 20):
            *messages, buffer = (buffer + piece).split(b"\0")
            with self.changed:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self.replies[message["id"]] = message
                    else:
                        self.events.append(message)
                self.changed.notify_all()

    def call(self, method, **params):
        self.last_id += 1
        number = self.last_id
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        with self.changed:
            assert self.changed.wait_for(lambda: number in self.replies, timeout=60), f"{method}: no reply"
            reply = self.replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def open(self, url, width, height):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(domain + ".enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"it did not happen: {condition}; {self.run('document.body.innerText')}"
            time.sleep(0.05)

    def named(self, method):
        with self.changed:
            return [event["params"] for event in self.events if event["method"] == method]

    def close(self):
        os.close(self.output)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_server(quatrain, model):
    process = subprocess.Popen([quatrain, "serve", model, "--backend", "cpu", "--port", "0", "--max-model-len", "4096"],
                               stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        found = re.search(r"serving at (http://127\.0\.0\.1:\d+)", line)
        if found:
            return process, found.group(1)
    raise AssertionError("the server did not start")


def ask(browser, text, **settings):
    for name, value in settings.items():
        browser.run(f"document.getElementById({json.dumps(name)}).value = {json.dumps(str(value))}")
    browser.run(f"document.getElementById('input').value = {json.dumps(text)};"
                "document.getElementById('form').requestSubmit()")


def turns(browser):
    """What is shown: (is the user's, text, reasoning, foot) of each turn."""
    return browser.run("[...document.querySelectorAll('.turn')].map(t => [t.classList.contains('user'),"
                       "t.querySelector(':scope > .text').textContent, t.querySelector('details .text')?.textContent,"
                       "t.querySelector('.foot')?.textContent])")


def check(browser, url, screenshot):
    browser.open(url, 1280, 760)
    browser.until("document.getElementById('model').textContent === 'storyteller-nvfp4'")
    idle = "!document.getElementById('send').hidden"

    ask(browser, "Tell me a story about an owl and a fox.", effort="none", temperature=0.6, seed=7, max_tokens=120)
    browser.until("document.querySelectorAll('.turn').length === 2")
    browser.until(idle)
    (user, prompt, _, _), (answers, text, _, foot) = turns(browser)
    assert user and not answers
    assert prompt == "Tell me a story about an owl and a fox."
    assert len(text) > 20, text
    assert re.match(r"\d+ tokens · \d+\.\d tokens/s · first after \d+\.\d\d s · (stop|length)$", foot), foot

    ask(browser, "And then?", effort="low", max_tokens=60, seed=8)
    browser.until("document.querySelectorAll('.turn').length === 4")
    browser.until(idle)
    assert turns(browser)[3][2], "the reasoning is not shown apart"
    assert browser.run("!document.querySelectorAll('details')[1].open"), "the reasoning is not folded"

    if screenshot:
        ask(browser, "What did the fox say?", effort="none", max_tokens=1500, seed=11)
        time.sleep(4)  # the plot gets some points
        browser.run("document.getElementById('log').scrollTop = 0")
        data = browser.call("Page.captureScreenshot", format="png")["data"]
        with open(screenshot, "wb") as file:
            file.write(base64.b64decode(data))
        browser.run("document.getElementById('stop').click()")
        browser.until(idle)

    browser.run("document.getElementById('clear').click()")
    assert turns(browser) == []
    ask(browser, "A long story, please.", effort="none", max_tokens=3000)
    browser.until("document.querySelector('.turn:not(.user) > .text')?.textContent.length > 10")
    browser.until("document.getElementById('running').textContent === '1'")
    browser.run("document.getElementById('stop').click()")
    browser.until(idle)
    assert turns(browser)[1][3].endswith(" · stopped"), turns(browser)[1][3]
    browser.until("document.getElementById('running').textContent === '0'")

    ask(browser, "Hi", temperature=9)
    browser.until("document.querySelectorAll('.turn').length === 4")
    browser.until(idle)
    assert "error: temperature" in turns(browser)[3][3], turns(browser)[3]

    asked = {event["request"]["url"] for event in browser.named("Network.requestWillBeSent")}
    outside = [address for address in asked if not address.startswith((url, "about:", "data:"))]
    assert not outside, f"the page asks elsewhere: {outside}"
    thrown = browser.named("Runtime.exceptionThrown")
    assert not thrown, thrown
    faults = [e["entry"] for e in browser.named("Log.entryAdded") if e["entry"]["level"] == "error"]
    assert all("400" in e["text"] for e in faults), faults  # the refusal above


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("quatrain")
    parser.add_argument("model")
    parser.add_argument("--screenshot", help="a PNG of the page in use")
    flags = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        print("skipped: there is no Chromium here")
        sys.exit(77)
    server, url = start_server(flags.quatrain, flags.model)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            browser = Browser(program, profile)
            try:
                check(browser, url, flags.screenshot)
            finally:
                browser.close()
    finally:
        server.terminate()
        server.stderr.read()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
