"""The checkpoint that these tests ask."""

from toy_checkpoint import checkpoint_path

__all__ = ["checkpoint_path"]
