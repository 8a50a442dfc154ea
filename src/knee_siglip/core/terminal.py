"""rich's console, for tables and sentences that hold names and texts from outside."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from knee_siglip.core.cells import printable


class Terminal(Console):
    """Shows control characters escaped, which is done before a text is measured and wrapped."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Of strings, as rich's."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Of texts that the caller has made, as rich's."""
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        return super().render(renderable, options)
