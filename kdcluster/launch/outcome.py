"""Why torchrun ended: from what its agents report (torchrun_agent.py), and from the failure files of the ranks.

Exit codes do not survive torchrun, a killed rank cannot write, and its siblings fail in their collectives. So a
death by a signal that torchrun did not send beats an exception, and an exception outside a collective beats one
inside.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

from kdcluster.records import entries, numbered
from kdcluster.runs import Attempt, RunDir
from kdcluster.states import State

_OWN = re.compile(r"[WEI]\d{4} .*torch/distributed/|\*{5,}|Setting OMP_NUM_THREADS|\s*$")
"""What torchrun itself prints before it reports a failure."""


def outcome(run_dir: RunDir, attempt: Attempt, returncode: int, *, told_to_stop: bool = False) -> dict[str, Any]:
    """The attempt's outcome: {"state", "reason", "returncode", "rank", "host", "signal", "out_of_memory"}.

    Args:
        returncode: of torchrun, on the first node.
        told_to_stop: whoever asks has told torchrun to stop, though nobody may have cancelled the run.
    """
    first_host = attempt.read("start").get("host")
    base = {"returncode": returncode, "rank": None, "host": first_host, "signal": None, "out_of_memory": False}
    result = run_dir.result()
    if result and result["attempt"] == attempt.number:  # the last thing that is written: whatever came then is noise
        return {**base, "state": State.DONE, "reason": ""}
    saved = attempt.read("preempted")
    where = f"at step {saved['step']}" if saved else "before it could save"
    if run_dir.is_cancelled():
        return {**base, "state": State.CANCELLED, "reason": f"stopped {where}"}
    # The ranks save whoever tells them to; an agent that dies by itself tells them, too, and that is a crash.
    told = attempt.read("stop") or attempt.read("torchrun-node0").get("signal") or returncode == 0
    if told_to_stop or (saved and told):
        return {**base, "state": State.PREEMPTED if saved else State.LOST, "reason": f"stopped {where}"}
    return {**base, "state": State.FAILED, **_failure(attempt, returncode, first_host)}


def _failure(attempt: Attempt, returncode: int, first_host: str | None) -> dict[str, Any]:
    """{"reason", and what is known of "rank", "host", "signal", "out_of_memory"} of an attempt that nobody stopped."""
    ranks = sorted(_ranks(attempt, first_host), key=lambda rank: rank["time"])  # of each node they are in order
    for rank in ranks:
        if rank["exitcode"] < 0 and not rank["by_torchrun"]:
            name = _name(-rank["exitcode"])
            hint = " (the kernel does that when memory runs out)" if name == "SIGKILL" else ""
            reason = f"{rank['who']} was killed by {name}{hint}"
            return {"rank": rank["rank"], "host": rank["host"], "signal": name, "reason": reason}
    agent = attempt.read("torchrun-node0")
    if agent.get("signal"):
        return {"signal": _name(agent["signal"]), "reason": f"torchrun was stopped by {_name(agent['signal'])}"}
    if returncode < 0:
        return {"signal": _name(-returncode), "reason": f"torchrun was killed by {_name(-returncode)}"}
    told = sorted(attempt.failures(), key=lambda failure: (failure["collective"], failure["time"]))
    if told:
        known = {key: told[0][key] for key in ("rank", "host", "out_of_memory")}
        where = f"rank {known['rank']} on {known['host']}, step {told[0]['step']}"
        return {**known, "reason": f"{where}: {told[0]['message']}"}
    if ranks:
        first = ranks[0]
        reason = f"{first['who']} ended with {first['exitcode']}: {_last_words(attempt, first['node'])}"
        return {"rank": first["rank"], "host": first["host"], "reason": reason}
    if agent.get("error"):
        return {"reason": f"torchrun ended by itself: {agent['error'].strip().splitlines()[0][:300]}"}
    return {"reason": f"torchrun ended with {returncode}: {_last_words(attempt, 0)}"}


def _ranks(attempt: Attempt, first_host: str | None) -> Iterator[dict[str, Any]]:
    """The failed ranks of every node, those that torchrun saw first before the others, with where they were."""
    for node, _ in numbered(entries(attempt.path), "torchrun-node", ".json"):
        report = attempt.read(f"torchrun-node{node}")
        host = first_host if node == 0 else report.get("host")
        name = f"{host} (node {node})" if node and host == first_host else host
        for rank in report.get("failures", ()):
            who = f"rank {rank['rank']}" + (f" on {name}" if name else "")
            yield {**rank, "node": node, "host": name, "who": who}


def _name(number: int) -> str:
    """SIGKILL for 9; Python has no names for real-time signals."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _last_words(attempt: Attempt, node: int) -> str:
    """The last error that a rank of a node printed, else its last line; torchrun's own report of it says nothing."""
    path = attempt.path / f"torchrun-node{node}.log" if node else attempt.log()
    text = path.read_text(errors="replace") if path.exists() else ""
    said = [line.strip() for line in text.partition("failed (exitcode:")[0].splitlines() if not _OWN.match(line)]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or said or ["it printed nothing"])[-1][:300]
