#!/bin/bash
# Four learning rates, one behind the other here, or beside each other on a SLURM cluster:
#
#   bash examples/sweep.sh
#   sbatch --array=0-3 --gpus=1 --time=02:00:00 examples/sweep.sh --max_time=110min
#   accel-train runs table runs/sweep
#
# What follows the script's name is for every run. Called again, each goes on where it was, and a complete one ends at
# once; so it does not matter how many jobs a sweep takes.
set -euo pipefail

rates=(1e-4 3e-4 1e-3 3e-3)
for i in ${SLURM_ARRAY_TASK_ID:-${!rates[@]}}; do
    rate=${rates[i]}
    accel-train train --config examples/collatz_small.yaml --learning_rate="$rate" --output_dir="runs/sweep/lr$rate" "$@"
done
