#!/usr/bin/env bash
# Installs mmcv's compiled ops (mmcv._ext) for the torch of one Python. Optional:
# without them ltm_mm/compat serves the common ops. Used by `make ops`.
#
#   requirements/build_ops.sh [PYTHON]       default: .venv/bin/python
#
# Takes, in this order: what is installed, the wheel of an earlier build, a ready
# wheel that pip finds, a build from source (about 15 minutes on two cores).
# Environment: MAX_JOBS (default: all cores), FORCE_CUDA=1 (CUDA ops although no
# GPU is visible), CFLAGS, CXX, MMCV_CACHE (default: .cache/mmcv).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
py=${1:-$root/.venv/bin/python}
cache=${MMCV_CACHE:-$root/.cache/mmcv}

say() { printf 'ops: %s\n' "$*"; }
die() { printf 'ops: %s\n' "$*" >&2; exit 1; }

# The real module only: where it is missing, an installed ltm_mm answers with its own, in Python.
# Ops without CUDA do not do where CUDA is wanted.
has_ops() {
  "$py" -c 'import sys, torch, mmcv._ext as ext
no_cuda = ext.get_compiling_cuda_version() == "not available"
sys.exit(ext.__file__.endswith(".py") or sys.argv[1].endswith("cuda") and no_cuda)' "$key" >/dev/null 2>&1
}

# Tried in a folder of its own first: a wheel for another torch must not replace
# anything, and one without _ext is mmcv's pure-Python part and no help here.
install_wheel() {
  rm -rf "$work/try"
  "$py" -m zipfile -e "$1" "$work/try" && compgen -G "$work/try/mmcv/_ext*" >/dev/null &&
    PYTHONPATH=$work/try has_ops && "$py" -m pip install -q --no-deps --force-reinstall "$1"
}

command -v "$py" >/dev/null || die "no Python at $py: run 'make setup' first, or name one: $0 PYTHON"
facts=$("$py" - <<'PY'
import os
import sys
from importlib.metadata import packages_distributions, version

try:
    import torch
except ModuleNotFoundError:
    sys.exit("ops: torch is not installed: run 'make setup' first")
names = packages_distributions().get("mmcv")
if not names:
    sys.exit("ops: mmcv is not installed: run 'make setup' first")
if names[0] == "mmcv-lite":
    sys.exit("ops: mmcv-lite never has ops: run 'pip uninstall mmcv-lite && pip install mmcv' first")
cuda = torch.cuda.is_available() or os.environ.get("FORCE_CUDA") == "1"
tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{'cuda' if cuda else 'cpu'}"
print(f"{names[0]}=={version(names[0])} torch-{torch.__version__}-{tag}")
PY
) || exit 1
read -r mmcv key <<<"$facts"
wheels=$cache/$key/${mmcv/==/-}

if has_ops; then
  say "compiled $mmcv is installed already"
  exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for wheel in "$wheels"/*.whl; do
  [ -e "$wheel" ] || continue
  say "installing the cached ${wheel#"$root"/}"
  install_wheel "$wheel" && { say "done"; exit; }
  say "it does not import and is removed"
  rm "$wheel"
done

if "$py" -m pip download -q --no-deps --only-binary :all: -d "$work" "$mmcv" 2>/dev/null; then
  say "trying the ready wheel that pip found"
  install_wheel "$work"/*.whl && { say "done"; exit; }
  rm -f "$work"/*.whl
fi

compiler=${CXX:-c++}
command -v "${compiler%% *}" >/dev/null ||
  die "no C++ compiler ($compiler): install one (Debian, Ubuntu: 'apt-get install g++') or set CXX; ltm_mm works without the ops"
headers=$("$py" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] ||
  die "no Python.h in $headers: install Python's headers (Debian, Ubuntu: 'apt-get install python3-dev'); ltm_mm works without the ops"

[[ $key != *cuda ]] || "$py" -c 'from torch.utils.cpp_extension import CUDA_HOME as home
raise SystemExit(not home)' 2>/dev/null ||
  die "no CUDA toolkit (nvcc): install that of torch's CUDA version or set CUDA_HOME; ltm_mm works without the ops"

# The build's own tools stay out of the environment. setuptools 80 is the only
# series that knows mmcv's licence field and still has pkg_resources.
say "fetching the build's tools"
"$py" -m pip install -q --no-warn-conflicts --target "$work/tools" \
  'setuptools>=80,<81' wheel ninja packaging 2>"$work/pip.log" || { cat "$work/pip.log" >&2; die "pip could not fetch the build's tools"; }

# --no-build-isolation: in an isolated build mmcv sees no torch and leaves its ops
# out without a word. No cache, no binary: pip may hold such a wheel. -g0 -O2
# halves the time (debug information).
mkdir -p "$wheels"
log=$cache/$key/build.log
jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
say "building $mmcv for ${key} with $jobs jobs (log: ${log#"$root"/})"
SECONDS=0
PATH="$work/tools/bin:$PATH" PYTHONPATH="$work/tools${PYTHONPATH:+:$PYTHONPATH}" \
  MAX_JOBS=$jobs CFLAGS="${CFLAGS--g0 -O2}" MMCV_WITH_OPS=1 \
  "$py" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation --no-binary "${mmcv%==*}" \
  -w "$work" "$mmcv" 2>&1 | tee "$log" | while IFS= read -r line; do
  if [[ $line =~ \[([0-9]+)/([0-9]+)\] ]]; then
    [ -t 1 ] && printf '\r' || printf '\n'
    printf 'ops: compiled %s of %s files, %d min %02d s' \
      "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" $((SECONDS / 60)) $((SECONDS % 60))
  fi
done || { printf '\n'; tail -n 20 "$log" >&2; die "the build failed, above is the end of $log (onedl-mmcv 2.3.6 compiles against torch 2.11 and 2.13, not 2.14); ltm_mm works without the ops"; }
printf '\n'

mv "$work"/*.whl "$wheels/"
install_wheel "$wheels"/*.whl || die "$mmcv was built, but mmcv._ext does not import: see $log"
say "done: mmcv._ext imports, and ltm_mm's fallback stays out of the way"
