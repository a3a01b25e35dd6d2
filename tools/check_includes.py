#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes whom: the architecture's include table, and where outside headers may appear.

usage: tools/check_includes.py [--self-test]

Reads every C++ and CUDA source below the repository and prints one line per forbidden include. It does
not run a preprocessor: an include inside `#if 0` counts too.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Folder -> folders it may include besides itself. Applications are the only place that composes
# everything, so only they and the code around the engine may include anything.
MAY_INCLUDE = {
    "include/quatrain": set(),
    "src/core": set(),
    "src/comm": {"src/core"},
    "src/ops": {"src/core"},
    "src/checkpoint": {"src/core"},
    "src/tokenizer": {"src/core"},
    "src/grammar": {"src/core"},
    "src/backends/cpu": {"src/core", "src/comm", "src/ops"},
    "src/backends/cuda": {"src/core", "src/comm", "src/ops"},
    "src/model": {"src/core", "src/ops", "src/checkpoint"},
    "src/runtime": {"src/core", "src/comm", "src/ops", "src/model", "include/quatrain"},
    "src/server": {"src/core", "src/tokenizer", "src/grammar", "src/runtime", "include/quatrain"},
    "bindings": {"src/core", "src/backends/cuda"},
}
MAY_INCLUDE_ANYTHING = ("src/apps", "tests", "bench", "fuzz")

# (what, pattern of headers, places where they may be included)
OUTSIDE = [
    ("CUDA", re.compile(r"(cuda|cublas|curand|cutlass/|cute/|cub/|thrust/|nvtx3?/|nv/|mma\.h|"
                        r"cooperative_groups)"),
     ("src/backends/cuda/", "src/comm/nccl_comm.", "bindings/")),
    ("NCCL", re.compile(r"nccl"), ("src/comm/nccl_comm.",)),
    ("PyTorch", re.compile(r"(torch/|ATen/|c10/|Python\.h|pybind11/|nanobind/)"), ("bindings/",)),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".inc"}


def folder_of(path):
    """The row of the table that `path` (relative to the root) belongs to, or None."""
    for folder in (*MAY_INCLUDE, *MAY_INCLUDE_ANYTHING):
        if path.startswith(folder + "/"):
            return folder
    return None


def resolve(path, header, exists):
    """The file of the repository that `header`, included by `path`, means; None if none does."""
    beside = str(pathlib.PurePosixPath(path).parent / header)
    for candidate in (f"src/{header}", f"include/{header}", f"tests/{header}", header, beside):
        if exists(candidate):
            return candidate
    return None


def faults_of(path, line, exists):
    """What is wrong with this line of the file `path`: a list of sentences, empty if nothing."""
    match = INCLUDE.match(line)
    if not match:
        return []
    quoted, header = match.group(1) == '"', match.group(2)
    faults = [f"{what} header {header}" for what, pattern, places in OUTSIDE
              if pattern.match(header) and not path.startswith(places)]
    if not quoted and not header.startswith("quatrain/"):
        return faults
    folder, target = folder_of(path), resolve(path, header, exists)
    if folder is None:
        return faults + [f"{path} is in no folder of the table"]
    if target is None:
        return faults + [f"{header} is no file of the repository"]
    if ".." in pathlib.PurePosixPath(header).parts:
        return faults + [f"{header} leaves its folder by a relative path"]
    target_folder = folder_of(target)
    if folder in MAY_INCLUDE_ANYTHING or target_folder == folder:
        return faults
    if target_folder not in MAY_INCLUDE[folder]:
        allowed = ", ".join(sorted(MAY_INCLUDE[folder])) or "nothing"
        faults.append(f"{header}: {folder} may include {allowed}")
    return faults


def check_acyclic():
    done = set()
    while len(done) < len(MAY_INCLUDE):
        free = [f for f in MAY_INCLUDE if f not in done and MAY_INCLUDE[f] <= done]
        assert free, f"the table has a cycle among {set(MAY_INCLUDE) - done}"
        done.update(free)


