"""Columns of a few words, such as the side or the maker of a device: what rows can be told apart by."""

from collections.abc import Collection

import pandas as pd

MOST_VALUES = 30
"""A column with more distinct values tells apart no groups."""


def category_columns(table: pd.DataFrame, others: Collection[str]) -> list[str]:
    """Names of the columns with two to `MOST_VALUES` values, without numbers with fractions and without `others`."""
    names = [str(name) for name in table if table[name].dtype.kind not in "fb" and name not in others]
    return [name for name in names if 1 < table[name].nunique() <= MOST_VALUES]
