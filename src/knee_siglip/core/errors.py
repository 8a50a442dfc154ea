"""Errors that a user can mend."""

import signal

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ROWS_FAILED = 3


class UserError(Exception):
    """A sentence for the user: what is wrong, where (file, row or parameter), and what to do."""

    exit_code = EXIT_FAILED


class UsageError(UserError):
    """Wrong flags or parameters: nothing was started."""

    exit_code = EXIT_USAGE


class Interrupted(UserError):
    """Asked to stop by a signal; what was done is kept. The exit code is the shell's for that signal."""

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
