"""Why torchrun ended: from the failure files of the ranks and from torchrun's own root cause.

Exit codes do not survive torchrun, a killed rank cannot write, and its siblings fail in their collectives. So a
death by a signal that torchrun did not send beats an exception, and an exception outside a collective beats one
inside.
"""

from __future__ import annotations

import re
import signal
from typing import Any

from kdcluster.runs import Attempt, RunDir
from kdcluster.states import State

_FAILURE = re.compile(r"rank +: (?P<rank>\d+) .*\n *exitcode +: (?P<code>-?\d+) \(pid: (?P<pid>\d+)\)")
_FORCED = re.compile(r"Unable to shutdown process (\d+) via")
_AGENT = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
_OWN = re.compile(r"[WEI]\d{4} .*torch/distributed/|\*{5,}|Setting OMP_NUM_THREADS|\s*$")
"""What torchrun itself prints before it reports a failure."""


def outcome(run_dir: RunDir, attempt: Attempt, returncode: int, *, told_to_stop: bool = False) -> dict[str, Any]:
    """The attempt's outcome: {"state", "reason", "returncode", "rank", "host", "signal", "out_of_memory"}."""
    base: dict[str, Any] = {
        "returncode": returncode,
        "rank": None,
        "host": attempt.read("start").get("host"),
        "signal": None,
        "out_of_memory": False,
    }
    result = run_dir.result()
    if result and result["attempt"] == attempt.number:  # the last thing that is written: whatever came then is noise
        return {**base, "state": State.DONE, "reason": ""}
    saved = attempt.read("preempted")
    where = f"at step {saved['step']}" if saved else "before it could save"
    if run_dir.is_cancelled():
        return {**base, "state": State.CANCELLED, "reason": f"stopped {where}"}
    if saved or told_to_stop:
        return {**base, "state": State.PREEMPTED if saved else State.LOST, "reason": f"stopped {where}"}
    base["state"] = State.FAILED
    texts = _torchrun_logs(attempt, base["host"])
    text = "".join(texts.values())
    lost = ((found, host) for host, log in texts.items() if (found := _killed(log)))
    killed, base["host"] = next(lost, (None, base["host"]))
    host = f" on {base['host']}" if base["host"] else ""
    if killed:
        rank, number = killed
        hint = " (the kernel does that when memory runs out)" if number == signal.SIGKILL else ""
        name = _name(number)
        return {**base, "rank": rank, "signal": name, "reason": f"rank {rank}{host} was killed by {name}{hint}"}
    if stopped := _AGENT.search(text):
        name = _name(int(stopped[1]))
        return {**base, "signal": name, "reason": f"torchrun was stopped by {name}"}
    if returncode < 0:
        name = _name(-returncode)
        return {**base, "signal": name, "reason": f"torchrun was killed by {name}"}
    failures = sorted(attempt.failures(), key=lambda failure: (failure["collective"], failure["time"]))
    if failures:
        first = failures[0]
        return {
            **base,
            "rank": first["rank"],
            "host": first["host"],
            "out_of_memory": first["out_of_memory"],
            "reason": f"rank {first['rank']} on {first['host']}, step {first['step']}: {first['message']}",
        }
    if root := _FAILURE.search(text.rpartition("Root Cause")[2]):
        rank = int(root["rank"])
        return {**base, "rank": rank, "reason": f"rank {rank}{host} ended with {root['code']}: {_last_words(text)}"}
    return {**base, "reason": f"torchrun ended with {returncode}: {_last_words(text)}"}


def _torchrun_logs(attempt: Attempt, first: str | None) -> dict[str | None, str]:
    """What the torchrun of each node printed, by host; of several nodes the one that lost a rank tells of it."""
    paths = {first: attempt.log()}
    for label, path in attempt.logs():
        if label.startswith("torchrun node"):
            host = attempt.read(path.stem.removeprefix("torchrun-")).get("host")
            paths[host if host not in (None, first) else f"{first} ({label.removeprefix('torchrun ')})"] = path
    return {host: path.read_text(errors="replace") for host, path in paths.items() if path.exists()}


def _killed(text: str) -> tuple[int, int] | None:
    """(rank, signal) of a rank that died of a signal torchrun did not send.

    torchrun stops the siblings of a failed rank with SIGTERM, and after 30 s with SIGKILL. Which failure it calls
    the root cause is a matter of whole seconds, so a killed rank may also stand among the others.
    """
    forced = _FORCED.findall(text)
    others, _, root = text.rpartition("Failures:")[2].partition("Root Cause")
    for place, ours in ((root, ()), (others, (signal.SIGTERM,))):
        for found in _FAILURE.finditer(place):
            code = int(found["code"])
            if code < 0 and -code not in ours and found["pid"] not in forced:
                return int(found["rank"]), -code
    return None


def _name(number: int) -> str:
    """SIGKILL for 9; Python has no names for real-time signals."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _last_words(text: str) -> str:
    """The last error that a rank printed, else its last line; torchrun's own report of it says nothing."""
    said = [line.strip() for line in text.partition("failed (exitcode:")[0].splitlines() if not _OWN.match(line)]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or said or ["it printed nothing"])[-1][:300]
