"""`kdcluster report` and `kdcluster plot`: a page to show, and a figure for a paper."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from kdcluster.commands import outputs
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_others
from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.plan import Plan
from kdcluster.report import captions, draw, pictures
from kdcluster.report.facts import Facts, gather
from kdcluster.report.page import page
from kdcluster.results import latex
from kdcluster.runs import run_dirs
from kdcluster.states import State
from kdcluster.terminal import say, show
from kdcluster.wording import count


def report(chosen: Chosen, output: Path | None, *, internal: bool) -> None:
    """Write the page, and say where; `internal`: also what is not for others.

    Raises:
        ConfigError: the file's end is not that of a page.
        NotFound: no run of an experiment was started here.
        KdclusterError: matplotlib is missing, or the file cannot be written.
    """
    if output and output.suffix.lower() not in ("", ".html", ".htm"):
        plotted = ", ".join(draw.FORMATS)
        raise ConfigError(
            f"--output {output}: a report is a page, .html; kdcluster plot draws its pictures as {plotted}"
        )
    draw.matplotlib()
    made, found = _gathered(chosen, chosen.experiments)
    target = output or Path(f"{'-'.join(one.name for one in found)}-report.html")
    _write(target, page(found, time.strftime("%Y-%m-%d %H:%M"), internal=internal))
    for one in found:
        if left := sum(problem.state != State.DONE for problem in one.results.problems):
            what = f"{count(left, 'run')} of {one.name} {'is' if left == 1 else 'are'} not done, and in no mean"
            say(f"{what}: kdcluster status {shlex.join(one.again)}")
    if internal:
        say("it names hosts and folders, and shows what was not committed: for yourself and your group")
    say_others(made, chosen, "report")


def plot(chosen: Chosen, experiment: str, output: Path, picture: str, width_mm: float, y_min: float | None) -> None:
    """Write one picture, and say where, and what a caption may say; for a .pdf as LaTeX has it.

    Raises:
        ConfigError: the file's name says no format that there is; nothing is as high as `y_min`, or nothing heeds it.
        NotFound: no run of the experiment was started here.
        KdclusterError: matplotlib is missing, there is nothing to draw yet, or the file cannot be written.
    """
    if output.suffix.lower() not in draw.FORMATS:
        raise ConfigError(f"--output {output}: its end says no format; give it one of {', '.join(draw.FORMATS)}")
    drawn = pictures.PICTURES[picture]
    if y_min is not None and drawn.highest is None:
        heed = ", ".join(name for name, one in pictures.PICTURES.items() if one.highest)
        raise ConfigError(f"--y-min is of --picture {heed}; {picture} has no axis for it")
    draw.matplotlib()
    _, (found,) = _gathered(chosen, (experiment,))
    if not drawn.has(found):
        makes = {"latencies": "export --benchmark measures them", "sweep": "sweep makes its trials"}
        hint = makes.get(picture.partition("-")[0], "status shows its runs")
        raise KdclusterError(f"{experiment} has nothing for the picture {picture} yet: kdcluster {hint}")
    if y_min is not None and drawn.highest and y_min >= (highest := drawn.highest(found)):
        raise ConfigError(f"--y-min {y_min:g}: no curve is higher than {highest:.2f} %")
    _write(output, draw.to_file(drawn.draw, found, draw.paper(width_mm, y_min), output, drawn.height(found)))
    text = captions.caption(picture, found)
    if y_min is not None:
        text += f" The axis begins at {y_min:g}%."
    say(f"caption: {latex.escaped(text) if output.suffix.lower() == '.pdf' else text}")


def _gathered(chosen: Chosen, experiments: Iterable[str]) -> tuple[Plan, list[Facts]]:
    names = tuple(dict.fromkeys(experiments))
    made = chosen.plan(*names)  # all that is wrong with files and options, at once
    again = {name: f"{chosen.again(name)}{chosen.where}" for name in names}
    loaded = {name: chosen.load(name) for name in names}
    for name, one in loaded.items():
        if not _was_begun(made, one.name, chosen.root):
            say_others(made, chosen, "status")
            where = "--runs-dir or KDCLUSTER_RUNS_DIR names another directory"
            raise NotFound(f"no run of {name} was started in {chosen.root}: kdcluster submit {again[name]}; {where}")
    return made, [
        gather(one, chosen.settings, chosen.root, chosen.data, shlex.split(again[name])) for name, one in loaded.items()
    ]


def _was_begun(made: Plan, experiment: str, root: Path) -> bool:
    """Whether there is anything of an experiment as it is set here, or of its sweep."""
    own = {run_id for ids in made.wanted[experiment].values() for run_id in ids}
    return any(one.id in own or one.trials_of(experiment) for one in run_dirs(root))


def _write(target: Path, content: str | bytes) -> None:
    outputs.write(target, content)
    show(str(target))
