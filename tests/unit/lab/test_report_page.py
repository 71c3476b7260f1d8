"""The page's markup: hostile text stays text, whatever part of a run it is in."""

from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edged.lab import history as h
from edged.lab.report.markup import text
from edged.lab.report.page import page
from edged.lab.report.style import Picture
from edged.lab.runfolder import read_history, read_verdict
from tests.unit.lab.recorded import HOSTILE, WORSE, write_run

PICTURE = Picture("p", HOSTILE, WORSE, b"", "<svg></svg>", True)
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "span", "p", "ul"),
    *("li", "b", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    *("figure", "figcaption", "svg", "code"),
}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    return reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


def test_nothing_of_a_run_becomes_markup(folder: Path) -> None:
    found = read(page(read_history(folder), read_verdict(folder), [PICTURE]))
    assert set(found.tags) <= ALLOWED
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [name for name, _ in found.attributes if name in ("src", "href")]
    assert found.text.count(HOSTILE) >= 10
    assert "\x1b" not in found.text


def test_the_page_says_what_was_found_broken_and_how_to_run_it_again(folder: Path) -> None:
    found = read(page(read_history(folder), read_verdict(folder), []))
    for words in (
        "geo-loss", "invalid", "1 finding", "What the run did not get to see", "4 of 5",
        "pid 4711 is gone", "NoHolder", "edged chaos run configs/chaos/geo-loss.toml --seed 7",
        "every body is its version's", "8 nodes in 8 regions",
    ):  # fmt: skip
        assert words in found.text, words


def test_a_run_that_was_not_judged_says_so(folder: Path) -> None:
    found = read(page(read_history(folder), None, []))
    assert "not judged" in found.text
    assert "The run was not judged." in found.text


def test_a_run_of_nothing_but_its_first_row_has_a_page() -> None:
    run = h.Run(
        t_s=0.0, scenario="", seed=0, started_at_ms=10**18, nodes=(), functions=(), replay=""
    )
    empty = h.History(run=run, timeline=(), rows=(run,), requests=(), samples=())
    assert "0 nodes" in read(page(empty, None, [])).text


def test_long_tables_are_cut_and_say_so(folder: Path) -> None:
    verdict = read_verdict(folder)
    assert verdict is not None
    many = msgspec.structs.replace(verdict, findings=verdict.findings * 700)
    found = read(page(read_history(folder), many, []))
    assert "and 200 more in the folder" in found.text


def test_cells_are_escaped_and_cut() -> None:
    assert text("<&>\"'\n") == "&lt;&amp;&gt;&quot;&#x27;·"
    assert text(None) == "–"
    assert len(text("x" * 10_000)) == 600


def test_the_page_shows_what_forms_were_chosen_and_what_would_change_that(folder: Path) -> None:
    found = read(page(read_history(folder), read_verdict(folder), []))
    for words in ("Forms of code at the end", "chosen", "1.5 s", "1 MiB", "at 1 mbit/s: "):
        assert words in found.text
    assert "(drift): bandwidth 1 mbit/s → 20 mbit/s" in found.text
