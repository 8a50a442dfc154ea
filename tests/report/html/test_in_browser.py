"""The checks of whole pages see what is wrong with one."""

from pathlib import Path

import pytest

from pages import Page, assert_shows_well, assert_stands_alone, open_browser

SOUND = """<html><head><meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:"></head>
<body><h1 id="top">Sound</h1><a href="#top">Up</a>{}</body></html>"""
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
FAULTS = [
    f'<img alt="cut off" src="{PIXEL[:46]}">',
    '<img alt="elsewhere" src="http://example.invalid/a.png">',
    "<script>document.title = 1</script>",
]


def test_a_sound_page_passes(tmp_path: Path) -> None:
    html = SOUND.format(f'<img alt="a pixel" src="{PIXEL}">')
    assert_stands_alone(Page(html))
    path = tmp_path / "page.html"
    path.write_text(html)
    assert_shows_well(open_browser(tmp_path), path)


@pytest.mark.parametrize(
    "fault", [*FAULTS, '<a href="#nowhere">?</a>', '<b id="top">twice</b>', '<b onclick="x()">!</b>']
)
def test_a_page_that_does_not_stand_alone_fails(fault: str) -> None:
    with pytest.raises((AssertionError, OSError, ValueError)):
        assert_stands_alone(Page(SOUND.format(fault)))


@pytest.mark.parametrize("fault", [*FAULTS, '<div style="width: 2000px">wide</div>'])
def test_a_page_that_a_browser_cannot_show_fails(fault: str, tmp_path: Path) -> None:
    browser = open_browser(tmp_path)
    path = tmp_path / "page.html"
    path.write_text(SOUND.format(fault))
    with pytest.raises(AssertionError):
        assert_shows_well(browser, path)
