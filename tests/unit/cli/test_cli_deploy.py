"""`edged deploy` when its answer does not come, and with an init."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.cli.calls import parse_call
from edged.cli.client import Client
from edged.cli.function_file import load_function_file
from edged.errors import CannotSnapshot, ConfigError, InitTrapped, ModuleRejected, Unreachable
from edged.interfaces import InitView, SnapshotView
from protocol.ids import digest_of
from tests.unit.cli.node_thread import NodeThread

SNAPSHOT = digest_of(b"snapshot")
KEPT = InitView(
    0.52, 17_600_000, 4_720_000, 301_000, SNAPSHOT, True, "it saves 0.52 s", ("shared",)
)
STATED = SnapshotView(SNAPSHOT, 17_600_000, 4_720_000, 301_000, 900, 0.52, "n9", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Unreachable("gone", url="http://n1")])
def test_a_deploy_whose_answer_is_missing_may_have_taken_effect(
    cli: Any, module_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    call = Client.call

    def failing(self: Client, method: str, path: str, **rest: Any) -> bytes:
        if path.startswith("/v1/functions/"):
            raise error
        return call(self, method, path, **rest)

    monkeypatch.setattr(Client, "call", failing)
    done = cli("deploy", module_file)
    assert done.exit_code != 0
    assert "the deploy may have taken effect: edged describe hello tells" in done.stderr


def test_an_init_is_flags_over_the_file(as_json: Any, tmp_path: Path, module_file: Path) -> None:
    as_json("deploy", module_file, "--init", "auto")
    assert as_json("describe", "hello")["spec"]["init"]["calls"] == []
    calls = ("--init-call", 'load(1, 2.5, "a b", ["x", "y"])', "--init-call", "done")
    as_json("deploy", module_file, "--init", "begin", *calls, "--init-env", "A=1")
    init = as_json("describe", "hello")["spec"]["init"]
    assert init == {
        "calls": [
            {"export": "begin", "args": []},
            {"export": "load", "args": [1, 2.5, "a b", ["x", "y"]]},
            {"export": "done", "args": []},
        ],
        "env": {"A": "1"},
        "timeout_ms": 30_000,
        "stubs": [],
    }
    file = tmp_path / "function.toml"
    file.write_text(
        'module = "hello.wasm"\nsnapshot = "never"\n[init]\ntimeout_ms = 5\n'
        'calls = [{ export = "load", args = [1, 2.0, "x"] }]\nenv = { A = "1", B = "2" }\n'
    )
    plan, _ = load_function_file(file)
    assert plan.snapshot == "never"
    stubs = ("--init-stub", "host", "--init-stub", "env", "--init-stub", "host")
    as_json("deploy", "--config", file, "--init-env", "B=3", "--init-timeout-ms", "7", *stubs)
    init = as_json("describe", "hello")["spec"]["init"]
    assert init["calls"] == [{"export": "load", "args": [1, 2.0, "x"]}]
    assert (init["env"], init["timeout_ms"]) == ({"A": "1", "B": "3"}, 7)
    assert init["stubs"] == ["env", "host"]
    file.write_text(file.read_text() + 'stubs = ["a", "env"]\n')
    as_json("deploy", "--config", file, "--init-stub", "b")
    assert as_json("describe", "hello")["spec"]["init"]["stubs"] == ["a", "b", "env"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--init-call", "load(x)"], "--init-call"),
        (["--init-call", "load(true)"], "--init-call"),
        (["--init-call", "load(NaN)"], "argument of init"),
        (["--init-call", ""], "--init-call"),
        (["--init", "f", "--init-timeout-ms", "0"], "--init-timeout-ms"),
        (["--init-env", "A"], "--init-env"),
        (["--init-stub", ""], "--init-stub"),
        (["--snapshot", "always"], "no init"),
    ],
)
def test_what_is_no_init_is_told_before_anything_is_sent(
    cli: Any, node: NodeThread, module_file: Path, flags: list[str], told: str
) -> None:
    done = cli("deploy", module_file, *flags)
    assert (done.exit_code, told in done.stderr) == (2, True), done.stderr
    assert node.operator.modules == {}


def test_names_of_exports_may_hold_parentheses() -> None:
    name = "ruby-init: func(args: list<string>) -> ()"
    assert parse_call(f'{name}(["ruby"])', option="--x") == (name, [["ruby"]])
    assert parse_call(name, option="--x", exports=[name]) == (name, [])
    assert parse_call("f()", option="--x") == ("f", [])
    for wrong in ("", "()", "(1)", "f(1))", "f(a)"):
        with pytest.raises(ConfigError, match="--x"):
            parse_call(wrong, option="--x")


def test_what_came_of_an_init_is_shown(cli: Any, node: NodeThread, module_file: Path) -> None:
    node.operator.init = KEPT
    done = cli("deploy", module_file, "--init", "auto")
    assert "init     0.52 s of CPU" in done.stdout
    assert f"snapshot {SNAPSHOT}" in done.stdout
    assert "kept: it saves 0.52 s" in done.stdout
    assert "warning: shared" in done.stderr
    node.operator.init = InitView(0.001, 90_000, 80_000, 0, None, False, "not worth it")
    done = cli("deploy", module_file, "--init", "other")
    assert "not kept: not worth it" in done.stdout
    assert "delta" not in done.stdout
    node.operator.init = InitView(None, None, None, None, None, False, "no picture")
    done = cli("deploy", module_file, "--init", "third", "--snapshot", "never")
    assert "runs at each invocation: no picture" in done.stdout
    assert "none: init per call" in cli("versions", "hello").stdout
    node.operator.snapshot = STATED
    shown = cli("describe", "hello").stdout
    assert "third()" in shown
    assert f"{SNAPSHOT} (" in shown
    assert "made by n9" in shown
    assert f"{SNAPSHOT[:12]} 16.8 MiB" in cli("versions", "hello").stdout


def test_an_init_that_failed_shows_what_it_said(
    cli: Any, node: NodeThread, module_file: Path
) -> None:
    trapped = InitTrapped("init: trapped")
    trapped.extra["stderr"] = "no rules.txt\x1b[31m\n"
    node.operator.init_error = trapped
    done = cli("deploy", module_file, "--init", "auto")
    assert done.exit_code == 1
    assert "no rules.txt\\x1b[31m" in done.stderr
    assert "init: trapped" in done.stderr
    node.operator.init_error = CannotSnapshot("table-mutated", "table 0: changed", thing="table 0")
    done = cli("deploy", module_file, "--init", "auto")
    assert "hint: --snapshot never" in done.stderr
    node.operator.init_error = CannotSnapshot("missing-export", "export f: no such function")
    done = cli("deploy", module_file, "--init", "f")
    assert "no such function" in done.stderr
    assert "hint" not in done.stderr
    lacking = ModuleRejected("missing-import", "a.f: no such", modules=["a", "b c\x1b"])
    for error, flags in (
        (lacking, "--init-stub a --init-stub 'b c\\x1b'"),
        (ModuleRejected("missing-import", "a.f: no such"), "--init-stub MODULE"),
    ):
        node.operator.init_error = error
        done = cli("deploy", module_file, "--init", "f")
        assert f"hint: if it never calls them: {flags}\n" in done.stderr
