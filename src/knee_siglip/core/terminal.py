"""rich's console, for tables and sentences that hold names and texts from outside."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from knee_siglip.core.cells import printable


class Terminal(Console):
    """Shows control characters escaped; rich's own are segments of another kind."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, which then measures and wraps what will be shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of what is shown, as rich's consoles make them; a text is escaped before it is wrapped."""
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
