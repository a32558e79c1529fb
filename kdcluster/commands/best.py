"""The distilled run of an experiment with the best accuracy, which several commands take with `--best`."""

from __future__ import annotations

from collections.abc import Sequence

from kdcluster.commands.arguments import Chosen
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.plan import Plan
from kdcluster.results.measured import selected_by
from kdcluster.runs import RunDir
from kdcluster.wording import count


def distilled(chosen: Chosen) -> tuple[Plan, list[RunDir]]:
    """The plan of the one experiment that is named, and its distilled runs, by seed.

    Raises:
        ConfigError: it has none.
    """
    made = chosen.plan()
    ((name, wanted),) = made.wanted.items()
    if not (ids := wanted.get("distilled")):
        raise ConfigError(f"{name} has no distilled run with these settings; name a run instead")
    return made, [RunDir(chosen.root, run_id) for run_id in ids]


def best_of(made: Plan, places: Sequence[RunDir]) -> tuple[RunDir, str]:
    """The best of the distilled runs of one experiment that are done, and how it was chosen: by the rule by which the
    table chooses epochs.

    Raises:
        KdclusterError: none is done.
    """
    results = {place: result for place in places if (result := place.result())}
    if not results:
        (name,) = made.wanted
        raise KdclusterError(f"--best: no distilled run of {name} is done")
    rule = selected_by(made[places[0].id].data)
    place = max(results, key=lambda one: results[one]["best"][rule])  # the first of equals
    words = f"the best of {count(len(results), 'seed')} by {rule}, {results[place]['best'][rule]:.2f} %"
    if rule.startswith("test"):
        words += ": selected on the test set, so this is the largest of them and not what to expect"
    return place, words


def refuse_for_a_run(chosen: Chosen, *, best: bool) -> None:
    """Refuse what only an experiment has.

    Raises:
        ConfigError: it was given for a run.
    """
    if best:
        raise ConfigError("--best chooses among the seeds of an experiment; a run is one of them")
    if chosen.settings:
        raise ConfigError("--set and --seeds are of an experiment; a run has its settings")
