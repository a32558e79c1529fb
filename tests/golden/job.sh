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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --cpu-bind=none --label ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} bash -c 'trap "" USR2; exec "$0" "$@"' /env/bin/python -uP -m kdcluster.launch.slurm.task '/runs/my run/slurm/1'
