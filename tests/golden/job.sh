#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --constraint='a&b'
#SBATCH --cpus-per-task=96
#SBATCH --dependency='afterok:<job of teacher>'
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:8
#SBATCH --job-name=name
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=512G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/runs/my run/slurm/1/%j.log'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=480

# setup
export NOTE='it'"'"'s $(here)'
module load cuda
[ -e '/runs/my run/slurm/1'/${SLURM_JOB_ID}_submitted.pkl ] || cp '/runs/my run/slurm/1/task.pkl' '/runs/my run/slurm/1'/${SLURM_JOB_ID}_submitted.pkl  # so that it finds its work whatever became of who submitted it

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --cpu-bind=none --label ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} bash -c 'trap "" USR2; exec "$0" "$@"' /env/bin/python -uP -m submitit.core._submit '/runs/my run/slurm/1'
