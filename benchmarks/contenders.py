"""Ways to train, each in a process of its own: so its peak memory is its own, and they can take turns."""

from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any, cast

from training_ways import Epoch, Kind, Way

from knee_siglip.core.errors import UserError


class Contender:
    """A way to train that waits in its process until it is asked.

    Args:
        make: builds the way there; to be pickled, such as a `functools.partial` of a class.
    """

    def __init__(self, name: str, make: Callable[[], Way]) -> None:
        self.name = name
        context = get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, make))
        self.process.start()
        there.close()
        self.facts: dict[str, Any] = self._answer()

    def epoch(self, kind: Kind) -> Epoch:
        """Have it train once through the pairs."""
        self.pipe.send(kind)
        return cast(Epoch, self._answer())

    def close(self) -> None:
        """Let the process end."""
        self.pipe.close()
        self.process.join()

    def _answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError(f"{self.name} has ended, as it says above") from None


def serve(pipe: Connection, make: Callable[[], Way]) -> None:
    """The contender's process: its facts first, then an epoch whenever a kind of texts arrives."""
    set_start_method(None, force=True)  # a spawned process would spawn the peers' workers too, at seconds per epoch
    way = make()
    pipe.send(way.facts)
    while True:
        try:
            kind = pipe.recv()
        except EOFError:
            return
        pipe.send(way.epoch(kind))
