"""What can go wrong, for the person who typed the command.

KdclusterError        exit code 1
├── ConfigError       2  wrong usage or configuration, or a file named inside it that is missing
├── WaitTimeout       3  a wait timed out
├── SchedulerError    4  the scheduler cannot be reached
└── NotFound          5  no such run or experiment
"""


class KdclusterError(Exception):
    """Something the user can act on; the command line prints the message and leaves with `exit_code`."""

    exit_code = 1


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
