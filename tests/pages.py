"""What every HTML page of the project is held to: read by a parser, and shown by a real browser where there is one."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLAYWRIGHT = ("chromium-*/chrome-linux*/chrome", "chromium_headless_shell-*/*/headless_shell")
SECONDS = 120

LOOK = """<script>
addEventListener("load", () => parent.postMessage({
  images: Array.from(document.images, image => image.naturalWidth),
  width: innerWidth, needed: document.documentElement.scrollWidth,
}, "*"));
</script>"""

FRAME = """<script>
addEventListener("message", event => { document.documentElement.dataset.look = JSON.stringify(event.data); });
</script>
<iframe src="look.html" width="WIDTH" height="900"></iframe>"""
"""A window cannot be as narrow as a phone, a frame can."""


class Page(HTMLParser):
    """What a browser would see; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.open, self.tags, self.words = html, [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def of(self, tag: str, style: str = "") -> list[dict[str, str]]:
        """Attributes of every element with this tag, and with this class where one is given."""
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and (not style or style in attributes.get("class", "").split())
        ]

    def section(self, anchor: str) -> "Page":
        """The section with this id alone; there must be one, without a section inside."""
        rest = self.html.split(f'<section id="{anchor}">')
        assert len(rest) == 2, f"{len(rest) - 1} sections with the id {anchor}"
        return Page(rest[1].split("</section>")[0])


def assert_stands_alone(page: Page, files_beside: frozenset[str] = frozenset()) -> None:
    """No script, no request, every image inside the page and whole, every link with its target."""
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert re.search(r"https?://|@import|url\(", page.html) is None
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {anchor["href"] for anchor in page.of("a")}
    assert {target for target in targets if not target.startswith("#")} == files_beside
    assert {target[1:] for target in targets if target.startswith("#")} <= set(identifiers)
    for image in page.of("img"):
        head, data = image["src"].split(",")
        assert re.fullmatch("data:image/(jpeg|png);base64", head)
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
        assert image["alt"]


@dataclass(frozen=True)
class Look:
    """What a browser of this inner width saw. images: natural width of each; needed: the width that the page takes."""

    images: list[int]
    width: int
    needed: int
    console: list[str]


class Browser:
    """A headless browser with a profile of its own in `folder`."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder

    def look(self, path: Path, width: int = 1280) -> Look:
        """Open the page as it is, for what the console says, and a copy that tells what it sees."""
        console = self._run(path, "--dump-dom").stderr
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
        (self.folder / "look.html").write_text(html.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
        frame = self.folder / "frame.html"
        frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
        dom = self._run(frame, "--dump-dom", "--virtual-time-budget=10000").stdout
        found = re.search(r'<html[^>]* data-look="([^"]*)"', dom)
        assert found, dom[:500]
        seen = json.loads(found[1].replace("&quot;", '"'))
        assert seen["width"] == width, seen
        return Look(**seen, console=[line for line in console.splitlines() if "CONSOLE" in line])

    def print(self, path: Path) -> bytes:
        """As PDF."""
        pdf = self.folder / "print.pdf"
        self._run(path, f"--print-to-pdf={pdf}")
        return pdf.read_bytes()

    def _run(self, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", f"--user-data-dir={self.folder / 'profile'}", "--enable-logging=stderr", "--v=0"]
        command += [*options, path.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)


def open_browser(folder: Path) -> Browser:
    """Skips the test where no browser is installed."""
    for name in BROWSERS:
        if program := shutil.which(name):
            return Browser(program, folder)
    for pattern in PLAYWRIGHT:
        if found := sorted((Path.home() / ".cache/ms-playwright").glob(pattern)):
            return Browser(str(found[-1]), folder)
    return pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}")


def assert_shows_well(browser: Browser, path: Path) -> None:
    """Silent console, every image loaded, nothing wider than a laptop or a phone, and a printout."""
    for width in (1280, 400):
        look = browser.look(path, width)
        assert look.console == []
        assert len(look.images) == len(Page(path.read_text(encoding="utf-8")).of("img"))
        assert all(size > 0 for size in look.images)
        assert look.needed <= look.width
    pdf = browser.print(path)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 1
