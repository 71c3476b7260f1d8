"""`edged invoke` against a gateway that echoes what it was asked."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.node_thread import TOKEN, NodeThread

ROOT = Path(__file__).resolve().parents[3]


def test_invoke(cli: Any) -> None:
    result = cli("invoke", "hello", "a/b c", "-q", "x=1&2", "-q", "word", "-H", "X-A: b")
    asked = json.loads(result.stdout)
    assert asked["method"] == "GET"
    assert asked["path"] == "/hello/a/b%20c"
    assert asked["query"] == "x=1%262&word"
    assert ["x-a", "b"] in asked["headers"]
    assert result.stderr == ""


def test_invoke_with_data(cli: Any, tmp_path: Path) -> None:
    assert json.loads(cli("invoke", "f", "-d", "text").stdout)["method"] == "POST"
    path = tmp_path / "body"
    path.write_bytes(b"from a file")
    put = json.loads(cli("invoke", "f", "-X", "PUT", "-d", f"@{path}").stdout)
    assert (put["method"], put["body"]) == ("PUT", "from a file")
    assert json.loads(cli("invoke", "f", "-d", "@-", input=b"\xff").stdout)["body"] == "\xff"
    assert cli("invoke", "f", "-d", f"@{tmp_path}/none").exit_code == 2


def test_invoke_paths(cli: Any) -> None:
    for path, seen in (
        ("x?a=b&c", ("/f/x", "a=b&c")),
        ("%2e%2e/%00", ("/f/%2e%2e/%00", "")),
        ("/abs", ("/f/abs", "")),
        ("ä", ("/f/%C3%A4", "")),
    ):
        asked = json.loads(cli("invoke", "f", path).stdout)
        assert (asked["path"], asked["query"]) == seen


@pytest.mark.parametrize(
    ("status", "code"), [(200, 0), (302, 0), (404, 5), (429, 5), (500, 6), (503, 6)]
)
def test_invoke_exit_codes(cli: Any, status: int, code: int) -> None:
    assert cli("invoke", "f", "-q", f"status={status}").exit_code == code


def test_no_such_function_is_told_by_the_exit_code(cli: Any) -> None:
    missing = cli("invoke", "f", "-q", "status=404", "-q", "problem=function-not-found")
    assert missing.exit_code == 4
    assert json.loads(missing.stdout)["detail"].startswith("so it is")  # away from a terminal: raw
    assert cli("invoke", "f", "-q", "status=404", "-q", "problem=other").exit_code == 5


def test_repeated_headers_are_all_sent(cli: Any) -> None:
    answer = cli("invoke", "f", "-H", "X-A: 1", "-H", "X-A: 2", "-H", "Host: h", "-d", "x")
    asked = json.loads(answer.stdout)["headers"]
    assert [value for name, value in asked if name == "x-a"] == ["1", "2"]
    assert [value for name, value in asked if name == "host"] == ["h"]
    assert ["content-length", "1"] in asked


def on_a_terminal(node: NodeThread, *args: str) -> tuple[str, str, int]:
    """(stdout, stderr, exit code) of `edged invoke f` whose stdout is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as shown:
        done = subprocess.run(
            [sys.executable, "-m", "edged", "invoke", "f", *args],
            cwd=ROOT,
            env=dict(os.environ, EDGED_CONTROL=node.url, EDGED_TOKEN=TOKEN),
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.write(theirs, b"<end>")
        os.close(theirs)
        text = b""
        while not text.endswith(b"<end>"):
            text += shown.read(4096)
    return text.decode()[:-5].replace("\r\n", "\n"), done.stderr.decode(), done.returncode


def test_a_problem_on_a_terminal(node: NodeThread) -> None:
    out, err, code = on_a_terminal(node, "-q", "status=504", "-q", "problem=deadline")
    assert (out, code) == ("", 6)
    assert err == "error: 504 deadline: so it is\\x1b[31m\nhint: edged logs f\n"


def test_an_answer_on_a_terminal_ends_its_line(node: NodeThread) -> None:
    out, err, code = on_a_terminal(node)
    assert (out[-2:], err, code) == ("}\n", "", 0)


def test_invoke_verbose_and_headers(cli: Any) -> None:
    result = cli("invoke", "f", "-v", "-i")
    assert "200 from n1: warm start" in result.stderr
    assert "run 1.5 ms" in result.stderr
    assert result.stdout.startswith("HTTP/1.1 200 ")
    assert "x-edged-node: n1" in result.stdout


def test_invoke_raw_bytes(cli: Any) -> None:
    assert cli("invoke", "f", "bytes").stdout_bytes == b"\xff\x00\xfe"


def test_invoke_as_json(as_json: Any) -> None:
    answer = as_json("invoke", "f")
    assert (answer["status"], answer["start"], answer["node"]) == (200, "warm", "n1")
    assert answer["timing_s"]["run"] == 0.0015
    assert json.loads(answer["body"])["method"] == "GET"
    assert as_json("invoke", "f", "bytes")["body_base64"] == "/wD+"


def test_invoke_at_a_gateway(run: Any, node: NodeThread) -> None:
    assert run("invoke", "f", "--gateway", node.gateway_url).exit_code == 0
    assert run("invoke", "f", "--gateway", "http://127.0.0.1:1").exit_code == 3


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("-H", "nothing"), 2),
        (("-H", "A: b\r\nC: d"), 2),
        (("-X", "GE\r\nT"), 2),
        (("-X", "GE T"), 5),  # the gateway's to judge: invoke is for trying things, too
        (("-H", "a b: c"), 5),
    ],
)
def test_invoke_that_is_no_http(cli: Any, flags: tuple[str, ...], code: int) -> None:
    assert cli("invoke", "f", *flags).exit_code == code
