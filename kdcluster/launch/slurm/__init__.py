"""SLURM as a place where runs run."""
