#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Formats every C++ source with the pinned clang-format, or only says which files differ.
#
# usage: tools/format.sh [--check]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

formatter=clang-format-14
command -v $formatter >/dev/null || {
  echo "error: $formatter is not installed; other versions format differently" >&2
  exit 1
}

mode=(-i)
[ "${1:-}" != --check ] || mode=(--dry-run --Werror)

folders=()
for folder in include src tests bench fuzz bindings; do
  [ ! -d $folder ] || folders+=("$folder")
done
find "${folders[@]}" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) \
  -print0 | xargs -0 -r $formatter --style=file "${mode[@]}"
