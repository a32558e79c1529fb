"""torchrun target: train one run from its directory. `torchrun jobs/train.py RUN_DIR --data-dir DIR --device cpu`."""

from kdcluster.train.distributed import leave
from kdcluster.train.worker import main

if __name__ == "__main__":
    main()
    leave()
