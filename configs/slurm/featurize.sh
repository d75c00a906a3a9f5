#!/usr/bin/env bash
# Featurize on a SLURM cluster: an array of tasks, one a shard, that need not talk to each other.
#
#     sbatch configs/slurm/featurize.sh
#
# A task whose time is up or that is preempted finishes its block and is put back in the queue. If tasks fail, submit the
# same array again: finished shards end in seconds. `trak score` says which shards are missing.
#
# 1. Edit what one task needs, and the size of the array, which is the number of shards:
#SBATCH --array=1-16
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00

# 2. Edit the command, as you would give it on one machine:
featurize=(trak featurize --config configs/digits.yaml --run_dir runs/digits)

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
# Arrays begin at 0 or at 1, shards at 1.
shard=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT
exec srun "${featurize[@]}" --shard "$shard"
