"""A report as a real browser shows it: complete, without a request, an error or a script, light and
dark, and with nothing cut off."""

import io
from collections.abc import Iterator

import pytest
from browser import Browser, NoBrowser, browsing, find

from edged.lab.report.building import Report
from tests.unit.lab.recorded import HOSTILE

pytestmark = pytest.mark.slow
WIDTH = 1100
NARROW = 400
FIGURES = 7


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        with browsing(find(), tmp_path_factory.mktemp("chromium")) as running:
            yield running
    except NoBrowser as reason:
        pytest.skip(f"no browser: {reason}")


@pytest.fixture(params=["light", "dark"])
def opened(request: pytest.FixtureRequest, browser: Browser, report: Report) -> Browser:
    browser.open(report.page.as_uri(), width=WIDTH, dark=request.param == "dark")
    return browser


def test_it_loads_nothing_runs_nothing_and_complains_of_nothing(
    opened: Browser, report: Report
) -> None:
    assert opened.requests == [report.page.as_uri()]
    assert opened.logs == []
    assert opened.evaluate("document.title").endswith("– edged")
    assert opened.evaluate("document.querySelectorAll('script, img, iframe, link').length") == 0


def test_all_parts_are_there_and_hostile_names_are_text(opened: Browser) -> None:
    body = opened.evaluate("document.body.innerText")
    for words in ("invalid", "Findings", "Faults", "Run it again", "pid 4711 is gone", HOSTILE):
        assert words in body
    assert opened.evaluate("document.querySelectorAll('figure > svg').length") == FIGURES
    sizes = opened.evaluate(
        "[...document.querySelectorAll('figure > svg')]"
        ".map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"
    )
    assert all(width > 250 and height > 80 for width, height in sizes)


@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_nothing_is_wider_than_the_page(browser: Browser, report: Report, width: int) -> None:
    browser.open(report.page.as_uri(), width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_whole_without_scripts(browser: Browser, report: Report) -> None:
    browser.open(report.page.as_uri(), width=WIDTH, scripts=False)
    with_none = browser.screenshot(width=WIDTH)
    browser.open(report.page.as_uri(), width=WIDTH)
    assert browser.screenshot(width=WIDTH) == with_none


def test_the_picture_is_not_blank_and_keeps_to_its_colour_scheme(
    opened: Browser, request: pytest.FixtureRequest
) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(opened.screenshot(width=WIDTH))) as image:
        shown = image.convert("RGB")
    assert shown.height > 3000
    colours = shown.getcolors(maxcolors=1 << 24)
    assert colours is not None
    ground = max(colours)[1]
    dark = "dark" in request.node.name
    assert (max(ground) < 60) if dark else (min(ground) > 240)
    assert len(colours) > 500
    for top in range(0, shown.height - 800, 800):  # every screenful has something on it
        assert len(shown.crop((0, top, WIDTH, top + 800)).getcolors(1 << 24) or ()) > 20


def test_text_in_the_pictures_does_not_overlap(opened: Browser) -> None:
    """Tick labels and texts of one picture are groups of glyph paths; none covers another."""
    overlaps = opened.evaluate(
        """[...document.querySelectorAll('figure > svg')].flatMap(svg => {
          const boxes = [...svg.querySelectorAll('g[id*="-text_"]')]
            .map(g => g.getBoundingClientRect()).filter(b => b.width > 0);
          if (boxes.length < 5) return [svg.getAttribute('aria-label')];
          return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
            .map(b => [a.left, a.top, b.left, b.top]));
        })"""
    )
    assert overlaps == []
