#!/bin/bash
# Train on machines that may come and go, without a scheduler. Run the same command on EVERY machine:
#
#   MAIN=node01 bash examples/torchrun.sh examples/collatz_small.yaml --output_dir=/shared/runs/long
#   MAIN=node01 NODES=1:4 PROCESSES=8 bash examples/torchrun.sh ...
#
# When a machine is lost, those that are left go on from the last checkpoint; when one joins, all save, and go on
# together. Every machine needs the same command, the same data and the same output_dir. With --reduction=fixed even the
# bits are those of a run that nothing happened to.

set -euo pipefail

if [ $# -eq 0 ] || [ -z "${MAIN:-}" ]; then
    echo "usage: MAIN=HOST [NODES=MIN:MAX] [PROCESSES=N] bash examples/torchrun.sh CONFIG.yaml [--key=value ...]" >&2
    exit 2
fi

export PATH="${VENV:-.venv}/bin:$PATH"
# Without it torchrun (seen with torch 2.13) keeps the address of an earlier round to itself, and who joins waits in vain.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # per process; the same everywhere, or bits differ

# Machines meet on MAIN, the one that must stay. PROCESSES: of each machine; gpu is one for each of its GPUs.
# hang_timeout: of a run that stands still; it is ended, and started again.
# requeue_exit_code: of a run that was told to stop; with 0, torchrun would take it for one that is done.
# last_call_timeout: seconds that fewer than MAX machines wait for another one before they begin.
exec torchrun --nnodes="${NODES:-1:2}" --nproc-per-node="${PROCESSES:-gpu}" --max-restarts="${RESTARTS:-20}" \
    --rdzv-backend=c10d --rdzv-endpoint="$MAIN:${PORT:-29400}" --rdzv-id="${JOB:-accel_train}" \
    --rdzv-conf="last_call_timeout=${LAST_CALL:-30}" \
    -m accel_train train --hang_timeout=30min --config "$@" --requeue_exit_code=85
