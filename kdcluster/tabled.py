"""The results table of a plan, with the states of what is not done."""

from __future__ import annotations

from pathlib import Path

from kdcluster.files import trainer_code
from kdcluster.launch.status import statuses
from kdcluster.plan import Plan
from kdcluster.results.measured import Protocol, is_done
from kdcluster.results.table import Table, build
from kdcluster.runs import RunDir


def tabled(made: Plan, root: Path, protocol: Protocol = "best") -> Table:
    """`table.build`, with all that only the launching half knows."""
    # before the numbers are read: what ends meanwhile is done for them, too
    rest = made.cut({run.id for run in made.runs if not is_done(RunDir(root, run.id))})
    states = {
        run_id: (status.state, status.reason, str(status.log) if status.log else None)
        for run_id, status in statuses(rest, root).items()
    }
    return build(made, root, protocol, states=states, trainer_code=trainer_code())
