"""`kdcluster results`: the table, or the trials of a sweep, to the terminal or into a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcluster.commands import outputs
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import say_others
from kdcluster.errors import ConfigError, NotFound
from kdcluster.results import render
from kdcluster.results.view import View, names_in
from kdcluster.tabled import tabled
from kdcluster.terminal import can_show, say, show_text, width


def results(
    chosen: Chosen,
    style: Any,
    protocol: Any,
    output: Path | None,
    strict: bool,
    per_seed: bool,
    columns: str,
    sort: str | None,
    together: bool,
    compare: tuple[Path, Path] | None,
    of_sweep: bool,
    as_json: bool,
) -> None:
    """Print or write it; with `strict`, leave with 1 where something is missing.

    Raises:
        NotFound: no experiment was named, and none has a run here.
        ConfigError: options that do not go together; a file's end that says another format.
    """
    style = outputs.style_of(output, "json" if as_json else style, outputs.TABLES)
    in_ascii = output is None and not can_show("±×αΔ–")
    view = View(names_in(columns), sort, together)
    room = None if output is not None else width()
    if compare and (per_seed or strict or of_sweep or view != View()):
        raise ConfigError("--compare goes with --format, --protocol, --role and --output alone")
    if of_sweep and (per_seed or view != View()):
        options = "--per-seed, --columns, --sort and --together do"
        raise ConfigError(f"{options} not go with --sweep, which has a row for each point")
    if compare:
        from kdcluster.commands.compare import compared

        text = compared(chosen, compare, style, protocol, ascii=in_ascii, width=room)
        return _give(text, output)
    chosen = chosen if chosen.experiments else replace(chosen, experiments=chosen.started())
    if not chosen.experiments:
        raise NotFound(f"nothing was started yet in {chosen.root}; name an experiment")
    if of_sweep:
        from kdcluster.commands.trials import of_sweeps  # imports all that a search needs

        text, complete = of_sweeps(chosen, style, ascii=in_ascii, width=room)
        _give(text, output)
    else:
        made = chosen.plan()
        found = tabled(made, chosen.root, protocol)
        complete = found.complete
        text = render.render(found, style, ascii=in_ascii, width=room, per_seed=per_seed, view=view)
        _give(text, output)
        say_others(made, chosen, "results")
        chosen.say_where_no_runs_are()
    if strict and not complete:
        sys.exit(1)


def _give(text: str, output: Path | None) -> None:
    if output is None:
        return show_text(text)
    outputs.write(output, text)
    say(f"written: {output}")
