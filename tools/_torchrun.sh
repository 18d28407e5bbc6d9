# Sourced by dist_train.sh and dist_test.sh: start a tool in several processes.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The environment that `make` set up, unless another one is active or named.
python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
  python=$tools/../.venv/bin/python
fi

# launch PROCESSES TOOL [arguments]
launch() {
  local processes=$1 tool=$2
  shift 2
  local where=(--nnodes 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 --local-addr 127.0.0.1)
  if [ "${NNODES:-1}" -gt 1 ] || [ -n "${PORT:-}" ]; then
    where=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
      --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
  fi
  exec "$python" "$tools/_torchrun.py" "${where[@]}" --nproc-per-node "$processes" \
    "$tools/$tool" "$@" --launcher pytorch
}
