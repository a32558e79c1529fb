"""What fresh seeds say of a sweep's winner: the runs that try it again, their table, and the verdict in words.

Accuracies are test/top1 in percent, differences in percentage points.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcluster.launch.status import statuses
from kdcluster.plan import Plan
from kdcluster.results import render, table
from kdcluster.results.measured import measure
from kdcluster.results.notes import NO_DISTILLATION, differences
from kdcluster.results.spread import compared, interval95
from kdcluster.run import NAMED, Arm
from kdcluster.runs import RunDir
from kdcluster.sweep.points import FRESH, Point, Space
from kdcluster.wording import count

OWN = "the file's own settings"
TUNED = "tuned baseline"
BASELINES: tuple[Arm, ...] = ("baseline", "tuned")


@dataclass(frozen=True)
class Verdict:
    """Whether a winner holds up, with the figures in words."""

    holds: bool
    """It is better than the baseline, where one was tuned than the better of the two, and than the file's own
    settings."""
    words: tuple[str, ...]


@dataclass(frozen=True)
class Confirmed:
    """A confirmation as far as it is; without a verdict until every run of it is done."""

    table: table.Table
    verdict: Verdict | None

    @property
    def seeds(self) -> int:
        """How many it has."""
        return max(row.n_expected for row in self.table.experiments[-1].rows)

    @property
    def document(self) -> dict[str, Any]:
        """In `results --sweep --format json`."""
        said = self.verdict
        return {"table": render.document(self.table), "holds": said and said.holds, "words": said and list(said.words)}


def arms(made: Plan) -> list[Point]:
    """The students of a confirmation, each with its arm and seed."""
    own, winner = made.wanted.values()
    named = {"baseline": own["baseline"], OWN: own["distilled"], "winner": winner["distilled"]}
    named |= {TUNED: winner.get("tuned", ()), NAMED["control"]: own["control"]}
    both: tuple[Arm, ...] = ("baseline", "control")
    for arm in both:
        if winner[arm] != own[arm]:  # another learning rate, say
            named[f"winner's {NAMED.get(arm, arm)}"] = winner[arm]
    found = {run.id: [arm for arm, ids in named.items() if run.id in ids] for run in made.runs}
    return [Point({"arm": " and ".join(found[run.id]), "seed": run.seed}, (run,)) for run in made.runs if found[run.id]]


def begun(searched: Space, best: Point, root: Path, tuned: Point | None = None) -> Plan | None:
    """The confirmation of a point with as many seeds as have begun; None: there is none. `tuned`: of the baseline."""
    made, seeds = None, 1
    while True:
        more = searched.confirmation(best, seeds, tuned)
        newest = [one for one in arms(more) if one.values["seed"] == FRESH + seeds - 1]
        if not any((root / one.ids[0]).exists() for one in newest):
            return made
        made, seeds = more, seeds + 1


def confirmed(made: Plan, root: Path) -> Confirmed:
    """What has come of a confirmation, from its run directories."""
    found = statuses(made, root)
    states = {i: (status.state, status.reason, str(status.log) if status.log else None) for i, status in found.items()}
    built = table.build(made, root, states=states)
    return Confirmed(built, _verdict(made, root) if built.complete else None)


def _verdict(made: Plan, root: Path) -> Verdict:
    own, winner = made.wanted.values()
    measured = {one.ids[0]: measure(one.runs[0], RunDir(root, one.ids[0]), "best") for one in arms(made)}
    ours = [measured[run_id] for run_id in winner["distilled"]]
    holds, words = True, []
    others = [(NO_DISTILLATION, winner["baseline"])]
    if tuned := winner.get("tuned"):  # on other images; a search may have ended at something worse
        top1 = {arm: statistics.fmean(measured[run_id].top1 or 0.0 for run_id in winner[arm]) for arm in BASELINES}
        others = [(f"the {TUNED}", tuned), *(others if top1["baseline"] > top1["tuned"] else ())]
    for other, ids in (*others, (OWN, own["distilled"])):
        if ids == winner["distilled"]:
            holds = False
            words.append(f"the winner is {other}")
            continue
        theirs = [measured[run_id] for run_id in ids]
        gains = list(differences(ours, theirs).values())
        mine, their = (statistics.fmean(one.top1 or 0.0 for one in runs) for runs in (ours, theirs))
        figures = f"{mine:.2f} % against {their:.2f} %, {statistics.fmean(gains):+z.2f} points"
        if interval := interval95(gains):
            low, high = interval
            holds = holds and low > 0
            words.append(f"the winner is {compared(interval, other)}: {figures} [{low:z.2f}, {high:z.2f}]")
        else:
            holds = False
            words.append(f"nothing tells the winner from {other}: {figures}, of one seed")
    words[0] = f"on {count(len(ours), 'fresh seed')}, {words[0]}"
    if len(ours) > 1:
        words.append(
            "in brackets the 95 % t interval of the difference, by seed: while it holds zero, nothing is shown"
        )
    return Verdict(holds, tuple(words))
