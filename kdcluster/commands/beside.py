"""What a run's accuracy is held against in its model card: baseline, teacher, and the table of its experiment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.errors import KdclusterError
from kdcluster.results import render
from kdcluster.results.table import Table
from kdcluster.run import RECIPES, Run
from kdcluster.runs import RunDir
from kdcluster.tabled import tabled

_TALK = re.compile(r" \(--[^()]*\)|; (?:[\w ]* )?--[^;]*")
"""What a note says of options of the command line."""


def models(run: Run, root: Path) -> list[list[str]]:
    """Headings, and a row for the run, for the same model without its teacher, and for the teacher, where done."""
    metrics = ["top-1", "top-5"][: 2 if run.num_classes > 5 else 1]
    found = [["model", *metrics, "parameters"]]
    named = [("this model", run.id)]
    if run.distill and run.teacher:
        teacher = run.teacher.model.model.partition(".")[0]
        named += [
            ("the same without a teacher (baseline)", _baseline(run)),
            (f"its teacher, {teacher}", run.teacher.id),
        ]
    for name, run_id in named:
        if result := RunDir(root, run_id).result():
            percents = [result["best"].get(f"test/{metric.replace('-', '')}") for metric in metrics]
            shown = ["–" if value is None else f"{value:.2f} %" for value in percents]
            found.append([name, *shown, f"{result['params']:,}"])
    return found


def _baseline(run: Run) -> str:
    """The id of the run with the same seed and settings and the labels alone."""
    own = {"role": "baseline", "recipe": RECIPES["baseline"], "distill": None, "teacher": None, "store": None}
    name = run.id.partition("-")[2][: -len("12345678")]
    return f"baseline-{name}{run.model_copy(update=own).digest()[:8]}"


def table_of(place: RunDir, chosen: Chosen) -> Table | None:
    """The table of an experiment that a run belongs to, as it was submitted, or as its file is today."""
    words = place.submitted()
    given = [(option, value) for option, value in pairwise(words) if option.startswith("--")]
    named = [word for before, word in pairwise(("", *words)) if not before.startswith("--") and word[:2] != "--"]
    sets = tuple(value for option, value in given if option == "--set")
    seeds = next((value for option, value in given if option == "--seeds"), None)
    submitted = replace(chosen, experiments=(), names=(), overrides=sets, seeds=seeds)
    for name in dict.fromkeys([*named, *place.experiments()]):  # as it was typed, it may be a path
        for one in (submitted, chosen):
            with suppress(KdclusterError):  # its file is gone, broken, or another one
                made = one.plan(name)
                if made.experiments_of(place.id):
                    return tabled(made, place.root)
    return None


def lines(table: Table) -> Iterator[str]:
    """A table in Markdown for readers who have no kdcluster, nor the folders of whoever made it."""
    blocks = tuple(
        replace(
            one,
            notes=tuple(_TALK.sub("", note) for note in one.notes),
            problems=tuple(replace(problem, log=None) for problem in one.problems),
        )
        for one in table.experiments
    )
    yield from render.render(replace(table, experiments=blocks), "md").splitlines()[2:]  # without its heading
