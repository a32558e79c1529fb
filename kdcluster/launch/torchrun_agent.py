"""torchrun, as a run's attempt needs it: `python -P -m kdcluster.launch.torchrun_agent`, then torchrun's own arguments.

Its process, the agent, starts the ranks of one node and waits for them.
"""

from __future__ import annotations

import os
import sys

from kdcluster.processes import AGENT_VARIABLE


def main() -> None:
    """torchrun with the arguments of this process."""
    from torch.distributed.run import main as torchrun

    os.environ[AGENT_VARIABLE] = str(os.getpid())
    torchrun(sys.argv[1:])


if __name__ == "__main__":
    main()
