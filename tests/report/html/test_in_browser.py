"""The checks of whole pages see what is wrong with one."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from pages import Page, assert_shows_well, assert_stands_alone

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SOUND = f"""<html><head><meta http-equiv="Content-Security-Policy" content="{POLICY}"></head>
<body><h1 id="top">Sound</h1><a href="#top">Up</a>{{}}</body></html>"""
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
FAULTS = [
    f'<img alt="cut off" src="{PIXEL[:46]}">',
    '<img alt="elsewhere" src="http://example.invalid/a.png">',
    "<script>document.title = 1</script>",
]


SOUND_PAGE = SOUND.format(f'<img alt="a pixel" src="{PIXEL}">')


def test_a_sound_page_stands_alone() -> None:
    assert_stands_alone(Page(SOUND_PAGE))


def test_a_sound_page_shows_well(browser: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(SOUND_PAGE)
    assert_shows_well(browser, path)


@pytest.mark.parametrize(
    "fault", [*FAULTS, '<a href="#nowhere">?</a>', '<b id="top">twice</b>', '<b onclick="x()">!</b>']
)
def test_a_page_that_does_not_stand_alone_fails(fault: str) -> None:
    with pytest.raises((AssertionError, OSError, ValueError)):
        assert_stands_alone(Page(SOUND.format(fault)))


@pytest.mark.parametrize("fault", [*FAULTS, '<div style="width: 2000px">wide</div>'])
def test_a_page_that_a_browser_cannot_show_fails(browser: Chrome, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(SOUND.format(fault))
    with pytest.raises(AssertionError):
        assert_shows_well(browser, path)
