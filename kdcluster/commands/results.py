"""`kdcluster results`: the table, or the trials of a sweep, to the terminal or into a file."""

from __future__ import annotations

import sys
from pathlib import Path

from kdcluster.arguments import Chosen
from kdcluster.commands.sweep import results_of
from kdcluster.errors import KdclusterError
from kdcluster.files import trainer_code, write_aside
from kdcluster.launch.status import statuses
from kdcluster.results import render, table
from kdcluster.terminal import can_show, show


def results(
    chosen: Chosen, style: str, protocol: str, output: Path | None, strict: bool, of_sweep: bool, as_json: bool
) -> None:
    """Print or write it; with `strict`, leave with 1 where something is missing."""
    style = "json" if as_json else style
    in_ascii = output is None and not can_show("±×αΔ–")
    if of_sweep:
        text, complete = results_of(chosen, style, ascii=in_ascii)
    else:
        made, root = chosen.plan(), chosen.root
        states = {
            run_id: (status.state, status.reason, str(status.log) if status.log else None)
            for run_id, status in statuses(made, root).items()
        }
        built = table.build(made, root, protocol, states=states, trainer_code=trainer_code())  # type: ignore[arg-type]
        text, complete = render.render(built, style, ascii=in_ascii), built.complete  # type: ignore[arg-type]
    if output is not None:
        try:
            write_aside(output, text)
        except OSError as error:
            raise KdclusterError(f"cannot write {output}: {error.strerror}; give another --output") from None
    else:
        show(text, nl=False)
    if strict and not complete:
        sys.exit(1)
