"""`kdcluster results`: the table, or the trials of a sweep, to the terminal or into a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_others
from kdcluster.commands.tabled import tabled
from kdcluster.errors import ConfigError, KdclusterError, NotFound
from kdcluster.files import write_output
from kdcluster.results import render
from kdcluster.terminal import can_show, show_text, width


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
    """Print or write it; with `strict`, leave with 1 where something is missing.

    Raises:
        NotFound: no experiment was named, and none has a run here.
    """
    style = "json" if as_json else style
    chosen = chosen if chosen.experiments else replace(chosen, experiments=chosen.started())
    if not chosen.experiments:
        raise NotFound(f"nothing was started yet in {chosen.root}; name an experiment")
    in_ascii = output is None and not can_show("±×αΔ–")
    room = None if output is not None else width()
    if of_sweep and per_seed:
        raise ConfigError("--per-seed does not go with --sweep, which has a row for each point")
    if of_sweep:
        from kdcluster.commands.trials import of_sweeps  # imports all that a search needs

        text, complete = of_sweeps(chosen, style, ascii=in_ascii, width=room)  # type: ignore[arg-type]
    else:
        made = chosen.plan()
        built = tabled(made, chosen.root, protocol)  # type: ignore[arg-type]
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
        say_others(made, chosen, "results")
        chosen.say_where_no_runs_are()
    if strict and not complete:
        sys.exit(1)
