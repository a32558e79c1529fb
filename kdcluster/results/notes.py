"""What has to be known of the rows of a results table, in words; and the gain that they are about."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdcluster.experiment.config import Experiment
from kdcluster.inputs import in_both
from kdcluster.results.conditions import local_batchnorm, more_steps, odd, unlabelled, where
from kdcluster.results.measured import TOP1, Measured, Protocol, selected_by
from kdcluster.results.paired import Paired, in_words
from kdcluster.results.spread import interval95, said
from kdcluster.run import Arm
from kdcluster.wording import count

NO_DISTILLATION = "no distillation"
"""The baseline in words."""


def gains(runs: Mapping[Arm, Sequence[Measured]], arm: Arm = "distilled") -> dict[int, float]:
    """Seed -> gain of the arm's run over the baseline, in percentage points."""
    return differences(runs[arm], runs["baseline"])


def differences(ours: Iterable[Measured], others: Iterable[Measured]) -> dict[int, float]:
    """Seed -> ours - the other's accuracy in percentage points, for the seeds that have both."""
    known = {m.run.seed: m.top1 for m in others if m.top1 is not None}
    return {m.run.seed: m.top1 - known[m.run.seed] for m in ours if m.top1 is not None and m.run.seed in known}


def notes(
    runs: Mapping[Arm, Sequence[Measured]],
    unique: Sequence[Measured],
    images: Mapping[int, Paired],
    config: Experiment,
    protocol: Protocol,
    trainer_code: str | None,
) -> Iterable[str]:
    """What a reader of the rows has to know, the numbered note first."""
    length, at = ("steps", "evaluation") if config.train.steps else ("epochs", "epoch")
    if unlike := odd(runs):
        yield f"[1] {unlike}"
    if protocol == "last":
        yield f"protocol last: {TOP1} of the last {at}"
    elif (selector := selected_by(config.data)) == TOP1:
        yield f"protocol best: each run counts with its best {TOP1}, so the {at} is selected on test"
    else:
        yield f"protocol best: each run counts with {TOP1} of its best {selector} {at}"
    yield from _labels(runs, config)
    if config.distill.alpha == 0 and runs["distilled"]:
        yield "α is 0: the distilled runs are the baseline runs, and the gain is 0 by construction"
    elif runs["distilled"]:
        seeds = list(gains(runs))
        if 0 < len(seeds) < max(len(runs["distilled"]), len(runs["baseline"])):
            yield f"the gain is over the seeds that both have: {', '.join(map(str, seeds))}"
        elif not seeds:
            yield "no gain: no seed has both a baseline and a distilled run"
        elif runs.get("tuned"):
            pass  # the one that had the same chance is what it is compared with
        elif interval := interval95(list(gains(runs).values())):
            yield f"with {len(seeds)} seeds the interval of the gain {said(interval, NO_DISTILLATION)}"
        else:
            yield "of one seed the gain has no interval, and says nothing of other seeds (--seeds 0,1,2)"
        yield from in_words(images, len(seeds))
        yield from _beyond(runs)
    done = [m for m in unique if m.done]
    students = [m for m in done if m.run.role != "teacher"]
    if (rising := sum(m.still_rising for m in students)) and 2 * rising >= len(students):
        yield f"{rising} of {count(len(students), 'student')} did best in the last {at}: more {length} may do better"
    yield from _computed(students)
    if skipped := max((m.trainer.get("images_skipped", 0) for m in done), default=0):
        data = config.data.path or config.data.name
        yield f"without {count(skipped, 'broken image')} of {data} (data.skip_broken)"
    if same := max((m.trainer.get("images_in_both", 0) for m in done), default=0):
        yield in_both(same)
    if places := sorted({text for m in done if (text := where(m))}):
        yield f"trained on {'; '.join(places)}"
    if partial := local_batchnorm(done):
        yield f"BatchNorm took its statistics over a part of each batch (images): {', '.join(partial)}"
    if trainer_code is not None:
        others = [m.run.id for m in done if m.trainer.get("trainer_code") not in (None, trainer_code)]
        if others:
            which = ", ".join(others) if len(others) < 4 else f"{len(others)} of {len(done)} runs"
            yield (
                f"the trainer's code has changed since these were made: {which}; their numbers stand as they were "
                "measured, and `kdcluster submit EXP --runs-dir NEW` makes them again with today's"
            )
    for m in done:
        yield from (f"event files of {m.run.id}: {what}" for what in m.damage)


def _beyond(runs: Mapping[Arm, Sequence[Measured]]) -> Iterator[str]:
    """What distillation brings beyond the other arms, which had the same chance or the same smoothness."""
    others: tuple[tuple[Arm, str], ...] = (("tuned", "the tuned baseline"), ("control", "label smoothing alone"))
    for arm, name in others:
        found = list(differences(runs["distilled"], runs.get(arm, ())).values())
        if not found:
            continue
        figures = f"distilled - {name} is {statistics.fmean(found):+z.2f} points"
        if interval := interval95(found):
            low, high = interval
            yield f"{figures} over {len(found)} seeds; its interval [{low:z.1f}, {high:z.1f}] {said(interval, name)}"
        else:
            yield f"{figures} of one seed, which says nothing of others"


def _labels(runs: Mapping[Arm, Sequence[Measured]], config: Experiment) -> Iterable[str]:
    """What the rows share and what they do not, where some training images have no labels."""
    if config.data.labelled is None or not runs["distilled"] or config.distill.alpha == 0:
        return
    without = unlabelled(runs["distilled"])
    more = f"{' or '.join(f'{n:,}' for n in without)} images" if without else "images"
    yield f"distilled: the same labels as teacher and baseline ({config.data.labelled:,}), and {more} without"
    if more_steps(runs, config):
        yield "distilled took more steps than baseline, whose epochs have fewer images: train.steps gives both as many"


def _computed(students: Sequence[Measured]) -> Iterator[str]:
    """That students ran the teacher themselves although they had a store: it cost time, and no number."""
    asked = [m for m in students if m.run.store]
    if missed := sum(m.views.get("computed", 0) for m in asked):
        epochs = missed + sum(m.views.get("read", 0) for m in asked)
        yield (
            f"the teacher's logits were computed along the way in {missed} of {count(epochs, 'epoch')} of the "
            f"distilled runs, where their store had none: the same numbers, more time"
        )
