# SPDX-License-Identifier: Apache-2.0
# Shell functions shared by ./demo and ./check: install what is missing, configure, build.
# Sourced from the root of the repository, never run. Everything is said on stderr.
#
# Works on Debian 12 and Ubuntu 24.04. Nothing is downloaded when every package is there already;
# elsewhere the packages are named and the configure step says what it lacks.

# What the command needs, and what its tests need on top.
BUILD_PACKAGES=(g++ cmake ninja-build libfmt-dev libsimdjson-dev libcli11-dev libedit-dev
                libboost-dev libssl-dev libxxhash-dev)
TEST_PACKAGES=(python3 pkg-config libgtest-dev nlohmann-json3-dev libpcre2-dev)
FUZZ_PACKAGES=(clang-14 libclang-rt-14-dev)

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

is_installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# apt as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "neither root nor a machine with sudo; cannot run: $*"
    return 1
  fi
}

apt_install() {
  # The lists are fetched once per run, and only when there is something to install.
  if [ -z "${APT_UPDATED:-}" ]; then
    as_root apt-get -qq update >&2 || return 1
    APT_UPDATED=1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# setup_packages NAME…: installs those that are missing.
setup_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "not a Debian or Ubuntu machine: needed here are the equivalents of $*"
    return
  fi
  local missing=() name
  for name in "$@"; do
    is_installed "$name" || missing+=("$name")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || die "cannot install ${missing[*]}"
  fi
}

# A Python with the packages of the conformance tests, in build/test-venv. Those tests are skipped
# where it cannot be made.
setup_test_python() {
  local folder=build/test-venv
  "$folder/bin/python" -c 'import openai, pytest' 2>/dev/null && return
  say "installing openai and pytest into $folder"
  python3 -m venv "$folder" 2>/dev/null || {
    apt_install python3-venv && python3 -m venv --clear "$folder"
  } || {
    say "there is no python3-venv: the conformance tests will be skipped"
    return 0
  }
  "$folder/bin/pip" -q --timeout 15 --retries 1 --disable-pip-version-check install openai pytest >&2 ||
    say "openai and pytest are not to be had: the conformance tests will be skipped"
}

# configure PRESET [cmake arguments…]: ccache and mold are used where they are installed.
configure() {
  local preset=$1
  shift
  local options=("$@")
  if command -v ccache >/dev/null; then
    options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  fi
  if command -v mold >/dev/null; then
    options+=(-DCMAKE_EXE_LINKER_FLAGS=-fuse-ld=mold)
  fi
  cmake --preset "$preset" -Wno-dev --log-level=WARNING "${options[@]}" >&2 ||
    die "configuring with preset $preset failed"
}

# build PRESET [target…]
build() {
  local preset=$1
  shift
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  cmake --build --preset "$preset" --parallel "$(nproc)" "${targets[@]}" >&2 ||
    die "building with preset $preset failed"
}
