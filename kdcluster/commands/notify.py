"""`--notify COMMAND`: a command of the user's own that is told when runs have ended, or one has failed.

It gets a summary as JSON on its standard input. Which one it is says the command line, or the file `notify` in the
user's configuration folder, and nothing that others may have written: it is run as this user.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.progress import follow
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.experiment.config import Experiment
from kdcluster.files import config_folder
from kdcluster.launch.status import Status, statuses
from kdcluster.ownership import foreign, own_text
from kdcluster.plan import Plan
from kdcluster.results.render import render
from kdcluster.runs import RunDir
from kdcluster.states import State
from kdcluster.tabled import tabled
from kdcluster.terminal import say
from kdcluster.wording import count, one_line

SCHEMA = "kdcluster.notify/1"
TIMEOUT_S = 60.0
"""How long the command may take."""


def wanted(option: str | None) -> str:
    """The command, or nothing: what was typed, else what the user's own file says, unless others may write that."""
    if option is not None:
        return option
    path = config_folder() / "notify"
    try:
        if why := foreign(path.parent):
            raise ConfigError(f"{why}; chmod -R go-w {path.parent} if all in it is yours")
        return own_text(path).strip()
    except FileNotFoundError:
        return ""
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        say(f"{path} is not run, and nobody will be told: {error}")
        return ""


def after(made: Plan, root: Path, command: str) -> dict[str, Any]:
    """What `Backend.tell` takes: this module, and the plan as it is now, whatever becomes of its files."""
    plan = {
        "runs": [run.id for run in made.runs],
        "wanted": made.wanted,
        "experiments": {name: config.model_dump_json(exclude_unset=True) for name, config in made.experiments.items()},
    }
    argv = [sys.executable, "-P", "-m", "kdcluster.commands.notify"]
    return {"argv": argv, "given": {"command": command, "root": str(root), "plan": plan}}


def main() -> None:
    """In a process of its own: wait for what others are still at, and tell."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whoever started this waits for signals
    given = json.load(sys.stdin)
    root, plan, event = Path(given["root"]), given["plan"], given["event"]
    experiments = {name: Experiment.model_validate_json(text) for name, text in plan["experiments"].items()}
    made = Plan(tuple(RunDir(root, run_id).known()[0] for run_id in plan["runs"]), plan["wanted"], experiments)
    with click.Context(click.Command("notify"), obj={"quiet": False}):  # where `say` looks
        found = follow(made, root, sys.stdout) if event == "ended" else statuses(made, root)
        tell(given["command"], lambda: of_runs(made, root, found, event))


def tell(command: str, summary: Callable[[], Mapping[str, Any]]) -> None:
    """Run a command with a summary on its standard input; whatever goes wrong is said, and nothing else comes of it."""
    try:
        with tempfile.TemporaryFile() as given:  # it need not read it
            given.write(json.dumps(summary(), indent=1).encode())
            given.seek(0)
            process = subprocess.Popen(command, shell=True, stdin=given, stdout=2, stderr=2, start_new_session=True)
    except (KdclusterError, OSError) as error:
        return say(f"nobody was told: {error}")
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return say(f"the command of --notify was ended: it took more than {TIMEOUT_S:.0f} s")
    if process.returncode:
        say(f"the command of --notify failed: exit code {process.returncode}")


def of_runs(made: Plan, root: Path, found: Mapping[str, Status], event: str) -> dict[str, Any]:
    """What became of the runs of a plan."""
    table = tabled(made, root)
    rows = [{"experiment": one.name, **asdict(row)} for one in table.experiments for row in one.rows]
    problems = [asdict(problem) for one in table.experiments for problem in one.problems]
    known = {problem["run"] for problem in problems}
    for run_id, status in found.items():
        if status.state != State.DONE and run_id not in known:
            log = str(status.log) if status.log else None
            problems.append({"run": run_id, "state": status.state, "reason": status.reason, "log": log})
    states = [status.state for status in found.values()]
    named = ", ".join(made.wanted) or count(len(found), "run")
    text = render(table) if rows else "".join(f"{p['run']}: {p['state']}: {p['reason']}\n" for p in problems)
    return _document("submit", event, list(made.wanted), named, states, rows, problems, text, root)


def of_sweep(chosen: Chosen, experiment: str, option: str | None, sweep: Callable[[], bool]) -> None:
    """Sweep, and tell what came of it; `sweep` says whether it has come to its end here.

    Not where it was interrupted: whoever did that knows.
    """
    command = wanted(option)

    def tell_of(event: str) -> None:
        if command:
            tell(command, lambda: _of_trials(chosen, experiment, event))

    try:
        if sweep():
            tell_of("ended")
        elif option:
            say(
                f"a job cannot be told of --notify: write the command into {config_folder() / 'notify'}, where it looks"
            )
    except SystemExit as error:
        if error.code == 1:
            tell_of(State.FAILED)
        raise


def _of_trials(chosen: Chosen, experiment: str, event: str) -> dict[str, Any]:
    from kdcluster.sweep import report, scored  # imports all that a search needs
    from kdcluster.sweep.points import Space

    searched = Space(chosen.load(experiment), tuple(chosen.settings), allow_teacher=True)
    found = scored.tried(searched.recorded(chosen.root), searched.sweep.metric, chosen.root)
    found += scored.of_baseline(searched, chosen.root)[0]
    rows = report.document(searched, found)["trials"]
    problems = [
        {"run": one.point.ids[0], "state": one.state, "reason": one.reason, "log": None} for one in found if one.reason
    ]
    states = [state for one in found for state in one.states]
    text = report.render(searched, found, "table") if found else ""
    name = searched.loaded.name
    return _document("sweep", event, [name], f"sweep of {name}", states, rows, problems, text, chosen.root)


def _document(
    what: str,
    event: str,
    experiments: list[str],
    named: str,
    states: Iterable[State],
    rows: list[dict[str, Any]],
    problems: list[dict[str, Any]],
    text: str,
    root: Path,
) -> dict[str, Any]:
    counts = dict(Counter(map(str, states)))
    subject = one_line(f"{named}: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    about = {"schema": SCHEMA, "what": what, "event": event, "host": socket.gethostname(), "runs_dir": str(root)}
    table = {"counts": counts, "rows": rows, "problems": problems}
    return {**about, "experiments": experiments, "subject": subject, "text": f"{subject}\n\n{text}", **table}


if __name__ == "__main__":
    main()
