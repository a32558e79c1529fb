"""What is still known of a run where one of its records is damaged, and how that is said.

It counts as none where another one says the same (a result and an outcome `done`), or where it only says how far the
run was; and as unknown where it would say who has the run: its ticket, or the start of an attempt that has not ended.
What cannot be told from the processes of this machine then stays unknown until the run is cancelled.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from kdcluster.errors import Damaged
from kdcluster.launch.backend import Phase, Seen
from kdcluster.processes import is_alive
from kdcluster.runs import Attempt
from kdcluster.states import State
from kdcluster.tickets import Ticket

_HEALED = {State.DONE: "; its event files have its numbers", State.LOST: "; submit makes it again"}
"""What becomes of a damaged result."""


def told(reason: str, state: State, damage: Sequence[str]) -> str:
    """A reason that names all damage, each once, and what becomes of a damaged result."""
    more = [words for words in damage if words.partition(" is damaged")[0] not in reason]
    healed = [words + _HEALED.get(state, "") * words.startswith("its result.json") for words in more]
    return both(reason, *healed)


def both(*parts: str) -> str:
    """Parts of a reason, those that say something."""
    return "; ".join(filter(None, parts))


def who(read: Callable[[], Ticket | None]) -> tuple[Ticket | None, bool]:
    """Who has a run, by its ticket or by the start of an attempt, and whether what would say it is damaged."""
    try:
        return read(), False
    except Damaged:
        return None, True


def without_start(started: Attempt, seen: Seen, ticket: Ticket | None) -> Seen:
    """What is known of an attempt that may have been begun by somebody else than the place that has its ticket."""
    if seen.phase in (Phase.WAITING, Phase.ACTIVE) or (seen.phase is Phase.UNKNOWN and ticket):
        return seen
    agent = started.read("agent")
    if agent.get("host") == socket.gethostname() and not is_alive(agent):
        return Seen(Phase.ENDED, f"its processes on {agent['host']} are gone")
    return Seen(Phase.UNKNOWN, "who has it is not known, since its start.json is damaged")
