"""The page in a real browser: filters, slider, keyboard, phone, and what its policy blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from browser import PHONE, chromium, complaints, needs_browser, show
from test_report import SCRIPT, make_run, picture, sample, write_lines
from viceversa.report.comparison import write_comparison
from viceversa.report.page import write_report

pytestmark = needs_browser
PROMPTS = 60
#: One word that no line holds, as URLs and file names are.
LONG = "x" * 300


def prompts() -> list[dict[str, Any]]:
    """The script, a long word, and others of three kinds; each fifth is right after training."""
    texts = [SCRIPT, LONG, *(f"number {i} is a ring" for i in range(2, PROMPTS))]
    return [sample(text, (False, i % 5 == 0), kind=f"kind {i % 3}") for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "one")
    write_lines(folder / "samples/samples.jsonl", prompts())
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(run)


@pytest.fixture(scope="module")
def pages(run: Path, page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of page: linked pictures, one file, two runs, two runs in one file."""
    both = [run, make_run(tmp_path_factory.mktemp("runs") / "two")]
    return {
        "linked": page,
        "single": write_report(run, single_file=True),
        "comparison": write_comparison(both),
        "single comparison": write_comparison(both, single_file=True),
    }


@pytest.fixture(params=["linked", "single", "comparison", "single comparison"])
def any_page(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    return pages[request.param]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


def all_of(driver: Chrome | WebElement, selector: str) -> list[WebElement]:
    return driver.find_elements(By.CSS_SELECTOR, selector)


def one(driver: Chrome | WebElement, selector: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, selector)


def visible(driver: Chrome, selector: str) -> int:
    """Count those that are not hidden."""
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter(e => !e.hidden).length",
        selector,
    )


def active(driver: Chrome) -> WebElement:
    return driver.switch_to.active_element


def press(driver: Chrome, *keys: str) -> None:
    ActionChains(driver).send_keys(*keys).perform()


def test_pages_open_without_a_complaint(browser: Chrome, any_page: Path) -> None:
    """Each picture on the screen is drawn."""
    show(browser, any_page)
    drawn = browser.execute_script(
        "const i = document.querySelector('#sample-cards img'); i.scrollIntoView();"
        "return i.decode().then(() => i.naturalWidth)"
    )
    assert drawn > 0 and complaints(browser) == []
    compared = "comparison" in any_page.name
    assert len(all_of(browser, "#sample-cards .card")) == PROMPTS + 2 * compared
    assert len(all_of(browser, ".key li")) == 2 * compared


def test_filters(browser: Chrome, page: Path) -> None:
    show(browser, page)
    form = one(browser, "[data-filters=sample-cards]")
    told, cards = one(form, "output"), "#sample-cards .card"
    assert told.text == f"{PROMPTS} of {PROMPTS}" and visible(browser, cards) == 24
    one(form, "[name=text]").send_keys("RING number 1")
    assert told.text == f"14 of {PROMPTS}" and visible(browser, cards) == 14  # those with a 1
    Select(one(form, "[name=kind]")).select_by_value("kind 0")
    assert told.text == f"5 of {PROMPTS}"  # 12, 15, 18, 21, 51
    Select(one(form, "[name=outcome]")).select_by_value("now right")
    assert told.text == f"1 of {PROMPTS}" and visible(browser, cards) == 1
    one(form, "[name=text]").send_keys(" nowhere")
    assert told.text == f"0 of {PROMPTS}"
    nothing = one(browser, "#sample-cards ~ .nothing")
    assert nothing.text == "Nothing matches."
    one(form, "button").click()
    browser.execute_async_script("setTimeout(arguments[0])")
    assert told.text == f"{PROMPTS} of {PROMPTS}" and not nothing.is_displayed()
    one(browser, "#sample-cards ~ .more").click()
    assert visible(browser, cards) == PROMPTS


def test_runs_are_filtered_by_what_each_got_right(
    browser: Chrome, run: Path, tmp_path: Path
) -> None:
    """The second run is right where the first is wrong, but for the last three prompts."""
    other = make_run(tmp_path / "two")
    rows = prompts()[:-3]
    for row in rows:
        row["tuned"]["right"] = not row["tuned"]["right"]
    write_lines(other / "samples/samples.jsonl", rows)
    show(browser, write_comparison([run, other]))
    form = one(browser, "[data-filters=sample-cards]")
    assert {"one", "two"} <= {label.text.split("\n")[0] for label in all_of(form, "label")}
    Select(one(form, "[name=run0]")).select_by_value("wrong")
    assert one(form, "output").text == f"48 of {PROMPTS}"
    Select(one(form, "[name=run1]")).select_by_value("right")
    assert one(form, "output").text == f"45 of {PROMPTS}"


