#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts the validation windows out of the storyteller's golden file.

usage: make_storyteller_golden.py STORYTELLER_FOLDER OUT.safetensors

STORYTELLER_FOLDER/golden.safetensors holds `validation_ids` [N] (the tokens of the validation book)
and `validation_window_nll` [24] (the mean loss of each window in nats, by Hugging Face transformers
in FP32 from the BF16 weights). Window i is BOS + ids[s .. s+1022] with targets ids[s .. s+1023],
s = floor(i (N - 2048) / 24). OUT holds `windows` I32 [24, 1025], which is BOS + ids[s .. s+1023], and
`nll` F32 [24]. Needs the standard library alone.
"""
import array
import json
import struct
import sys

WINDOWS, LENGTH, BOS = 24, 1024, 0


def read_tensors(path):
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    body = memoryview(data)[8 + size:]
    return {n: (t, body[slice(*t["data_offsets"])]) for n, t in header.items() if n != "__metadata__"}


def write_tensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(d for _, _, d in tensors.values()))


def main():
    folder, out = sys.argv[1:]
    tensors = read_tensors(folder + "/golden.safetensors")
    info, raw = tensors["validation_ids"]
    ids = array.array({"I64": "q", "I32": "i"}[info["dtype"]], bytes(raw))
    windows = array.array("i")
    for i in range(WINDOWS):
        start = i * (len(ids) - 2048) // WINDOWS
        windows.extend([BOS, *ids[start:start + LENGTH]])
    info, nll = tensors["validation_window_nll"]
    assert info["dtype"] == "F32" and info["shape"] == [WINDOWS]
    write_tensors(out, {"windows": ("I32", [WINDOWS, LENGTH + 1], windows.tobytes()),
                        "nll": ("F32", [WINDOWS], bytes(nll))})


if __name__ == "__main__":
    main()
