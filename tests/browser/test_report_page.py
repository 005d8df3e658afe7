"""The report in headless Chromium: on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import write_baseline, write_chain, write_run

from flwr_splitkd.report.load import load_run

pytestmark = pytest.mark.browser

# In CI nothing may be missing.
if os.environ.get("REQUIRE_BROWSER"):
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
).split()
DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no Chromium is installed")
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from flwr_splitkd.report.html import page

    folder = tmp_path_factory.mktemp("pages")
    one = load_run(
        write_run(folder / "one", 2, ["0", "a-device-with-a-rather-long-name", "2"], failing="2", seed=1).path
    )
    planned = load_run(write_run(folder / "planned", 4, ["0", "1"], failing="1", costs="planned").path)
    best = load_run(write_run(folder / "optimal-cut", 4, ["0", "1"], costs="modelled", waited_s=3.0).path)
    fixed = load_run(write_run(folder / "fixed-cut", 4, ["0", "1"], failing="1", costs="modelled", factor=2.0).path)
    many = load_run(write_run(folder / "many", 3, [f"orin-{i}" for i in range(100)], failing="orin-5", seed=2).path)
    chain = load_run(write_chain(folder / "chain", 3, ["0", "1", "2"], failing="1", reference=True).path)
    crowd = load_run(write_chain(folder / "crowd", 3, [f"orin-{i}" for i in range(50)], failing="orin-5").path)
    alone = load_run(write_baseline(folder / "cloud-only", 3).path)
    made = {}
    shown = {
        **{"one": [one], "many": [many], "both": [one, many]},
        **{"planned": [planned], "policies": [best, fixed]},
        **{"chain": [chain], "chains": [chain, crowd], "chain-and-baseline": [chain, alone], "apart": [chain, one]},
    }
    for name, runs in shown.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(page(runs))
    return made


def luminance(color: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours by the Web Content Accessibility Guidelines, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize(
    "name", ["one", "many", "both", "planned", "policies", "chain", "chains", "chain-and-baseline", "apart"]
)
def test_the_page_can_be_read(
    browser: Any, pages: dict[str, Path], name: str, size: tuple[int, int], scheme: str
) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    tab = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(pages[name].as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
    for details in tab.locator("details summary").all():
        details.click()
    assert tab.evaluate("document.documentElement.scrollWidth") == size[0], "it scrolls sideways"

    figures = tab.locator("figure")
    assert figures.count() >= 4
    for figure in figures.all():
        assert len(figure.locator("[role=img]").get_attribute("aria-label")) > 20
        drawing = figure.locator("svg").first.bounding_box()
        assert drawing["width"] > 0.8 * figure.bounding_box()["width"] - 24
    letters = tab.evaluate(
        """() => [...document.querySelectorAll('svg text')].map(text => {
            const svg = text.closest('svg');
            return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width; })"""
    )
    assert min(letters) > 6.5, "letters in a drawing are too small"

    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    card = tab.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
    for selector, behind in (("body", paper), ("figcaption", card), ("p", paper), ("tr.failed td", paper)):
        ink = tab.evaluate("selector => getComputedStyle(document.querySelector(selector)).color", selector)
        assert contrast(ink, behind) >= 4.5, (selector, ink, behind)
    strokes = tab.evaluate(
        """() => [...document.querySelectorAll('svg [style*="stroke: var(--s"]')].map(line =>
            getComputedStyle(line).stroke).filter(stroke => stroke.startsWith('rgb'))"""
    )
    assert strokes
    assert min(contrast(stroke, card) for stroke in strokes) >= 3
    fills = tab.evaluate(
        """() => [...document.querySelectorAll('svg [style*="fill: var(--s"]')].map(area =>
            getComputedStyle(area).fill).filter(fill => fill.startsWith('rgb'))"""
    )
    assert fills
    assert min(contrast(fill, card) for fill in fills) >= 3
    overlaps = tab.evaluate(
        """() => [...document.querySelectorAll('svg')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
                Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other]) => [one, other])); })"""
    )
    assert overlaps == [], "letters on letters"
    cut_off = tab.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(text => {
            const [own, all] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
            return own.left < all.left - 2 || own.right > all.right + 2; }).map(text => text.textContent)"""
    )
    assert cut_off == [], "letters beyond their drawing"
    context.close()
