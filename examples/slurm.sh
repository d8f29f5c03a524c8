#!/bin/bash
# Train on N nodes of a SLURM cluster, in as many jobs as it takes:
#
#   sbatch examples/slurm.sh examples/collatz_small.yaml --output_dir=runs/long --max_steps=1000000
#   sbatch --nodes=4 --gpus-per-node=8 examples/slurm.sh ...
#
# Two minutes before the time limit SLURM sends USR1. The trainer then finishes its step, writes a checkpoint and exits
# with `requeue_exit_code` (85), which tells "stopped, not finished" from success (0) and failure (anything else). This
# script puts the job back into the queue; its next start continues from that checkpoint, in the same output_dir. So it
# does with a run that has stood still for half an hour (hang_timeout), if that has made steps since its start.

#SBATCH --job-name=accel_train

# The machines. One task per node: it is accelerate that starts one process per GPU.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32

# Any limit will do, since the job comes back; short ones start sooner.
#SBATCH --time=04:00:00

# Warn this script (B:) with USR1, 120 s before the limit. A step plus a checkpoint must fit into that.
#SBATCH --signal=B:USR1@120

# May be put back into the queue: by this script after the warning, by SLURM after a preemption or a lost node.
#SBATCH --requeue

# One log for all starts of the job.
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch examples/slurm.sh CONFIG.yaml [--key=value ...]" >&2
    exit 2
fi

export PATH="${VENV:-.venv}/bin:$PATH"
export LAUNCH=${LAUNCH:-accelerate_configs/multi_node.yaml}
export PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
threads=$((${SLURM_CPUS_PER_TASK:-1} / PROCESSES_PER_NODE))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node get different ports
export MAIN_NODE MAIN_PORT
# Made by a run that hung: of its exit code, `accelerate launch` leaves nothing.
export ACCEL_TRAIN_REQUEUE_FILE="${SLURM_SUBMIT_DIR:-$PWD}/.accel_train-$SLURM_JOB_ID.hung"
rm -f "$ACCEL_TRAIN_REQUEUE_FILE"

# Wait for process $1 and return its exit status. A trapped signal interrupts `wait`, so wait again.
await() {
    local status=0
    wait "$1" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$1" 2>/dev/null; do
        status=0
        wait "$1" || status=$?
    done
    return "$status"
}

# What runs on every node. The launcher would die of USR1, so it starts with USR1 ignored; its children, the trainer's
# processes, inherit that until they install their own handler, and are the ones to be told.
node() {
    trap '' USR1
    accelerate launch --quiet --config_file "$LAUNCH" \
        --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
        --num_processes "$((SLURM_NNODES * PROCESSES_PER_NODE))" \
        --main_process_ip "$MAIN_NODE" --main_process_port "$MAIN_PORT" \
        -m accel_train train --config "$@" &
    local launcher=$!
    # shellcheck disable=SC2064  # the process id is meant to be expanded now
    trap "pkill -USR1 -P $launcher || true" USR1
    await "$launcher"
}
export -f await node

# srun passes USR1 on to its task on every node.
# --cpus-per-task: srun does not take it over from sbatch.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'node "$@"' node "$1" --hang_timeout=30min "${@:2}" --requeue_exit_code=85 &
step=$!
warned=false
trap 'warned=true; echo "slurm.sh: the time is nearly up, asking the trainer to stop"; kill -USR1 "$step"' USR1

status=0
await "$step" || status=$?

# `accelerate launch` turns every exit code but 0 into 1, so after a warning "not finished" is what there is to see.
# A failure without a warning or a sign of a hang is never put back: no job fails in a circle.
if [ -e "$ACCEL_TRAIN_REQUEUE_FILE" ]; then
    rm -f "$ACCEL_TRAIN_REQUEUE_FILE"
    warned=true
fi
if [ "$status" -eq 85 ] || { [ "$status" -ne 0 ] && $warned; }; then
    echo "slurm.sh: stopped before the end, back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
