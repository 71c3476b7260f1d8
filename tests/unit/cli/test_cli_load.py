"""`edged load` against a node's real HTTP adapter."""

import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from edged.cli.load import _Display
from edged.lab.history import Request
from edged.lab.load.session import Progress
from edged.lab.load.spec import parse_load
from edged.lab.load.summary import Collector
from edged.lab.runfolder import read_history
from tests.unit.cli.conftest import Edged
from tests.unit.cli.node_thread import NodeThread

RATE = ("--rate", "60:0.25s", "--arrivals", "constant")


def test_a_table_tells_latencies_by_region_stage_and_function(run: Edged, node: NodeThread) -> None:
    result = run(
        "load", "hello/a?x=1", "b", *RATE, "--gateway", f"eu={node.gateway_url}", "--zipf", "3"
    )
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.split()[:2] == ["requests", "failed"]
    assert rows[0].split()[:3] == ["all", "15", "–"]
    assert any(row.split()[:3] == ["from", "eu", "15"] for row in rows)
    assert any(row.split()[:2] == ["stage", "60/s"] for row in rows)
    assert any(row.split()[:2] == ["function", "hello"] for row in rows)


def test_a_load_leaves_a_run_folder_with_rows_summary_and_histograms(
    run: Edged, node: NodeThread, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run("load", "hello", *RATE, "--gateway", node.gateway_url, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    history = read_history(out)
    assert len(history.requests) == 15
    assert {row.error for row in history.requests} == {None}
    assert history.run.replay.startswith("edged ")
    document = json.loads((out / "load.json").read_text())
    assert document["summary"] == json.loads(result.stdout)
    assert document["summary"]["all"]["requests"] == 15
    assert (out / "latency.hlog").read_text().count("Tag=local,") >= 1
    again = run("load", "hello", *RATE, "--gateway", node.gateway_url, "-o", out)
    assert (again.exit_code, "is there already" in again.output) == (2, True)
    judged = run("chaos", "judge", out)
    assert (judged.exit_code, "edged load wrote it" in judged.output) == (2, True)
    assert not (out / "verdict.json").exists()


def test_a_load_that_was_cut_short_says_so(run: Edged, node: NodeThread, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def interrupt() -> None:
        rows = out / "requests.jsonl"
        while not rows.exists() or not rows.stat().st_size:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    args = ("hello", "--rate", "50:60s", "--gateway", node.gateway_url)
    result = run("load", *args, "-o", out)
    assert (result.exit_code, "cut short after " in result.stderr) == (130, True)
    assert json.loads((out / "load.json").read_text())["summary"]["cut_short"] is True


def test_another_body_than_expected_is_told_and_fails(
    run: Edged, node: NodeThread, tmp_path: Path
) -> None:
    file = tmp_path / "load.toml"
    file.write_text(
        f'rate = "40:0.1s"\n[[functions]]\nname = "hello"\nexpect = {{ "*" = "{"0" * 64}" }}\n'
    )
    result = run("load", "-f", file, "--gateway", node.gateway_url)
    assert result.exit_code == 1
    assert "answers of hello, version –, had another body than expected" in result.stdout


def test_nobody_there_is_a_load_that_failed(run: Edged) -> None:
    result = run("load", "hello", *RATE, "--gateway", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "15 of 15 requests failed: 15 refused" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "say what to ask"),
        (("hello", "--rate", "fast"), "rate 'fast'"),
        (("hello", "--from", "a=b"), "write REGION or REGION=WEIGHT"),
        (("hello", "--from", "EU"), "regions"),
        (("hello", "--routing", "far"), "routing = 'far'"),
        (("hello", "--routing", "node:n9"), "routing to node 'n9': there are 127.0.0.1:1"),
        (("-f", "/nowhere/load.toml"), "cannot be read"),
        (("hello", "--cluster", "x"), "leave out --cluster"),
        (("hello", "--links", "/nowhere/links.json"), "cannot read links"),
    ],
)
def test_wrong_usage_is_told(run: Edged, args: tuple[str, ...], words: str) -> None:
    result = run("load", *args, "--gateway", "http://127.0.0.1:1")
    assert result.exit_code == 2, result.output
    assert words in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:80", "https://a:1", "eu=http://a", "http://a:x"])
def test_a_gateway_is_an_http_url_with_a_port(run: Edged, url: str) -> None:
    result = run("load", "hello", "--gateway", url)
    assert (result.exit_code, "--gateway" in result.stderr) == (2, True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_line_tells_how_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    spec = parse_load({"rate": "10:4s", "functions": [{"name": "f"}]})
    collector = Collector(spec)
    collector.add(
        Request(
            t_s=0.2, region="r", node="n", function="f", intended_s=0.1, sent_s=0.15, done_s=0.2,
            error="reset",
        )
    )  # fmt: skip
    with _Display(spec, shown=True) as display:
        display.update(Progress(1.0, 3, collector))
    line = terminal.getvalue()
    for words in ("1.0 of 4 s", "1 requests, 3 under way", "1 failed", "this client is late"):
        assert words in line, words
