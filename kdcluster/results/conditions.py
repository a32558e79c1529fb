"""Under what conditions runs were made that are no part of their settings and can move a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdcluster.experiment.config import Experiment
from kdcluster.results.measured import Measured
from kdcluster.run import ARMS, Arm
from kdcluster.wording import count


def _batchnorm(runs: Mapping[Arm, Sequence[Measured]]) -> list[tuple[int, int]]:
    """The different (distilled, baseline) numbers of images that BatchNorm saw at once, by seed."""
    baseline = {m.run.seed: m.trainer.get("batchnorm_batch") for m in runs["baseline"] if m.done}
    both = [(m.trainer.get("batchnorm_batch"), baseline.get(m.run.seed)) for m in runs["distilled"] if m.done]
    return sorted({(ours, theirs) for ours, theirs in both if ours and theirs and ours != theirs})


def _precisions(runs: Iterable[Measured]) -> set[str]:
    """In what the forward passes of runs were that left it to the device; before it was recorded, in bf16."""
    left = [m for m in runs if m.done and m.run.amp == "auto"]
    return {"float32" if m.trainer.get("amp") == "none" else "bf16" for m in left}


def unlike(role: Arm, runs: Mapping[Arm, Sequence[Measured]]) -> Iterator[str]:
    """How the runs of a role were made in another way than those that they are compared with."""
    if role == "distilled" and (differing := _batchnorm(runs)):
        counts = ", ".join(f"{d} (baseline: {b})" for d, b in differing)
        yield f"BatchNorm took its statistics over another number of images than the baseline's: {counts}"
    found = {other: _precisions(runs.get(other, ())) for other in ARMS}
    if len(set().union(*(found[other] for other in ARMS[: ARMS.index(role) + 1]))) > 1:
        each = ", ".join(f"{other} {' and '.join(sorted(kinds))}" for other, kinds in found.items() if kinds)
        yield f"the runs were not all trained in one precision: {each}"


def odd(runs: Mapping[Arm, Sequence[Measured]]) -> str:
    """The numbered note: how rows were made in another way than those that they are compared with, or nothing."""
    return "; ".join(dict.fromkeys(what for arm in ARMS for what in unlike(arm, runs)))


def unlabelled(distilled: Iterable[Measured]) -> list[int]:
    """How many images without labels these runs have seen, each number once."""
    return sorted({n for m in distilled if m.done and (n := m.trainer.get("images", {}).get("unlabelled"))})


def more_steps(runs: Mapping[Arm, Sequence[Measured]], config: Experiment) -> bool:
    """Whether distilled runs took more steps in as many epochs, because these have images without labels, too."""
    distilled, baseline = ({m.trainer.get("steps_per_epoch") for m in runs[role]} for role in ("distilled", "baseline"))
    known = config.train.steps is None and None not in distilled | baseline and bool(baseline)
    return known and config.data.labelled is not None and distilled != baseline


def local_batchnorm(done: Iterable[Measured]) -> list[str]:
    """Runs whose BatchNorm saw only a part of each batch, because nothing syncs it over CPU processes."""
    sizes = {}
    for m in done:
        images = m.trainer.get("batchnorm_batch")
        if images and m.run.train and images < m.run.train.batch_size:
            sizes[m.run.role] = f"{m.run.role} {images} of {m.run.train.batch_size}"
    return list(sizes.values())


def where(m: Measured) -> str:
    """The surroundings of a run that can move its last bits."""
    if not m.trainer.get("device"):
        return ""
    procs, threads = m.trainer.get("procs", 1), m.trainer.get("threads")
    each = f" with {count(threads, 'thread')} each" if threads else ""
    return f"{m.trainer['device']}, {count(procs, 'process')}{each}"
