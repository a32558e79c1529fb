"""The report as a browser shows it: three widths, light and dark, nothing beyond the edge, nothing fetched, all of it
readable."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdcluster import cli
from kdcluster.experiment import configfile
from kdcluster.plan import plan
from tests.browser import chromium, missing, show
from tests.reported import HOSTILE, with_pixels, with_predictions, with_sweep
from tests.tiny import write_experiment

if why := missing():
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

CONTRAST = """
const seen = new Map(), shade = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function parts(colour) {
  shade.clearRect(0, 0, 1, 1); shade.fillStyle = colour; shade.fillRect(0, 0, 1, 1);
  return shade.getImageData(0, 0, 1, 1).data;
}
function light(colour) {
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = [...parts(colour)].map(v => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (parts(colour)[3] == 255) return colour;
  }
  return "white";
}
document.querySelectorAll("details").forEach(one => { one.open = true; });
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || element.closest("style")) continue;
  const colour = element instanceof SVGElement ? style.fill : style.color, under = behind(element);
  const [high, low] = [light(colour), light(under)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim().slice(0, 40), colour, under]);
}
return found;
"""
"""WCAG's contrast of each text with the first ground behind it that is not transparent."""
BEYOND = """
const edge = document.documentElement.clientWidth, within = e => e.closest(".scroll, pre, .skip");
return [...document.body.querySelectorAll("*")]
  .filter(e => !within(e) && e.getBoundingClientRect().right > edge + 1)
  .map(e => e.tagName + " " + e.textContent.slice(0, 40));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an experiment with everything, and with long names."""
    folder = tmp_path_factory.mktemp("report")
    name = "w" * 120
    write_experiment(folder, {"seeds": [0, 1], "train.epochs": 4, "sweep": {"trials": 8}, "variant": "v" * 200}, name)
    file = folder / f"{name}.yaml"
    made = plan([configfile.load(str(file))])
    with_predictions(folder / "runs", made)
    with_pixels(folder / "data", [*HOSTILE[4:], *HOSTILE[:4]])
    with_sweep(folder / "runs", file)
    words = ["report", str(file), "--runs-dir", str(folder / "runs"), "--output", str(folder / "a.html")]
    result = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert result.exit_code == 0
    return folder / "a.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_fits_it_is_readable_and_it_fetches_nothing(browser: Any, page: Path, width: int, scheme: str) -> None:
    for kind in ("performance", "browser"):
        browser.get_log(kind)  # what was before
    show(browser, page, width, scheme)
    shades = browser.execute_script(CONTRAST)  # with all that is folded open
    assert len(shades) > 400
    assert [shade for shade in shades if shade[0] < 4.5] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(BEYOND) == []
    grounds = {shade[3] for shade in shades}
    assert ("rgb(255, 255, 255)" in grounds) == (scheme == "light")
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in told if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []  # nor does the policy of the page refuse anything


@pytest.mark.parametrize("width", [360, 400])
def test_on_a_phone_the_gain_is_seen_without_scrolling(browser: Any, page: Path, width: int) -> None:
    show(browser, page, width, "light")
    heading, cell = browser.execute_script(
        "const table = document.querySelector('#results table'), at = 2;"
        "return [table.tHead.rows[0].cells[at], [...table.tBodies[0].rows].at(-1).cells[at]]"
        ".map(e => [e.textContent, e.getBoundingClientRect().right]);"
    )
    assert heading[0] == "gain (points)"
    assert cell[0].startswith("+")
    assert max(heading[1], cell[1]) <= width


def test_all_pictures_and_images_are_there(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure > svg, img')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 9
    assert min(heights) > 50
    drawn = browser.execute_script("return [...document.images].every(image => image.naturalWidth === 16)")
    assert drawn


def test_the_keyboard_reaches_the_results_and_what_scrolls(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(page.as_uri())
    ActionChains(browser).send_keys(Keys.TAB).perform()
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the results"
    assert skip.rect["x"] >= 0
    boxes = browser.execute_script("return [...document.querySelectorAll('.scroll, pre')].every(e => e.tabIndex === 0)")
    assert boxes


def test_in_print_all_is_black_on_white(browser: Any, page: Path) -> None:
    show(browser, page, 800, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    found = browser.execute_script(
        "return [...document.querySelectorAll('svg path, svg text, svg use, body, p, th, a, .tiles div')]"
        ".flatMap(e => { const s = getComputedStyle(e); return [s.fill, s.stroke, s.color, s.backgroundColor]; })"
    )
    colours = {tuple(re.findall(r"[\d.]+", one)[:3]) for one in found if one.startswith("rgb")}
    assert len(colours) > 2
    assert [one for one in colours if len(set(one)) != 1] == []
    dashes = browser.execute_script(
        "return new Set([...document.querySelectorAll('figure svg')][0].querySelectorAll('path')"
        ".values().map(e => getComputedStyle(e).strokeDasharray)).size"
    )
    assert dashes >= 3  # the lines of the first picture are told apart without colour
