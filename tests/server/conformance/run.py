#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the conformance cases with the first Python that has the packages openai and pytest.

usage: run.py QUATRAIN MODEL [PYTHON…] [-- pytest arguments…]

Exit status 77 says that no Python has them: the cases were skipped.
"""
import os
import subprocess
import sys


def has_packages(python):
    if not os.path.exists(python):
        return False
    return subprocess.run([python, "-c", "import openai, pytest"], capture_output=True).returncode == 0


def main():
    args, extra = sys.argv[1:], []
    if "--" in args:
        extra = args[args.index("--") + 1:]
        args = args[:args.index("--")]
    quatrain, model, *pythons = args
    python = next(filter(has_packages, [*pythons, sys.executable]), None)
    if python is None:
        print("skipped: no Python here has the packages openai and pytest "
              "(./check installs them into build/test-venv where it can)")
        return 77
    environment = {**os.environ, "QUATRAIN": quatrain, "QUATRAIN_MODEL": model,
                   "PYTHONDONTWRITEBYTECODE": "1"}
    folder = os.path.dirname(os.path.abspath(__file__))
    return subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder, *extra],
                          env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
