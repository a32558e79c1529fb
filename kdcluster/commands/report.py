"""`kdcluster report` and `kdcluster plot`: a page to show, and a figure for a paper."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from kdcluster.commands import outputs
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_others
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.plan import Plan
from kdcluster.report import captions, draw, pictures
from kdcluster.report.facts import Facts, gather
from kdcluster.report.page import page
from kdcluster.results import latex
from kdcluster.terminal import say, show


def report(chosen: Chosen, output: Path | None, *, internal: bool) -> None:
    """Write the page, and say where; `internal`: also what is not for others.

    Raises:
        ConfigError: the file's end is not that of a page.
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
    if internal:
        say("it names hosts and folders, and shows what was not committed: for yourself and your group")
    say_others(made, chosen, "report")
    chosen.say_where_no_runs_are()


def plot(chosen: Chosen, experiment: str, output: Path, picture: str, width_mm: float) -> None:
    """Write one picture, and say where, and what a caption may say; for a .pdf as LaTeX has it.

    Raises:
        ConfigError: the file's name says no format that there is.
        KdclusterError: matplotlib is missing, there is nothing to draw yet, or the file cannot be written.
    """
    if output.suffix.lower() not in draw.FORMATS:
        raise ConfigError(f"--output {output}: its end says no format; give it one of {', '.join(draw.FORMATS)}")
    draw.matplotlib()
    _, (found,) = _gathered(chosen, (experiment,))
    drawn = pictures.PICTURES[picture]
    if not drawn.has(found):
        makes = {"latencies": "export --benchmark measures them", "sweep": "sweep makes its trials"}
        hint = makes.get(picture.partition("-")[0], "status shows its runs")
        raise KdclusterError(f"{experiment} has nothing for the picture {picture} yet: kdcluster {hint}")
    _write(output, draw.to_file(drawn.draw, found, draw.paper(width_mm), output, drawn.height(found)))
    text = captions.caption(picture, found)
    say(f"caption: {latex.escaped(text) if output.suffix.lower() == '.pdf' else text}")


def _gathered(chosen: Chosen, experiments: Iterable[str]) -> tuple[Plan, list[Facts]]:
    names = tuple(dict.fromkeys(experiments))
    made = chosen.plan(*names)  # all that is wrong with files and options, at once
    again = {name: shlex.split(f"{chosen.again(name)}{chosen.where}") for name in names}
    return made, [gather(chosen.load(name), chosen.settings, chosen.root, chosen.data, again[name]) for name in names]


def _write(target: Path, content: str | bytes) -> None:
    outputs.write(target, content)
    show(str(target))
