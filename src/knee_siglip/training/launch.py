"""Several devices: `KNEE_SIGLIP_LAUNCHER="torchrun --nproc-per-node 4" dvc repro`.

The launcher comes from the environment, not from dvc.yaml: as part of the stage, another number of devices would
retrain everything.
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
    """Replace this process by the launcher with `command` (a script, or `-m` and a module, and arguments).

    Does nothing without a launcher, and in the processes that it started.

    Raises:
        UsageError: the launcher cannot be started.
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
