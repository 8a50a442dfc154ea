"""What every HTML page of the project is held to: read by a parser, and shown by a real browser where there is one."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


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


def open_browser() -> Chrome:
    """A headless Chromium that its owner quits. Skips the test where Chromium or its driver is not installed."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for option in ("headless", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=ChromeService(driver))


def assert_shows_well(browser: Chrome, path: Path) -> None:
    """Silent console, every image loaded, nothing wider than a laptop or a phone, and a printout."""
    for width in (1280, 400):
        set_width(browser, width)
        browser.get(path.resolve().as_uri())
        assert browser.get_log("browser") == []
        assert all(browser.execute_script("return Array.from(document.images, image => image.naturalWidth)"))
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert base64.b64decode(browser.print_page()).startswith(b"%PDF")


def set_width(browser: Chrome, width: int) -> None:
    """In CSS pixels. A headless window cannot be as narrow as a phone, an emulated screen can."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
