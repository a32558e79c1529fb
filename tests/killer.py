"""For `imports` of a test's experiment: kills the whole tree of a run at one moment of its first attempt.

KDTEST_KILL=save|step|evaluation names the moment. Supervisor, torchrun and every rank get SIGKILL at once,
late enough for two checkpoints to be on disk although a thread writes them (train/writer.py: WAITING).
"""

import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

from kdcluster.files import read_json
from kdcluster.train import checkpoint, evaluate, metrics, step, trainer


def attempt():
    """The number of this process's attempt, as torchrun was told it; none in whoever only loads this file."""
    return dict(pairwise(sys.argv)).get("--attempt")


def kill_the_tree():
    run_dir = Path(next(part for part in sys.argv[1:] if not part.startswith("--")))
    record = read_json(run_dir / "attempts" / attempt() / "start.json")
    workers = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
    for pid in (record["supervisor"]["pid"], os.getppid(), *map(int, workers)):
        os.kill(pid, signal.SIGKILL)


def after(calls, owner, name):
    """Kill in call number `calls` of a function, before it does anything."""
    original = getattr(owner, name)
    seen = 0

    def counted(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == calls:
            kill_the_tree()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


if os.environ.get("KDTEST_KILL") and attempt() == "1" and "distilled" in sys.argv[1]:
    rank0 = os.environ["RANK"] == "0"
    if os.environ["KDTEST_KILL"] == "save" and rank0:
        original_save = checkpoint.torch.save
        saves = 0

        def torn_save(state, file):
            """The third checkpoint is half written when the lights go out."""
            global saves
            saves += 1
            if saves == 3:
                file.write(b"x" * 5000)
                file.flush()
                kill_the_tree()
            original_save(state, file)

        checkpoint.torch.save = torn_save
    elif os.environ["KDTEST_KILL"] == "step" and rank0:
        after(10, trainer, "train_step")
    elif os.environ["KDTEST_KILL"] == "evaluation" and rank0:
        after(3, evaluate, "evaluate")

assert metrics
assert step
