"""The page in a real browser: images load, the slider works, nothing is logged as an error.

Debian and Ubuntu: ``apt install chromium chromium-driver``; no browser is downloaded here.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltm_mm.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator["object"]:
    """Chromium without a window, on the size of a phone."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # A named driver keeps selenium from looking for (and downloading) one.
    browser = webdriver.Chrome(options, webdriver.ChromeService(executable_path=driver))
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(work_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a page about two runs; a name with a blank, as from a double click."""
    path = tmp_path_factory.mktemp("page") / "a report.html"
    runs = [str(work_dir), str(work_dir)]
    return write_report(runs, str(path), num_images=1, score_thr=0.0).as_uri()


def test_page(browser: "object", page: str) -> None:
    browser.get(page)
    images = browser.execute_script(
        "return [...document.images].map(i => [i.alt, i.complete, i.naturalWidth])"
    )
    assert len(images) >= 10
    assert all(alt and complete and width > 0 for alt, complete, width in images), images
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(name.startswith("data:") for name in fetched)
    assert browser.get_log("browser") == []
    # nothing is wider than the phone, so that the page does not scroll sideways
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def cut_of(browser: "object", slider: "object") -> str:
    """How the upper picture of a slider is clipped, as the browser computes it."""
    return browser.execute_script(
        "return getComputedStyle(arguments[0].parentElement.querySelector('.over')).clipPath",
        slider,
    )


def test_slider(browser: "object", page: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(page)
    slider, other = browser.find_elements("css selector", ".compare input")
    before = cut_of(browser, slider)
    assert "50%" in before
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert "40%" in cut_of(browser, slider)
    slider.send_keys(Keys.HOME)
    assert "100%" in cut_of(browser, slider)
    assert cut_of(browser, other) == before
    # pulled by its line to about a quarter of the width
    slider.send_keys(Keys.END)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    wide = slider.size["width"]
    pull = ActionChains(browser).move_to_element_with_offset(slider, wide // 2 - 4, 0)
    pull.click_and_hold().move_by_offset(-(3 * wide // 4), 0).release().perform()
    assert 15 <= int(slider.get_attribute("value")) <= 35
    line = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect();"
        "const line = arguments[0].nextElementSibling.getBoundingClientRect();"
        "return (line.left + line.width / 2 - box.left) / box.width * 100",
        slider,
    )
    assert line == pytest.approx(int(slider.get_attribute("value")), abs=1)


def test_tab_reaches_the_slider(browser: "object", page: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(page)
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if browser.switch_to.active_element.get_attribute("type") == "range":
            break
    focused = browser.switch_to.active_element
    assert focused.get_attribute("type") == "range"
    assert "how much of plain is shown" in focused.accessible_name
