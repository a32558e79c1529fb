"""`kdcluster results --sweep`: the trials of the named experiments."""

from __future__ import annotations

from dataclasses import replace

from kdcluster import records
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.sweep import recommended
from kdcluster.errors import ConfigError, NotFound
from kdcluster.results.index import Index
from kdcluster.results.render import DATA, Format
from kdcluster.runs import run_dirs
from kdcluster.states import State
from kdcluster.sweep import report, scored
from kdcluster.sweep.confirmation import begun, confirmed
from kdcluster.sweep.points import Space
from kdcluster.terminal import say
from kdcluster.wording import quoted


def of_sweeps(chosen: Chosen, style: Format, *, ascii: bool, width: int | None) -> tuple[str, bool]:
    """The trials of the named experiments from the run directories, and whether each was done or stopped early.

    Raises:
        NotFound: there is none.
    """
    if style in DATA and len(chosen.experiments) > 1:
        raise ConfigError(f"--sweep --format {style} takes one experiment at a time")
    if chosen.roles is not None:
        raise ConfigError("--role does not go with --sweep: its trials are distilled students")
    for one in run_dirs(chosen.root):
        if what := records.problem(f"{one.path}/trials.json", one.path):
            say(f"{one.id} is left out: {what}")
    texts, missing, complete = [], [], True
    for name in chosen.experiments:
        loaded = chosen.load(name)
        searched = Space(loaded, tuple(chosen.settings), allow_teacher=True)
        index = Index(chosen.root)
        found = scored.tried(searched.recorded(chosen.root), loaded.config.sweep.metric, chosen.root, index)
        index.save()  # before the confirmation's table reads it
        if not found:
            missing.append(f"no trial of {name} in {chosen.root} with today's settings: kdcluster sweep {quoted(name)}")
            continue
        of_baseline, tuned = scored.of_baseline(searched, chosen.root, index)
        best = scored.best(found)
        made = begun(searched, best.point, chosen.root, tuned) if best else None
        after = confirmed(made, chosen.root) if made else None
        shown = report.render(searched, found, style, after, of_baseline=of_baseline, ascii=ascii, width=width)
        texts.append(shown)
        if best and after:
            alone = replace(chosen, experiments=(name,), backend="")
            again = f"kdcluster sweep {alone.again()}{' --both' * bool(of_baseline)}{alone.where}"
            say(recommended(alone, best.point, after, again))
        complete = complete and all(set(one.states) <= {State.DONE, State.STOPPED} for one in found)
    if not texts:
        raise NotFound("; ".join(missing))
    for why in missing:
        say(why)
    return "\n".join(texts), complete