def self_test():
    files = {"src/core/a.h", "src/ops/a.h", "src/comm/a.h", "src/checkpoint/a.h", "src/model/a.h",
             "src/runtime/a.h", "src/tokenizer/a.h", "src/server/a.h", "src/apps/a.h",
             "src/backends/cpu/a.h", "src/backends/cuda/a.h", "include/quatrain/engine.h",
             "tests/core/helper.h"}
    good = [
        ("src/core/x.cpp", '#include "core/a.h"'), ("src/ops/x.cpp", '#include "core/a.h"'),
        ("src/core/x.cpp", "#include <vector>"), ("src/core/x.cpp", '// #include "ops/a.h"'),
        ("src/backends/cpu/x.cpp", '#include "ops/a.h"'),
        ("src/backends/cpu/x.cpp", '#include "backends/cpu/a.h"'),
        ("src/backends/cuda/x.cu", "#include <cuda_runtime.h>"),
        ("src/comm/nccl_comm.cpp", "#include <nccl.h>"),
        ("src/model/x.cpp", '#include "checkpoint/a.h"'),
        ("src/runtime/x.cpp", '#include "model/a.h"'),
        ("src/runtime/x.cpp", '#include "quatrain/engine.h"'),
        ("src/server/x.cpp", '#include "runtime/a.h"'),
        ("src/apps/x.cpp", '#include "backends/cuda/a.h"'),
        ("tests/core/x.cpp", '#include "core/helper.h"'),
        ("bindings/torch/x.cpp", "#include <torch/library.h>"),
    ]
    bad = [
        ("src/core/x.cpp", '#include "ops/a.h"'), ("src/core/x.cpp", '#include "apps/a.h"'),
        ("src/ops/x.h", '#include "checkpoint/a.h"'), ("src/ops/x.h", '#include "model/a.h"'),
        ("src/tokenizer/x.cpp", '  #  include "checkpoint/a.h"'),
        ("src/backends/cpu/x.cpp", '#include "backends/cuda/a.h"'),
        ("src/backends/cuda/x.cu", '#include "backends/cpu/a.h"'),
        ("src/backends/cpu/x.cpp", '#include "model/a.h"'),
        ("src/backends/cpu/x.cpp", "#include <cuda_fp8.h>"),
        ("src/model/x.cpp", '#include "backends/cpu/a.h"'),
        ("src/model/x.cpp", '#include "runtime/a.h"'),
        ("src/runtime/x.cpp", '#include "tokenizer/a.h"'),
        ("src/runtime/x.cpp", '#include "checkpoint/a.h"'),
        ("src/server/x.cpp", '#include "model/a.h"'),
        ("src/core/x.cpp", "#include <quatrain/engine.h>"),
        ("include/quatrain/engine.h", '#include "core/a.h"'),
        ("src/comm/x.cpp", "#include <nccl.h>"), ("src/apps/x.cpp", "#include <torch/torch.h>"),
        ("src/core/x.cpp", '#include "core/missing.h"'), ("src/new/x.cpp", '#include "core/a.h"'),
        ("src/core/x.cpp", '#include "../ops/a.h"'),
    ]
    for path, line in good:
        assert not faults_of(path, line, files.__contains__), (path, line)
    for path, line in bad:
        assert faults_of(path, line, files.__contains__), (path, line)
    check_acyclic()


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return 0
    sources = [p for top in ("include", "src", "tests", "bench", "fuzz", "bindings")
               for p in sorted((ROOT / top).rglob("*")) if p.suffix in SUFFIXES]
    count = 0
    for source in sources:
        path = source.relative_to(ROOT).as_posix()
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            for fault in faults_of(path, line, lambda name: (ROOT / name).is_file()):
                print(f"{path}:{number}: {fault}", file=sys.stderr)
                count += 1
    print(f"include directions: {len(sources)} files, {count} faults", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
