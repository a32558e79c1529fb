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

_FAILURE = re.compile(r"rank\s*: (?P<rank>\d+) .*?\n\s*exitcode\s*: (?P<code>-?\d+)", re.S)


def outcome(run_dir: RunDir, attempt: Attempt, returncode: int) -> dict[str, Any]:
    """The attempt's outcome: {"state", "reason", "returncode", "rank", "host", "signal", "out_of_memory"}."""
    base: dict[str, Any] = {
        "returncode": returncode,
        "rank": None,
        "host": None,
        "signal": None,
        "out_of_memory": False,
    }
    result = run_dir.result()
    if returncode == 0 and result and result["attempt"] == attempt.number:
        return {**base, "state": "done", "reason": ""}
    base["state"] = "failed"
    text = attempt.log().read_text(errors="replace") if attempt.log().exists() else ""
    if killed := _killed(text):
        rank, number = killed
        name = signal.Signals(number).name
        hint = " (the kernel does that when memory runs out)" if number == signal.SIGKILL else ""
        return {**base, "rank": rank, "signal": name, "reason": f"rank {rank} was killed by {name}{hint}"}
    failures = sorted(attempt.failures(), key=lambda failure: (failure["collective"], failure["time"]))
    if failures:
        first = failures[0]
        return {
            **base,
            "rank": first["rank"],
            "host": first["host"],
            "out_of_memory": first["out_of_memory"],
            "reason": f"rank {first['rank']}, step {first['step']}: {first['message']}",
        }
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return {**base, "signal": name, "reason": f"torchrun was killed by {name}"}
    return {**base, "reason": f"torchrun ended with {returncode}: {_last_error(text)}"}


def _killed(text: str) -> tuple[int, int] | None:
    """(rank, signal) of a rank that died of a signal torchrun did not send: torchrun stops siblings with SIGTERM."""
    root = text.rpartition("Root Cause (first observed failure):")[2] if "Root Cause" in text else ""
    others = text.rpartition("Failures:")[2] if "Failures:" in text else ""
    for place, ours in ((root, ()), (others, (signal.SIGTERM,))):
        for found in _FAILURE.finditer(place):
            code = int(found["code"])
            if code < 0 and -code not in ours:
                return int(found["rank"]), -code
    return None


def _last_error(text: str) -> str:
    """The last line of the last traceback, or the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it printed nothing"])[-1][:300]
