#!/usr/bin/env bash
# Train on several GPUs, or, where there is none, in several processes on the CPU:
#     tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG PROCESSES [options of tools/train.py]" >&2
  exit 2
fi
config=$1 processes=$2
shift 2
source "$(dirname "$0")/_torchrun.sh"
launch "$processes" train.py "$config" "$@"
