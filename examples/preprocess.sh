#!/bin/bash
# Preprocess the data of a task in the jobs of a SLURM array:
#
#   sbatch --array=0-7 --cpus-per-task=8 --time=02:00:00 examples/preprocess.sh tcn --disrupt=... --clear=... --out=...
#
# Each job takes its part by its number in the array, and whoever ends last finishes the folder, whose bytes do not depend
# on how many there were. Submitted again, also with another number of jobs, or called here without SLURM, it does what is
# missing. For an array in which every job has inputs and a folder of its own, add --shard=0/1.
set -euo pipefail

accel-train "$1" preprocess --workers="${SLURM_CPUS_PER_TASK:-1}" "${@:2}"
