#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command as its users see it: what is on stdout, what on stderr, and the exit status.

usage: cli_test.py QUATRAIN MODEL
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

QUATRAIN, MODEL = sys.argv[1:3]
PLOT = pathlib.Path(__file__).resolve().parents[2] / "bench" / "plot.py"


def run(*args, stdin="", env=None):
    return subprocess.run([QUATRAIN, *map(str, args)], input=stdin, capture_output=True, text=True,
                          timeout=300, env={**os.environ, **(env or {})})


def story(*args, **kwargs):
    return run("run", MODEL, "--backend", "cpu", *args, **kwargs)


def tensors_of(path):
    """Name → (dtype, shape, bytes) of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    return {n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])])
            for n, t in header.items() if n != "__metadata__"}


class Run(unittest.TestCase):
    def test_only_the_text_is_on_stdout(self):
        result = story("--prompt", "Once upon a time", "-n", 12, "--temp", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("tokens/s", result.stdout)
        self.assertIn("answer 12 tokens", result.stderr)
        self.assertTrue(result.stdout.endswith("\n"))

    def test_prompt_from_stdin_and_file_is_the_same(self):
        args = ("-n", 10, "--temp", 0)
        direct = story("--prompt", "The king", *args).stdout
        self.assertEqual(story(*args, stdin="The king").stdout, direct)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("The king")
            file.flush()
            self.assertEqual(story("--file", file.name, *args).stdout, direct)

    def test_a_seed_gives_one_text_whatever_the_threads_and_chunks(self):
        args = ("--prompt", "A fox and an owl", "-n", 24, "--seed", 5)
        first = story(*args, "-t", 1).stdout
        self.assertEqual(story(*args, "-t", 2).stdout, first)
        self.assertEqual(story(*args, "--max-num-batched-tokens", 3).stdout, first)
        self.assertNotEqual(story(*args[:-1], 6).stdout, first)

    def test_a_stop_string_ends_the_text_and_is_not_in_it(self):
        args = ("--prompt", "Once upon a time", "-n", 60, "--temp", 0)
        whole = story(*args).stdout.rstrip("\n")
        stop = whole[len(whole) // 2:len(whole) // 2 + 4]
        cut = story(*args, "--stop", stop).stdout.rstrip("\n")
        self.assertEqual(cut, whole[:whole.index(stop)])

    def test_flags_have_environment_names(self):
        result = story("--prompt", "The king", "--temp", 0, env={"QUATRAIN_MAX_TOKENS": "3"})
        self.assertIn("answer 3 tokens", result.stderr)

    def test_faults_are_one_line_and_exit_with_1(self):
        for args in (("run", "/no/such/model", "-p", "x"),
                     ("run", MODEL, "--backend", "cpu", "-p", "x", "--top-p", "1.5"),
                     ("run", MODEL, "--backend", "cpu", "-p", "x" * 3000, "-c", "16"),
                     ("run", MODEL, "--backend", "cpu", "-p", "x", "--expert-activations", "static"),
                     ("run", MODEL, "--backend", "cpu", "-p", "x", "--expert-activations", "fp8"),
                     ("tokenize", "/no/such/model", "x")):
            result = run(*args)
            self.assertEqual(result.returncode, 1, args)
            self.assertEqual(result.stdout, "", args)
            self.assertEqual(len([line for line in result.stderr.splitlines()
                                  if line.startswith("quatrain: error:")]), 1, result.stderr)

    def test_wrong_flags_are_refused(self):
        self.assertNotEqual(run("run", MODEL, "--no-such-flag").returncode, 0)
        self.assertNotEqual(run().returncode, 0)


class Logits(unittest.TestCase):
    def test_chunks_do_not_matter_and_streams_are_there(self):
        ids = [0] + [(37 * i) % 4000 for i in range(1, 150)]
        with tempfile.TemporaryDirectory() as folder:
            wanted = None
            for name, flags in (("a", ()), ("b", ("--chunks", "7,61,1")), ("c", ("--streams",))):
                out = f"{folder}/{name}.safetensors"
                result = run("logits", MODEL, "--backend", "cpu", "--ids", "-", "--out", out, *flags,
                             stdin=json.dumps(ids))
                self.assertEqual(result.returncode, 0, result.stderr)
                found = tensors_of(out)
                self.assertEqual(found["logits"][:2], ("F32", [150, 4096]))
                values = struct.unpack(f"<{150 * 4096}f", found["logits"][2])
                wanted = wanted or values
                self.assertLessEqual(max(abs(a - b) for a, b in zip(values, wanted)), 1e-5)
            self.assertEqual(found["streams.5"][:2], ("F32", [150, 4, 384]))
            self.assertEqual(found["experts.0"][:2], ("I32", [150, 6]))

    def test_trace_writes_every_intermediate(self):
        with tempfile.TemporaryDirectory() as folder:
            result = story("--prompt", "Hi", "-n", 1, "--trace", f"{folder}/t", "--trace-filter", "attend")
            self.assertEqual(result.returncode, 0, result.stderr)
            index = pathlib.Path(folder, "t", "index.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in index.splitlines()]
            self.assertEqual(len(lines), 6)  # one a layer
            for line in lines:
                size = os.path.getsize(f"{folder}/t/{line['file']}")
                count = 4
                for extent in line["shape"]:
                    count *= extent
                self.assertEqual(size, count)

    def test_bad_ids_are_refused(self):
        for text in ("[1, -2]", "[]", "{", "[1.5]", "[99999]"):
            result = run("logits", MODEL, "--backend", "cpu", "--ids", "-", "--out", "/tmp/x.safetensors", stdin=text)
            self.assertEqual(result.returncode, 1, text)


class Others(unittest.TestCase):
    def test_tokenize_round_trip(self):
        text = "The owl said: “Naïve — 123!” 🦉\n"
        ids = run("tokenize", MODEL, stdin=text).stdout.split()
        back = run("tokenize", MODEL, "--decode", " ".join(ids))
        self.assertEqual(back.returncode, 0, back.stderr)
        self.assertIn(text.strip(), back.stdout)

    def test_inspect_json(self):
        report = json.loads(run("inspect", MODEL, "--json").stdout)
        self.assertIn("NVFP4", json.dumps(report))

    def test_perplexity_json(self):
        text = "Once upon a time there was a king who had three sons. " * 20
        result = run("perplexity", MODEL, "--backend", "cpu", "-f", "-", "--window", 128, "--json", stdin=text)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertGreater(report["tokens"], 200)
        self.assertLess(report["nats_per_token"], 4.0)

    def test_chat_answers_and_leaves(self):
        result = run("chat", MODEL, "--backend", "cpu", "-n", 8, "--seed", 1,
                     stdin="Hello\n/help\n/nonsense\nAnd then?\n/quit\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("· answer"), 2)
        self.assertIn("is not a command", result.stderr)

    def test_quantize_leaves_an_existing_checkpoint_alone(self):
        self.assertEqual(run("quantize", MODEL, MODEL).returncode, 1)


SYNTHETIC = ("--synthetic", "storyteller", "--layers", 3)


class Bench(unittest.TestCase):
    def test_e2e_prints_llama_benchs_table(self):
        result = run("bench", "e2e", MODEL, "--backend", "cpu", "-p", "8,16", "-n", 2, "-r", 2, "-d", "0,40")
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[0], "| model | size | params | backend | test | t/s |")
        tests = [line.split("|")[5].strip() for line in lines[2:]]
        self.assertEqual(tests, ["pp8", "pp16", "tg2", "pp8 @ d40", "pp16 @ d40", "tg2 @ d40"])

    def test_e2e_breaks_a_step_down(self):
        result = run("bench", "e2e", *SYNTHETIC, "--backend", "cpu", "-p", 0, "-n", 1, "-r", 1, "-b", 2,
                     "--breakdown", "--breakdown-repetitions", 1, "-o", "json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["model"], "synthetic-storyteller-3L")
        breakdown = report["breakdowns"][0]
        self.assertEqual(breakdown["rows"], 2)
        self.assertIn("experts", {line["operation"] for line in breakdown["operations"]})
        self.assertGreater(breakdown["limits"]["read_bytes_per_s"], 1e8)

    def test_ops_measures_what_is_asked_for(self):
        result = run("bench", "ops", "--backend", "cpu", "--models", "storyteller", "--rows", "1,3",
                     "--filter", "linear gate", "-r", 2, "-o", "json")
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = json.loads(result.stdout)["results"]
        self.assertEqual([(line["operation"], line["rows"]) for line in lines],
                         [("linear gate", 1), ("linear gate", 3)])

    def test_ops_measures_fused_sites(self):
        result = run("bench", "ops", "--backend", "cpu", "--models", "storyteller", "--rows", 2,
                     "--filter", "pre_norm", "-r", 1, "-o", "json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([line["operation"] for line in json.loads(result.stdout)["results"]],
                         ["hc_pre_norm", "hc_post_pre_norm"])

    def test_results_are_drawn(self):
        e2e = ("bench", "e2e", *SYNTHETIC, "--backend", "cpu", "-p", 2, "-n", 0, "-r", 1, "--breakdown",
               "--breakdown-repetitions", 1)
        ops = run("bench", "ops", "--backend", "cpu", "--models", "storyteller", "--rows", 1, "--filter", "gate",
                  "-r", 1, "-o", "json")
        with tempfile.TemporaryDirectory() as folder:
            saved = pathlib.Path(folder, "e2e.json")
            self.assertIn("| pp2 |", run(*e2e, "--save", saved).stdout)
            printed = pathlib.Path(folder, "ops.json")
            printed.write_text(ops.stdout, encoding="utf-8")
            for path in (saved, printed):
                subprocess.run([sys.executable, PLOT, path, "-o", folder], check=True, capture_output=True)
            drawn = sorted(path.name for path in pathlib.Path(folder).glob("*.svg"))
            self.assertEqual(drawn, ["breakdown-pp2.svg", "ops.svg", "speed.svg"])
            for name in drawn:
                svg = xml.dom.minidom.parse(f"{folder}/{name}")
                self.assertGreater(len(svg.getElementsByTagName("rect")), 1, name)
            broken = subprocess.run([sys.executable, PLOT, __file__], capture_output=True, text=True)
            self.assertEqual(broken.returncode, 1)
            self.assertIn("not a result", broken.stderr)

    def test_what_cannot_be_measured_is_refused(self):
        for flags in (("-p", "0", "-n", "0"), ("-p", "4-1"), ("-b", "0"), ("-p", "8", "-c", "9999999")):
            self.assertEqual(run("bench", "e2e", *SYNTHETIC, "--backend", "cpu", *flags).returncode, 1, flags)
        self.assertEqual(run("bench", "e2e", "--backend", "cpu").returncode, 1)
        self.assertNotEqual(run("bench", "e2e", MODEL, *SYNTHETIC).returncode, 0)
        self.assertNotEqual(run("bench").returncode, 0)


class Verify(unittest.TestCase):
    def test_a_whole_checkpoint_passes(self):
        for flags in ((), ("--full",)):
            result = run("verify", MODEL, *flags)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("1517 tensors", result.stdout)

    def test_a_truncated_checkpoint_does_not(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "model.safetensors"):
                pathlib.Path(folder, name).write_bytes(pathlib.Path(MODEL, name).read_bytes())
            path = pathlib.Path(folder, "model.safetensors")
            path.write_bytes(path.read_bytes()[:-1])
            result = run("verify", folder)
            self.assertEqual(result.returncode, 1)
            self.assertIn("model.safetensors", result.stderr)

    def test_the_cpu_agrees_with_itself_at_any_context(self):
        result = run("verify", *SYNTHETIC, "--backend", "cpu", "--cpu-isa", "plain",
                     "--against", "cpu", "--rows", 2, "--context", "1,300,20000", "--tolerance", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.count("context "), 3)
        self.assertIn("index_select selected", result.stdout)


class Doctor(unittest.TestCase):
    def test_text_and_json_agree(self):
        text, report = run("doctor"), json.loads(run("doctor", "--json").stdout)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn(f"{report['warnings']} warnings, {report['failures']} failures", text.stdout)
        subjects = [finding["subject"] for finding in report["findings"]]
        for subject in ("cores", "memory", "cuda", "--backend auto"):
            self.assertIn(subject, subjects)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
