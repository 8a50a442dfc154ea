"""A stage's work divided among machines that share a file system: `--shard 2/4` does the second of four parts."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from knee_siglip.core.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `number`, from 1, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, items: Iterable[str]) -> list[str]:
        """Every `count`-th of the distinct items, sorted: together the shards take each of them once."""
        return sorted(set(items))[self.number - 1 :: self.count]


def asked_shard(arguments: Sequence[str]) -> Shard | None:
    """The shard that a stage's command line asks for, None without one.

    Raises:
        UsageError: anything but `--shard K/N`.
    """
    if not arguments:
        return None
    text = " ".join(arguments)
    if not (parts := re.fullmatch(r"--shard[ =](\d+)/(\d+)", text)):
        raise UsageError(f"unknown arguments {text!r}; the only option is --shard K/N, part K of N")
    shard = Shard(int(parts[1]), int(parts[2]))
    if not 1 <= shard.number <= shard.count:
        raise UsageError(f"--shard {shard}: the first number counts from 1 to the second")
    return shard
