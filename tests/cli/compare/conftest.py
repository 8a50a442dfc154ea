"""The splits that predictions are made of."""

from embedded_splits import data_of, make_split

__all__ = ["data_of", "make_split"]
