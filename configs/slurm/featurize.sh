#!/usr/bin/env bash
# Featurize on a SLURM cluster: an array of tasks, one per shard, that need not talk to each other.
#
#     sbatch configs/slurm/featurize.sh
#
# A task that runs out of time or is preempted finishes its block and returns to the queue. If tasks fail, submit the same
# array again: finished shards end in seconds. `trak score` says which shards are missing.
#
# 1. Edit the resources of one task, and the size of the array, which is the number of shards:
#SBATCH --array=1-16
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00

# 2. Edit the command, as you would type it on one machine:
featurize=(trak featurize runs/digits --config configs/digits.yaml)

#SBATCH --job-name=trak-featurize
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
#SBATCH --signal=USR1@120
set -euo pipefail
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "there is no array task: submit this script with sbatch" >&2
    exit 2
fi
if ((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1 != SLURM_ARRAY_TASK_COUNT)); then
    echo "the array has gaps; submit all of it again: finished shards end in seconds" >&2
    exit 2
fi
# Array tasks are counted from 0 or 1, shards from 1.
shard=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT
exec srun "${featurize[@]}" --shard "$shard"
