"""`kdcluster results`: the table, or the trials of a sweep, to the terminal or into a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from kdcluster import records
from kdcluster.columns import in_ascii
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.sweep import recommended
from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.files import trainer_code, write_output
from kdcluster.launch.status import statuses
from kdcluster.results import render, table
from kdcluster.runs import run_dirs
from kdcluster.states import State
from kdcluster.sweep import report
from kdcluster.sweep.confirmation import begun, confirmed
from kdcluster.sweep.points import Space
from kdcluster.terminal import can_show, say, show_text, width
from kdcluster.wording import quoted


def results(
    chosen: Chosen,
    style: str,
    protocol: str,
    output: Path | None,
    strict: bool,
    per_seed: bool,
    of_sweep: bool,
    as_json: bool,
) -> None:
    """Print or write it; with `strict`, leave with 1 where something is missing."""
    style = "json" if as_json else style
    in_ascii = output is None and not can_show("±×αΔ–")
    if of_sweep and per_seed:
        raise ConfigError("--per-seed does not go with --sweep, which has a row for each point")
    if of_sweep:
        text, complete = _of_sweeps(chosen, style, ascii=in_ascii)  # type: ignore[arg-type]
    else:
        made, root = chosen.plan(), chosen.root
        states = {
            run_id: (status.state, status.reason, str(status.log) if status.log else None)
            for run_id, status in statuses(made, root).items()
        }
        built = table.build(made, root, protocol, states=states, trainer_code=trainer_code())  # type: ignore[arg-type]
        room = None if output is not None else width()
        text = render.render(built, style, ascii=in_ascii, width=room, per_seed=per_seed)  # type: ignore[arg-type]
        complete = built.complete
    if output is not None:
        try:
            write_output(output, text)
        except OSError as error:
            raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    else:
        show_text(text)
    if not of_sweep:
        chosen.say_where_no_runs_are()
    if strict and not complete:
        sys.exit(1)


def _of_sweeps(chosen: Chosen, style: render.Format, *, ascii: bool) -> tuple[str, bool]:
    """The trials of the named experiments from the run directories, and whether each was done or stopped early.

    Raises:
        NotFound: there is none.
    """
    if style in ("json", "csv") and len(chosen.experiments) > 1:
        raise ConfigError(f"--sweep --format {style} takes one experiment at a time")
    if chosen.roles is not None:
        raise ConfigError("--role does not go with --sweep: its trials are distilled students")
    for one in run_dirs(chosen.root):
        if what := records.problem(one.path / "trials.json", one.path):
            say(f"{one.id} is left out: {what}")
    texts, missing, complete = [], [], True
    for name in chosen.experiments:
        loaded = chosen.load(name)
        searched = Space(loaded, tuple(chosen.settings), allow_teacher=True)
        found = report.tried(searched.recorded(chosen.root), loaded.config.sweep.metric, chosen.root)
        if not found:
            missing.append(f"no trial of {name} in {chosen.root} with today's settings: kdcluster sweep {quoted(name)}")
            continue
        best = report.best(found)
        made = begun(searched, best.point, chosen.root) if best else None
        after = confirmed(made, chosen.root) if made else None
        texts.append(report.render(searched, found, style, after))
        if best and after:
            alone = replace(chosen, experiments=(name,), backend="")
            again = f"kdcluster sweep {alone.again()}{alone.where}"
            say(recommended(alone, best.point, after, again))
        complete = complete and all(set(one.states) <= {State.DONE, State.STOPPED} for one in found)
    if not texts:
        raise NotFound("; ".join(missing))
    for why in missing:
        say(why)
    text = "\n".join(texts)
    return (in_ascii(text) if ascii else text), complete
