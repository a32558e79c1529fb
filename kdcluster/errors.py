"""What can go wrong, for the person who typed the command.

KdclusterError        exit code 1
├── Damaged           1  a file of ours that cannot be read, or is not what it ought to be
├── ConfigError       2  wrong usage or configuration, or a file named inside it that is missing
├── WaitTimeout       3  a wait timed out
├── SchedulerError    4  the scheduler cannot be reached
└── NotFound          5  no such run or experiment
"""

import errno
from collections.abc import Iterable
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = {
    **dict.fromkeys(DISK_FULL, "the disk is full ({error}); what was saved is safe: free some space, then {again}"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM),
        "the file system refuses ({error}); what was saved is safe: give access or name another place, then {again}",
    ),
}


def meant(value: str, known: Iterable[str]) -> str:
    """What was probably meant, as the end of a message; nothing where that is not known."""
    import difflib  # only who has mistyped something waits for it

    close = difflib.get_close_matches(value, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain_disk(error: OSError, again: str) -> str | None:
    """What a disk that takes no writing means and what to do next; None for any other error."""
    text = _DISK.get(error.errno or 0)
    return text and text.format(error=error, again=again)


class KdclusterError(Exception):
    """Something the user can act on; the command line prints the message and leaves with `exit_code`."""

    exit_code = 1


class Damaged(KdclusterError):
    """A file that we have written cannot be read, or does not hold what it ought to."""

    def __init__(self, path: str | Path, why: str) -> None:
        self.path, self.why = Path(path), why
        super().__init__(f"{path} is damaged: {why}")


class ConfigError(KdclusterError):
    """One or more things are wrong with what the user wrote; one line each, all at once."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class WaitTimeout(KdclusterError):
    """`--wait --timeout` ran out before the runs ended."""

    exit_code = 3


class SchedulerError(KdclusterError):
    """The scheduler did not answer."""

    exit_code = 4


class NotFound(KdclusterError):
    """No run or experiment of that name."""

    exit_code = 5
