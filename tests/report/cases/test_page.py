"""The case browser in a real browser: filter, open, step, zoom; with nothing from elsewhere."""

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd
import pytest
from axe_core_python.selenium import Axe
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from knee_siglip.report.cases.page import write_case_browsers
from knee_siglip.report.evaluation.results import EvaluationResults, SplitResults
from pages import set_width


def results_of(evaluation: Path, *splits: SplitResults) -> EvaluationResults:
    examples = json.loads((evaluation / "examples.json").read_text())
    return EvaluationResults(evaluation, evaluation / "live", splits, {}, examples, [], {})


@pytest.fixture
def page(evaluation: Path, split: SplitResults, image_files: dict[str, str]) -> Path:
    write_case_browsers(results_of(evaluation, split), image_files)
    return evaluation / "cases.html"


def visit(browser: Chrome, page: Path, filters: str = "") -> None:
    browser.get("about:blank")
    browser.get(page.as_uri() + filters)


def by_id(browser: Chrome, name: str):
    return browser.find_element(By.ID, name)


def count(browser: Chrome) -> str:
    return by_id(browser, "count").text


def choose(browser: Chrome, name: str, word: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(word)


def title(browser: Chrome) -> str:
    return by_id(browser, "case-title").text


def test_a_mistake_is_found_opened_and_zoomed(browser: Chrome, page: Path) -> None:
    set_width(browser, 1280)
    visit(browser, page)
    assert count(browser) == "40 of 40 cases, 4 of them mistakes."
    choose(browser, "graded", "wrong by more than one grade")
    assert count(browser) == "1 of 40 cases, 1 of them mistakes."
    browser.find_element(By.CSS_SELECTOR, "#cases button").click()
    assert title(browser) == "images/<b>10.png · reader 2, model 4 (60 %) · 1 of 1"
    picture = browser.find_element(By.CSS_SELECTOR, "#picture img")
    assert picture.get_property("naturalHeight") == 640
    width = picture.size["width"]
    assert width >= 512
    facts = by_id(browser, "facts").text
    for words in ("text 5 </script>", "Reader: 2 mild. Model: 4 severe.", "Effusion yes 0.100", "Side right"):
        assert words in facts
    picture.click()
    assert browser.find_element(By.CSS_SELECTOR, "#picture img").size["width"] > 2 * width
    assert browser.get_log("browser") == []


def test_a_map_lies_over_the_picture_with_its_scale_and_says_where_nothing_is_found(
    browser: Chrome, page: Path
) -> None:
    set_width(browser, 1280)
    visit(browser, page)
    choose(browser, "maps", "with a map")
    assert count(browser) == "1 of 40 cases, 1 of them mistakes."
    browser.find_element(By.CSS_SELECTOR, "#cases button").click()
    assert browser.find_elements(By.CSS_SELECTOR, "#picture canvas") == []
    found, missing = browser.find_elements(By.CSS_SELECTOR, "#facts .buttons button")
    found.click()
    (canvas,) = browser.find_elements(By.CSS_SELECTOR, "#picture canvas")
    assert canvas.size == browser.find_element(By.CSS_SELECTOR, "#picture img").size
    pixels = browser.execute_script("return [...arguments[0].getContext('2d').getImageData(0, 0, 2, 2).data]", canvas)
    assert [value > 100 for value in pixels[3::4]] == [True, False, False, False]  # opacity: at the hot place alone
    facts = by_id(browser, "facts").text
    assert "Strongest place: 2.5 log-odds." in facts
    assert browser.find_element(By.CSS_SELECTOR, ".scale").text.split() == ["0", "1", "2", "3"]
    missing.click()
    assert browser.find_elements(By.CSS_SELECTOR, "#picture canvas") == []
    assert "Not found: no place changes its log-odds by 0.5." in by_id(browser, "facts").text
    assert browser.get_log("browser") == []


def test_keys_step_through_the_cases_that_pass(browser: Chrome, page: Path) -> None:
    visit(browser, page, "#graded=wrong&sort=file")
    browser.find_element(By.CSS_SELECTOR, "#cases button").click()
    titles = [title(browser)]
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        browser.switch_to.active_element.send_keys(key)
        titles.append(title(browser))
    assert [words.split(".png")[0] for words in titles] == [f"images/<b>{row}" for row in (0, 10, 20, 10)]
    assert "case=10" in browser.current_url
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not by_id(browser, "case").is_displayed()
    assert "case=" not in browser.current_url


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("#actual=2&predicted=4", 1),
        ("#retrieved=no", 1),
        ("#finding=effusion", 8),
        ("#in.side=left", 20),
        ("#words=TEXT+19", 2),
        ("#graded=right&in.side=left&finding=effusion", 4),
    ],
)
def test_links_filter(browser: Chrome, page: Path, filters: str, found: int) -> None:
    visit(browser, page, filters)
    assert count(browser).startswith(f"{found} of 40 cases")


