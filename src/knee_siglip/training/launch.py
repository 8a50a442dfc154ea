"""Several devices: `KNEE_SIGLIP_LAUNCHER="torchrun --nproc-per-node 4" dvc repro`.

The launcher stands in the environment, not in dvc.yaml: there it would be a part of the stage, and another number of
devices would train everything anew.
"""

import os
import shlex
import sys

from knee_siglip.core.errors import UsageError

LAUNCHER = "KNEE_SIGLIP_LAUNCHER"


def is_launched() -> bool:
    """Whether torchrun or accelerate started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def hand_over(command: list[str]) -> None:
    """Let the launcher run `command` (a script, or `-m` and a module, and arguments) in the place of this process.

    Does nothing where no launcher is named, and in the processes that it started.

    Raises:
        UsageError: there is no such program.
    """
    launcher = shlex.split(os.environ.get(LAUNCHER, ""))
    if not launcher or is_launched():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(launcher[0], [*launcher, *command])
    except OSError as error:
        raise UsageError(
            f"{LAUNCHER}={os.environ[LAUNCHER]!r}: {launcher[0]} cannot be started ({error.strerror}); give for "
            "example 'torchrun --nproc-per-node 2'"
        ) from None
