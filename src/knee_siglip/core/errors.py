"""Errors that a user can mend, and the one place that shows them."""

import signal
import sys
from collections.abc import Callable

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


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`; a `UserError` becomes one line on stderr and its exit code, without a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
