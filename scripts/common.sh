# Sourced by the other scripts: where things are cached, how missing tools come in.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything fetched or built outside the tree lives here, under names that contain a hash of the content.
CACHE=${LITTLEBIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/littlebit}
JOBS=${JOBS:-$(nproc)}

step() { printf '\n==> [%(%H:%M:%S)T] %s\n' -1 "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# install_missing COMMAND=DEBIAN_PACKAGE...: installs the packages whose command is not there.
install_missing() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null 2>&1 || die "these packages are missing, install them first: ${missing[*]}"
  step "installing ${missing[*]}"
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# Tools that Debian packages; Rust comes from rustup.
install_tools() {
  install_missing c++=g++ cmake=cmake ninja=ninja-build ccache=ccache python3=python3 git=git
  python3 -m pip --version >/dev/null 2>&1 || install_missing littlebit-no-pip=python3-pip
  command -v cargo >/dev/null 2>&1 || [ ! -e "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
  command -v cargo >/dev/null 2>&1 || die "cargo is missing: install Rust's stable toolchain with rustup"
}

# fetch_pypi NAME==VERSION SHA256 FILE [pip options]: FILE of that package, verified, in $CACHE/downloads.
fetch_pypi() {
  local spec=$1 sha=$2 file=$3 dir
  shift 3
  dir=$CACHE/downloads/$sha
  if [ ! -e "$dir/$file" ]; then
    step "fetching $spec"
    mkdir -p "$dir.tmp"
    printf '%s --hash=sha256:%s\n' "$spec" "$sha" >"$dir.tmp/requirements.txt"
    python3 -m pip download --disable-pip-version-check --no-deps --require-hashes "$@" \
      -d "$dir.tmp" -r "$dir.tmp/requirements.txt" >&2
    rm -rf "$dir"
    mv "$dir.tmp" "$dir"
  fi
  # A cache is never trusted, only saved work.
  printf '%s  %s\n' "$sha" "$dir/$file" | sha256sum --check --status || {
    rm -rf "$dir"
    die "$file has the wrong checksum; it was removed, run the command again"
  }
  printf '%s\n' "$dir/$file"
}
