#!/usr/bin/env bash
# Everything that needs a GPU, on a machine from which nothing can be fetched: builds in place,
# tests, looks for wrong memory accesses and races, and times the ops, in under nine minutes. Every
# stage has a time limit, and one that fails does not stop the next.
#
#   [OUT=folder] [DETAILS=folder] [PYTHON=python3] [STAGES="build tests"] bench/gpu.sh
#
# Python must have torch with CUDA, pytest, ninja, pybind11, setuptools, numpy, rich and matplotlib;
# nvcc, and compute-sanitizer where there is one, are found on PATH, in CUDA_HOME or in
# /usr/local/cuda. COMMIT names the sources where there is no git. OUT gets summary.txt and
# all.tar.gz, which holds the rest: from the first stage on, whatever becomes of those that follow.
# DETAILS, which is OUT unless named, gets a JSON and a PNG file per table and the log of each stage.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
STAGES=${STAGES:-build tests products benchmarks memcheck racecheck}
device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr ' /' '--')
OUT=${OUT:-bench/results/${device:-no-gpu}-$(date +%Y-%m-%d)}
DETAILS=${DETAILS:-$OUT}
export MAX_JOBS=${MAX_JOBS:-16}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}  # Hopper alone, which builds fastest
export NVCCFLAGS="-lineinfo ${NVCCFLAGS:-}"  # reports of the sanitizer name lines of the sources
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
[ -n "${CUDA_HOME:-}" ] && PATH=$CUDA_HOME/bin:$PATH
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$OUT" "$DETAILS/logs"

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "bench/gpu.sh: $PYTHON has no torch that sees a CUDA GPU here" >&2
  exit 1
fi

made_with=$({
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1
  "$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  nvcc --version | grep release
  "$PYTHON" -m pip list 2>/dev/null | grep -iE '^(setuptools|pybind11|ninja|pytest|hypothesis)' | xargs
  echo "commit $(git describe --always --dirty 2>/dev/null || echo "${COMMIT:-unknown}")"
} 2>/dev/null)

failed=0
summary=()
report() {  # line for the summary
  summary+=("$1")
  printf '%s\n' "$made_with" "${summary[@]}" >"$OUT/summary.txt"
  tar -C "$DETAILS" --exclude all.tar.gz --exclude summary.txt -czf "$OUT/all.tar.gz" .
}

stage() {  # name, seconds that it may take, command
  local name=$1 limit=$2 start=$SECONDS status outcome
  shift 2
  [[ " $STAGES " == *" $name "* ]] || return 0
  echo "== $name (at most $limit s)"
  timeout --signal=INT --kill-after=15 "$limit" "$@" >"$DETAILS/logs/$name.log" 2>&1
  status=$?
  case $status in
    0) outcome="passed" ;;
    124 | 137) outcome="FAILED: took longer than $limit s" ;;
    *) outcome="FAILED: status $status" ;;
  esac
  [ $status -eq 0 ] || failed=1
  tail -n "$([ $status -eq 0 ] && echo 15 || echo 60)" "$DETAILS/logs/$name.log"
  report "$(printf '%-11s %4d s  %s' "$name" $((SECONDS - start)) "$outcome")"
}

# The tests that run on each device on CUDA, and what is CUDA's own. What runs on the CPU alone
# (the emulation, the instruction sets, packaging) needs no GPU and is left to `make test`. A test
# that hangs in the driver ends with its process, whose tests another takes over. pytest has to end
# the session itself where time runs out: interrupted, it ends without saying what failed.
options=()
"$PYTHON" -c 'import xdist' 2>/dev/null && options+=(-n "${WORKERS:-12}")
"$PYTHON" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout=40 --timeout-method=thread)
"$PYTHON" -m pytest --help 2>/dev/null | grep -q -- --session-timeout && options+=(--session-timeout=145)
tests=(tests/test_cuda.py)
for file in $(grep -l 'usefixtures("on_each_device"' tests/test_*.py); do tests+=("$file"); done

sanitize() {  # tool
  if ! command -v compute-sanitizer >/dev/null; then
    report "$(printf '%-11s    -    not run: there is no compute-sanitizer' "$1")"
    return
  fi
  local more=()
  [ "$1" = memcheck ] && more=(--report-api-errors no)  # torch asks the driver for what it may lack
  # Without torch's cache every tensor is an allocation of its own, whose end memcheck knows.
  stage "$1" 55 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" \
    ${more[@]+"${more[@]}"} --kernel-regex kns=matcalc --error-exitcode 3 --print-limit 20 \
    "$PYTHON" bench/sanitize.py
}

stage build 140 env USE_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace
# Fewer random operands, each of which is a hundred launches; and not what runs on the CPU all the
# same, in a process of its own.
stage tests 170 env OMP_NUM_THREADS=1 MATCALC_EXAMPLES=250 "$PYTHON" -m pytest -q -W default \
  -p no:cacheprovider --device cuda --durations=10 \
  --deselect tests/test_random_operands.py::test_kernels_of_an_emulated_gpu \
  --deselect tests/test_transforms.py::test_what_cannot_be_compiled_is_right_or_an_error \
  ${options[@]+"${options[@]}"} "${tests[@]}"
# In two processes: where a kernel of the one breaks the memory rules, CUDA refuses it all the rest.
stage products 45 "$PYTHON" bench/gpu.py --out "$DETAILS" --tables products
stage benchmarks 70 "$PYTHON" bench/gpu.py --out "$DETAILS" \
  --tables vectors forms batches nn_bilinear overhead
sanitize memcheck
sanitize racecheck

cat "$OUT/summary.txt"
exit $failed
