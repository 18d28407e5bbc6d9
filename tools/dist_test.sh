#!/usr/bin/env bash
# Evaluate on several GPUs, or, where there is none, in several processes on the CPU:
#     tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 CONFIG CHECKPOINT PROCESSES [options of tools/test.py]" >&2
  exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
source "$(dirname "$0")/_torchrun.sh"
launch "$processes" test.py "$config" "$checkpoint" "$@"
