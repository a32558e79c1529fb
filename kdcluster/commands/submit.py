"""`kdcluster submit`: what was started, what was not, and how it ends."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence

from kdcluster.commands import notify as notices
from kdcluster.commands import stores
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.next_steps import left_out, say_next_steps, say_table, table
from kdcluster.commands.plan import say_inputs, say_notes, show_dry_run
from kdcluster.commands.progress import follow
from kdcluster.errors import ConfigError
from kdcluster.files import trainer_code
from kdcluster.launch import submission
from kdcluster.launch.preflight import preflight
from kdcluster.launch.status import statuses
from kdcluster.plan import Plan, Run
from kdcluster.runs import RunDir
from kdcluster.states import ENDED, State
from kdcluster.terminal import leave, say
from kdcluster.wording import command as typed
from kdcluster.wording import count


def submit(
    chosen: Chosen,
    max_gpu_hours: float | None,
    retry: bool,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    notify: str | None,
) -> None:
    """Start what is missing; with `wait`, stay until it has ended."""
    if timeout is not None and not wait:
        raise ConfigError("--timeout needs --wait")
    made, root, data = chosen.plan_with_runs(), chosen.root, chosen.data
    there = chosen.place(max_gpu_hours)
    named = {run_id for one in chosen.single for run_id in (*made[one.id].needs, *made[one.id].after, one.id)}
    wanted = submission.to_start(made, statuses(made, root), root, retry=retry, named=named)
    if wanted:
        say_notes(there, made, wanted)

    def say_data(runs: Sequence[Run], started: Collection[str]) -> None:
        say_inputs(runs, data)
        for line in stores.told(made, root, data, started):
            say(line)

    if dry_run:
        say_data(made.runs, wanted)
        return show_dry_run(made, wanted, root, data, there)
    command = notices.wanted(notify)
    is_told = bool(command) and there.tell(notices.after(made, root, command))
    if command and not is_told and not wait:
        why = f"{there.title} it takes --wait, since nothing of kdcluster stays here that could tell anybody"
        if notify:
            raise ConfigError(f"--notify: {why}")
        say(f"nobody will be told at the end: {why}")
    words = chosen.submit_again()

    def prepare(runs: list[Run]) -> None:
        say("trying the models and looking at the data; that takes some seconds")
        preflight(runs, data, fetch=True)
        say_data(runs, [run.id for run in runs])

    done = submission.submit(made, root, data, there, prepare, retry=retry, named=named, words=words)
    _say_submission(made, done, chosen)
    if wait:
        _wait(made, chosen, timeout, "" if is_told and done.started else command)
    elif not done.started:
        say_table(done.left, chosen)


def _say_submission(made: Plan, done: submission.Submission, chosen: Chosen) -> None:
    waits = {run_id: done.waits.get(run_id, "") for run_id in done.started}
    rows = [(run_id, status.state, status.reason) for run_id, status in done.left.items()]
    for line in listed([*rows, *((i, State.QUEUED if why else done.word, why) for i, why in waits.items())]):
        say(line)
    if words := left_out(done.left.values()):
        say(words)
    before = [RunDir(chosen.root, i).newest() for i, status in done.left.items() if status.state == State.DONE]
    codes = [attempt.read("trainer").get("trainer_code") for attempt in before if attempt]
    if other := sum(code not in (None, trainer_code()) for code in codes):
        say(f"{other} of the done runs were made by other trainer code than today's")
    if not done.started:
        what = "the run is" if len(made.runs) == 1 else f"all {len(made.runs)} runs are"
        return say(f"nothing to start: {what} as shown")
    say(f"{len(done.started)} of {count(len(made.runs), 'run')} {done.where}")
    then = f"   then: {table(chosen)}" if table(chosen) else ""
    say(f"next: kdcluster status {chosen.again()} --watch{chosen.where}{then}")


def listed(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Runs with a word each and why, in lines; why, where it is the same for several, once below them."""
    alike = Counter((word, why) for _, word, why in rows)
    lines = []
    for run_id, word, why in rows:
        own = f" ({why})" if why and alike[word, why] == 1 else ""
        lines.append(f"  {run_id}  {word}{own}")
    return lines + [
        f"  {word}: {count(number, 'run')}: {why}" for (word, why), number in alike.items() if why and number > 1
    ]


def _wait(made: Plan, chosen: Chosen, timeout: float | None, notify: str) -> None:
    """Until every run has ended; then `notify` is run, if it is not empty."""
    try:
        found = follow(made, chosen.root, sys.stderr, timeout_min=timeout)
    except KeyboardInterrupt:
        going = [i for i, status in statuses(made, chosen.root).items() if status.state not in (*ENDED, State.PLANNED)]
        which = typed(going) if chosen.roles else chosen.again()  # cancel takes no --role
        stop = f"kdcluster cancel {which}{chosen.where}"
        look = f"kdcluster status {chosen.again()} --watch{chosen.where}, or {stop} to stop them"
        leave(f"\ndetached; still going: {', '.join(going) or 'nothing'}" + (f"\nnext: {look}" if going else ""), 130)
    if notify:
        notices.tell(notify, lambda: notices.of_runs(made, chosen.root, found, "ended"))
    if any(status.state != State.DONE for status in found.values()):
        say_next_steps(found, chosen.submit_again(), chosen)
        leave("not every run is done", 1)
    say_table(found, chosen)
