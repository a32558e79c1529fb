"""What each rank of test_resume_ranks.py does, in this world: one run whole, and the same stopped and resumed.

"resumed" is stopped at a step, "evaluated" in the middle of its first evaluation, by the rank with the fewest batches.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from kdcluster.train import evaluate
from kdcluster.train.distributed import Agreement, join, leave
from kdcluster.train.trainer import Progress, train
from tests import tiny


class StopAt(Progress):
    """Asks to stop once a step is reached."""

    at = 0

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "step" and value >= self.at:
            super().__setattr__("stop", True)


def stop_in_evaluation(progress: Progress) -> None:
    """At its next batch."""
    original = evaluate.evaluation_sums

    def stop(*given):
        progress.stop = True
        evaluate.evaluation_sums = original
        return original(*given)

    evaluate.evaluation_sums = stop


def main() -> None:
    folder, StopAt.at = Path(sys.argv[1]), int(sys.argv[2])
    evaluate.BATCH = 5  # 11, 11 and 10 images are 3, 3 and 2 batches
    with join("cpu", 1) as world:
        for name, starts in (("whole", 1), ("resumed", 2), ("evaluated", 2)):
            for start in range(starts):
                if world.rank == 0:
                    run = tiny.make_run(folder, "baseline", {"train.epochs": 3})
                    tiny.prepare(folder / name, run).start_attempt({})
                    (folder / "id").write_text(run.id)
                world.barrier()
                run_dir = tiny.RunDir(folder / name, (folder / "id").read_text())
                progress = StopAt() if name == "resumed" and start == 0 else Progress()
                if name == "evaluated" and start == 0 and world.rank == 2:
                    stop_in_evaluation(progress)
                fresh = replace(world, agreement=Agreement())  # as in a process of its own
                train(run_dir, run_dir.newest(), fresh, folder / "data", progress)
                fresh.agreement.finish()
                if name == "resumed" and start == 0 and world.rank == 0:
                    shutil.copytree(run_dir.checkpoints, folder / "stopped")  # a finished run keeps only its last
                world.barrier()


if __name__ == "__main__":
    main()
    leave()