def test_groups_are_filtered_by_direction_and_outcome(browser: Chrome, page: Path) -> None:
    show(browser, page)
    form, cards = one(browser, "[data-filters=group-cards]"), "#group-cards .card"
    Select(one(form, "[name=direction]")).select_by_value("picture to caption")
    assert one(form, "output").text == "40 of 80"
    one(form, "[name=text]").send_keys("blue")
    assert one(form, "output").text == "40 of 80"  # what is captioned, too, is searched
    rewards = [e.text for e in all_of(all_of(browser, cards)[0], ".which b")]
    assert rewards == sorted(rewards, key=float, reverse=True) and len(rewards) == 3


def test_the_slider_goes_through_training_by_keyboard(browser: Chrome, page: Path) -> None:
    show(browser, page)
    slider = one(browser, "[data-slider] input[type=range]")

    def shown() -> list[str]:
        frames = [f for f in all_of(browser, "[data-slider] .frame") if f.is_displayed()]
        return [f.get_attribute("data-step") or "" for f in frames]

    assert shown() == ["10"]
    slider.send_keys(Keys.ARROW_LEFT)
    assert shown() == ["5"] and slider.get_attribute("aria-valuetext") == "step 5"
    slider.send_keys(Keys.HOME)
    assert shown() == ["0"] and one(browser, "[data-slider] output").text == "step 0"
    Select(one(browser, "[data-slider] select")).select_by_index(1)
    assert shown() == ["0"]
    assert "seen at 0" in one(browser, "[data-slider]").text
    play = one(browser, "[data-slider] button")
    play.click()
    assert play.text == "Stop"
    slider.send_keys(Keys.END)
    assert shown() == ["10"] and play.text == "Play"
    assert "seen at 10" in one(browser, "[data-slider]").text


def test_a_prompt_that_is_a_script_stays_text(browser: Chrome, any_page: Path) -> None:
    show(browser, any_page)
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    assert one(browser, "#sample-cards h3").text == SCRIPT
    assert len(all_of(browser, "script")) == 1


@pytest.mark.parametrize(
    "attack",
    [
        "const s = document.createElement('script'); s.textContent = 'window.caught = 1';"
        "document.body.append(s)",
        "document.body.insertAdjacentHTML('beforeend',"
        " '<img src=data:, onerror=\"window.caught = 1\">')",
        "document.body.insertAdjacentHTML('beforeend', '<p onclick=\"window.caught = 1\">');"
        "document.body.lastChild.click()",
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x.png>')",
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">')",
    ],
    ids=["script", "onerror", "onclick", "network", "style"],
)
def test_the_policy_blocks_what_is_injected(browser: Chrome, any_page: Path, attack: str) -> None:
    show(browser, any_page)
    browser.execute_script(
        "window.blocked = new Promise(r => addEventListener('securitypolicyviolation', r));"
        + attack
    )
    assert browser.execute_script("return window.blocked.then(e => e.violatedDirective)")
    assert browser.execute_script("return window.caught") is None
    assert any("Content Security Policy" in line for line in complaints(browser))


def test_keyboard(browser: Chrome, page: Path) -> None:
    """From the top: skip link, contents, filters; what has the focus shows it."""
    show(browser, page)
    press(browser, Keys.TAB)
    assert active(browser).text == "Skip to the content"
    assert active(browser).rect["y"] >= 0
    press(browser, Keys.ENTER)
    assert active(browser).get_attribute("id") == "content"
    press(browser, "/")
    assert active(browser).get_attribute("name") == "text"
    assert active(browser).value_of_css_property("outline-style") == "solid"
    press(browser, "a/b")  # in a field it is a letter
    assert active(browser).get_property("value") == "a/b"
    press(browser, Keys.TAB)
    assert active(browser).tag_name == "select"


def test_all_controls_have_names(browser: Chrome, page: Path) -> None:
    show(browser, page)
    controls = all_of(browser, "input, select, button, summary, [role=region], nav")
    assert len(controls) > 10
    assert all(c.accessible_name for c in controls if c.is_displayed())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_and_not_aside(browser: Chrome, any_page: Path, scheme: str) -> None:
    show(browser, any_page, PHONE, scheme)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide == PHONE[0]
    assert LONG in browser.page_source
    shade = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert shade == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 28)"}[scheme]


def test_thousands_of_pictures_wait_until_they_are_scrolled_to(
    browser: Chrome, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rows = [sample(f"p {i}", names=(f"b{i}.png", f"t{i}.png")) for i in range(1000)]
    write_lines(run / "samples/samples.jsonl", rows)
    picture(tmp_path / "one.png")
    for name in (row[who]["image"] for row in rows for who in ("base", "tuned")):
        (run / name).write_bytes((tmp_path / "one.png").read_bytes())
    show(browser, write_report(run))
    one(browser, "#sample-cards ~ .more").click()
    done = "return [...document.images].filter(i => i.complete && i.naturalWidth).length"
    assert len(all_of(browser, "#sample-cards img")) == 2000
    assert browser.execute_script(done) < 500
    last = (
        "const i = [...document.images].pop(); i.scrollIntoView(); return i.decode().then(() => 1)"
    )
    assert browser.execute_script(last) == 1
