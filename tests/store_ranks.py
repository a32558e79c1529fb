"""What each rank of test_store_ranks.py does: a store that is stopped again and again, and students of it.

`torchrun tests/store_ranks.py FOLDER DATA AUGMENT`: below FOLDER `runs` gets the store and a student that reads it,
`computed` a student that has none, `mixed` one whose second view is missing and that is stopped and resumed in the
middle of an epoch.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcluster.runs import RunDir
from kdcluster.train import storing, teacher_logits
from kdcluster.train.distributed import Agreement, World, join, leave
from kdcluster.train.trainer import Progress, train
from tests import tiny
from tests.resume_ranks import StopAt

CHANGES: dict[str, dict[str, Any]] = {
    "teacher": {**tiny.CNN, "train": {"epochs": 1}},
    "train": {"epochs": 3, "batch_size": 16, "lr": 1e-2, "amp": "none", "micro_batch": 3},
}
AUGMENT: dict[str, dict[str, Any]] = {
    "moved": {
        "distill": {"loss": "dkd", "standardise": True, "temperature": 2.0},
        "train": {**CHANGES["train"], "label_loss": "bce"},
    },
    "resampled": {
        "data.augment": {
            "crop": {"scale": [0.2, 1]},
            "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
            "policy": "rand",
            "erase": {},
            "mixup": {"share": 0.4},
            "cutmix": {"share": 0.4},
        },
        "teacher": {**CHANGES["teacher"], "image_size": 24},
        "distill": {"loss": "dist"},
        "train": {**CHANGES["train"], "micro_batch": None},
    },
}
"""What is changed beside: the stored pixels are moved, or resampled to another size for each of the two, and mixed; the
losses."""
STOPS = 3
"""How often the store is stopped, before it has begun."""
ROUND = 16


def changes(augment: str) -> dict[str, Any]:
    return {**CHANGES, **AUGMENT[augment]}


def main() -> None:
    folder, data_dir, augment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for module in (teacher_logits, storing):
        module.ROWS = ROUND
    with join("cpu", 1) as world:
        own = folder / f"rank{world.rank}"
        own.mkdir()
        store, student = (tiny.make_run(own, role, changes(augment)) for role in ("teacher-logits", "distilled"))
        assert store.teacher

        def attempt(root: Path, run_id: str, progress: Progress) -> None:
            if world.rank == 0:
                tiny.prepare(root, store if run_id == store.id else student).start_attempt({})
            world.barrier()
            run_dir = RunDir(root, run_id)
            fresh: World = replace(world, agreement=Agreement() if world.size > 1 else None)  # as in its own process
            train(run_dir, run_dir.newest(), fresh, data_dir, progress)
            if fresh.agreement:
                fresh.agreement.finish()
            world.barrier()

        for stop in (*(True,) * STOPS, False):
            attempt(folder / "runs", store.id, Progress(stop=stop and world.rank == world.size - 1))
        attempt(folder / "runs", student.id, Progress())
        if world.rank == 0:
            for name in ("computed", "mixed"):
                shutil.copytree(folder / "runs" / store.teacher.id, folder / name / store.teacher.id)
            shutil.copytree(folder / "runs" / store.id, folder / "mixed" / store.id)
            (folder / "mixed" / store.id / "logits" / "view-00001.npy").unlink()
        attempt(folder / "computed", student.id, Progress())
        StopAt.at = 6
        for progress in (StopAt(), Progress()):
            attempt(folder / "mixed", student.id, progress)


if __name__ == "__main__":
    main()
    leave()
