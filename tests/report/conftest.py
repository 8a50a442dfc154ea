"""One browser for the pages of all tests."""

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from pages import open_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    browser = open_browser()
    yield browser
    browser.quit()
