"""The kinds of failure a user can meet; the command line turns each into one sentence and an exit code."""

from __future__ import annotations

from datetime import datetime


class RlaifError(Exception):
    """Something failed that was asked for correctly. The message names the thing, the value and the remedy. Exit 1."""

    exit_code = 1
    details = ""
    """More for people, shown below the sentence: a table, say."""


class UsageError(RlaifError):
    """What was asked for cannot be right: a bad option, config, file or column. Exit 2."""

    exit_code = 2


class TransientError(RlaifError):
    """A failure that may pass by itself (a server, a network, an out-of-memory kill): worth a retry. Exit 75.

    75 is `EX_TEMPFAIL` of sysexits.h; the flow retries a stage process only on this code or on a kill by signal.
    """

    exit_code = 75


class WaitingError(TransientError):
    """Nothing failed: the stage waits for people, until `until` at the latest, and is to be run again. Exit 75.

    Trying again at once is of no use, so the flow does not retry it: it suspends itself, or ends and says so.
    """

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until