def test_a_link_opens_a_case_and_reset_shows_all(browser: Chrome, page: Path) -> None:
    visit(browser, page, "#graded=wrong&case=20")
    assert title(browser).startswith("images/<b>20.png")
    by_id(browser, "close").click()
    browser.find_element(By.CSS_SELECTOR, "[type=reset]").click()
    # the list follows after the form has its first values again
    WebDriverWait(browser, 20).until(lambda _: count(browser).startswith("40 of 40"))


@pytest.mark.parametrize(("row", "reason"), [(38, "no file with these bytes"), (39, "image")])
def test_an_image_without_a_picture_says_why(browser: Chrome, page: Path, row: int, reason: str) -> None:
    visit(browser, page, f"#case={row}")
    shown = by_id(browser, "picture").text
    assert shown.startswith("No picture: ")
    assert reason in shown


@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_accessible_and_fits(browser: Chrome, page: Path, width: int) -> None:
    set_width(browser, width)
    for filters in ("", "#case=10"):
        visit(browser, page, filters)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        violations = Axe().run(browser)["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == []
        assert browser.get_log("browser") == []


def test_it_asks_for_nothing_and_runs_nothing_of_the_data(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert re.search(r"https?://|@import|url\(", html) is None
    assert html.count("</script>") == 2
    content = json.loads(html.split('id="content">')[1].split("</script>")[0])
    assert content["cases"][10]["file"] == "images/<b>10.png"


def test_the_same_results_give_the_same_files(
    page: Path, evaluation: Path, split: SplitResults, image_files: dict[str, str]
) -> None:
    def read() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [page, *sorted((evaluation / "cases").iterdir())]}

    first = read()
    assert len(first) == 39
    (evaluation / "cases" / "stale.jpg").touch()
    write_case_browsers(results_of(evaluation, split), image_files)
    assert read() == first


def test_a_second_test_set_has_a_browser_of_its_own(
    browser: Chrome, evaluation: Path, split: SplitResults, image_files: dict[str, str]
) -> None:
    for name in ("predictions", "embeddings"):
        table = pd.read_parquet(evaluation / f"{name}.parquet")
        external = table.head(6).assign(split="external")
        pd.concat([table, external]).to_parquet(evaluation / f"{name}.parquet")
    write_case_browsers(results_of(evaluation, split, replace(split, name="external")), image_files)
    visit(browser, evaluation / "cases/external.html")
    assert count(browser).startswith("6 ")
    assert "external" in browser.find_element(By.TAG_NAME, "h1").text
    pictures = browser.find_elements(By.CSS_SELECTOR, "#cases img")
    assert pictures
    assert all(Path(url2pathname(urlsplit(picture.get_attribute("src")).path)).is_file() for picture in pictures)
    assert browser.find_element(By.LINK_TEXT, "Evaluation").get_attribute("href").endswith("/evaluation/index.html")
