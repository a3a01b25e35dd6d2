#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes golden.json again; see README.md. Needs the Python package tokenizers.

    python3 make_golden.py STORYTELLER_BF16_FOLDER VALIDATION.TXT > golden.json
"""
import json
import pathlib
import random
import sys

from tokenizers import Tokenizer

PARAGRAPHS = 140
STRINGS = 300
POOLS = [range(0x20, 0x7F), [9, 10, 11, 12, 13, 0x20, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x3000, 0x200B],
         range(0x4E00, 0x4E80), range(0x3040, 0x3100), range(0x300, 0x370), range(0x1F600, 0x1F650),
         [0x30, 0x31, 0x39, 0x660, 0x966, 0xFF10, 0xBD, 0x2160], range(0x20), range(0x400, 0x460),
         range(0xA0, 0x250), [ord(c) for c in "aA' \n.,"]]
ADDED = ["<think>", "</think>", "｜DSML｜", "<｜User｜>", "<｜Assistant｜>", "<｜User", "｜DSML", "<"]


def random_string(rng):
    pools = rng.sample(POOLS, rng.randrange(1, 4))
    text = ""
    for _ in range(rng.randrange(1, 24)):
        text += rng.choice(ADDED) if rng.random() < 0.06 else chr(rng.choice(rng.choice(pools)))
    return text


def main():
    folder, validation = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(4096)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    greedy = json.loads((folder / "greedy.json").read_text())
    paragraphs = [p + "\n\n" for p in validation.read_text().strip().split("\n\n")[:PARAGRAPHS]]
    parts = {
        "greedy": [[g["prompt"], g["prompt_ids"]] for g in greedy],
        "validation": [[text, encode(text)] for text in paragraphs],
        "strings": [[text, encode(text)] for text in (random_string(rng) for _ in range(STRINGS))],
    }
    lines = []
    for name, cases in parts.items():
        rows = ",\n".join(json.dumps(c, ensure_ascii=True, separators=(",", ":")) for c in cases)
        lines.append(f'"{name}": [\n{rows}\n]')
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main()
