"""The two kinds of failure a user can meet; the command line turns each into one sentence and an exit code."""


class RlaifError(Exception):
    """Something failed that was asked for correctly. The message names the thing, the value and the remedy. Exit 1."""

    exit_code = 1


class UsageError(RlaifError):
    """What was asked for cannot be right: a bad option, config, file or column. Exit 2."""

    exit_code = 2


class TransientError(RlaifError):
    """A failure that may pass by itself (a server, a network, an out-of-memory kill): worth a retry. Exit 75.

    75 is `EX_TEMPFAIL` of sysexits.h; the flow retries a stage process only on this code or on a kill by signal.
    """

    exit_code = 75
