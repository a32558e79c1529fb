"""What each rank of test_resume_ranks.py does: one run whole, and one that is stopped and resumed, in this world."""

import sys
from dataclasses import replace
from pathlib import Path

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


def main() -> None:
    folder, stop_at = Path(sys.argv[1]), int(sys.argv[2])
    with join("cpu", 1) as world:
        for name, stops in (("whole", []), ("resumed", [stop_at])):
            root = folder / name
            for stop in [*stops, None]:
                run_dir, attempt = None, None
                if world.rank == 0:
                    run = tiny.make_run(folder, "baseline", {"train.epochs": 3})
                    attempt = tiny.prepare(root, run).start_attempt({})
                    (folder / "id").write_text(run.id)
                world.barrier()
                run_dir = tiny.RunDir(root, (folder / "id").read_text())
                attempt = run_dir.newest()
                progress = Progress()
                if stop is not None:
                    StopAt.at = stop
                    progress = StopAt()
                fresh = replace(world, agreement=Agreement())  # as in a process of its own
                train(run_dir, attempt, fresh, folder / "data", progress)
                fresh.agreement.finish()
                world.barrier()


if __name__ == "__main__":
    main()
    leave()
