#!/usr/bin/env bash
# On a machine with a GPU, in the minutes given: the tests that need one, for at most half of them, then
# the benchmarks, what matters most first. Everything is written as it comes, into the folder given.
#   bash benchmarks/gpu.sh [OUT] [MINUTES]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/results}
seconds=$((60 * ${2:-30}))
end=$((SECONDS + seconds))
mkdir -p "$out"
export PYTHONPATH=$PWD:$PWD/examples # where nothing is installed

python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' || exit 1
timeout $((seconds / 2)) python -m pytest -m "gpu and not slow" -v -p no:cacheprovider tests 2>&1 | tee "$out/gpu-tests.txt"

measure() {
  local left=$((end - SECONDS))
  [ "$left" -gt 10 ] || return 0
  timeout "$left" python -m benchmarks --device cuda --out "$out/gpu.csv" "$@"
}

measure --dtype bfloat16 --workload 'memae-*x-n2000' --workload 'daad-level?'
measure --dtype tf32 --dtype float32 --workload 'memae-*x-n2000' --workload 'daad-level?'
measure
