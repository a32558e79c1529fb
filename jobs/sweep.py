"""What slurm/ray.sbatch starts: a Ray on the nodes of this job, `kdcluster sweep ARGS` in it, everything down again."""

from kdcluster.cli import main as kdcluster
from kdcluster.sweep.allocation import main

if __name__ == "__main__":
    main(kdcluster)
