"""rich's console, for tables and sentences that hold names and texts from outside."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from knee_siglip.core.cells import printable


class Terminal(Console):
    """Shows control characters escaped; rich's own are segments of another kind."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of what is shown, as rich's consoles make them."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
