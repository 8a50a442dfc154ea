"""Images are checked on all cores."""

import pytest


@pytest.fixture
def one_core() -> None:
    """Not here: what several processes find must come together."""
