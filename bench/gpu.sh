#!/usr/bin/env bash
# Everything that needs a GPU, on a machine from which nothing can be fetched: builds in place,
# tests, looks for wrong memory accesses and races, and times the ops, in under nine minutes. Every
# stage has a time limit, and one that fails does not stop the next.
#
#   [OUT=folder] [PYTHON=python3] [STAGES="build tests"] bench/gpu.sh
#
# Python must have torch with CUDA, pytest, ninja, pybind11, setuptools, numpy, rich and matplotlib;
# nvcc, and compute-sanitizer where there is one, are found on PATH or in CUDA_HOME. COMMIT names
# the sources where there is no git. OUT gets a JSON and a PNG file per table, the log of each
# stage, summary.txt, and all.tar.gz, which holds the rest; the last two are there from the first
# stage on, whatever becomes of those that follow.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
STAGES=${STAGES:-build tests benchmarks memcheck racecheck}
device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr ' /' '--')
OUT=${OUT:-bench/results/${device:-no-gpu}-$(date +%Y-%m-%d)}
export MAX_JOBS=${MAX_JOBS:-16}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}  # Hopper alone, which builds fastest
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
[ -n "${CUDA_HOME:-}" ] && PATH=$CUDA_HOME/bin:$PATH
mkdir -p "$OUT/logs"

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "bench/gpu.sh: $PYTHON has no torch that sees a CUDA GPU here" >&2
  exit 1
fi

made_with=$({
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1
  "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  nvcc --version | grep release
  echo "commit $(git describe --always --dirty 2>/dev/null || echo "${COMMIT:-unknown}")"
} 2>/dev/null)

failed=0
summary=()
report() {  # line for the summary
  summary+=("$1")
  printf '%s\n' "$made_with" "${summary[@]}" >"$OUT/summary.txt"
  tar -C "$OUT" --exclude all.tar.gz -czf "$OUT/all.tar.gz" .
}

stage() {  # name, seconds that it may take, command
  local name=$1 limit=$2 start=$SECONDS status outcome
  shift 2
  [[ " $STAGES " == *" $name "* ]] || return 0
  echo "== $name (at most $limit s)"
  timeout --signal=INT --kill-after=5 "$limit" "$@" >"$OUT/logs/$name.log" 2>&1
  status=$?
  case $status in
    0) outcome="passed" ;;
    124 | 137) outcome="FAILED: took longer than $limit s" ;;
    *) outcome="FAILED: status $status" ;;
  esac
  [ $status -eq 0 ] || failed=1
  tail -n "$([ $status -eq 0 ] && echo 15 || echo 60)" "$OUT/logs/$name.log"
  report "$(printf '%-11s %4d s  %s' "$name" $((SECONDS - start)) "$outcome")"
}

# The tests that run on each device on CUDA, and what is CUDA's own. What runs on the CPU alone
# (the emulation, the instruction sets, packaging) needs no GPU and is left to `make test`. A stage
# out of time is interrupted, upon which pytest still says what failed; a test that hangs in the
# driver hears of no interrupt, and ends with its process, whose tests another takes over.
options=()
"$PYTHON" -c 'import xdist' 2>/dev/null && options+=(-n "${WORKERS:-12}")
"$PYTHON" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout=40 --timeout-method=thread)
tests=(tests/test_cuda.py)
for file in $(grep -l 'usefixtures("on_each_device"' tests/test_*.py); do tests+=("$file"); done

sanitize() {  # tool
  if ! command -v compute-sanitizer >/dev/null; then
    report "$(printf '%-11s    -    not run: there is no compute-sanitizer' "$1")"
    return
  fi
  # Without torch's cache every tensor is an allocation of its own, whose end memcheck knows.
  stage "$1" 55 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" \
    --kernel-regex kns=matcalc --error-exitcode 3 --print-limit 20 "$PYTHON" bench/sanitize.py
}

stage build 140 env USE_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace
stage tests 140 env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -W default -p no:cacheprovider \
  --device cuda --durations=10 \
  --deselect tests/test_random_operands.py::test_kernels_of_an_emulated_gpu \
  ${options[@]+"${options[@]}"} "${tests[@]}"
stage benchmarks 105 "$PYTHON" bench/gpu.py --out "$OUT"
sanitize memcheck
sanitize racecheck

cat "$OUT/summary.txt"
exit $failed
