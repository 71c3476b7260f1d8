"""Commands against a real control API over real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.interfaces import FutureRecord
from edged.trust import load_trust
from protocol.ids import FunctionName, digest_of
from tests.unit.cli.node_thread import TOKEN, NodeThread

ROOT = Path(__file__).resolve().parents[3]


# ---------------------------------------------------------------- deploy
def test_deploy_and_everything_after(cli: Any, as_json: Any, module_file: Path) -> None:
    first = as_json("deploy", module_file)
    assert first["function"]["name"] == "hello"
    assert first["module"]["module"] == digest_of(module_file.read_bytes())
    assert first["url"].endswith("/hello")
    second = as_json(
        "deploy",
        module_file,
        "--abi",
        "cgi",
        "--env",
        "A=b=c",
        "--memory",
        "2MiB",
        "--timeout-ms",
        "500",
        "--method",
        "GET",
        "--arg",
        "-v",
        "--tmp-bytes",
        "1k",
        "--mount",
        "assets:/srv",
        "--entrypoint",
        "main",
    )
    assert second["function"]["previous"] == first["function"]["version"]

    detail = as_json("describe", "hello")
    assert detail["spec"]["policy"]["env"] == {"A": "b=c"}
    assert detail["spec"]["policy"]["memory_bytes"] == 2 * 1024 * 1024
    assert detail["spec"]["policy"]["tmp_bytes"] == 1024
    assert detail["spec"]["policy"]["mounts"] == [{"source": "assets", "guest_path": "/srv"}]
    assert detail["spec"]["args"] == ["-v"]
    assert detail["spec"]["methods"] == ["GET"]
    assert detail["spec"]["entrypoint"] == "main"
    assert [f["name"] for f in as_json("functions")["functions"]] == ["hello"]
    assert [v["current"] for v in as_json("versions", "hello")["versions"]] == [True, False]
    assert as_json("explain", "hello")["next_start"] == "compiled"
    assert as_json("status")["functions"] == 1
    assert as_json("members")["members"][0]["name"] == "n1"

    assert as_json("rollback", "hello")["version"] == first["function"]["version"]
    wanted = second["function"]["version"]
    assert as_json("rollback", "hello", wanted[:10])["version"] == wanted
    assert as_json("remove", "hello", "--yes")["version"] is None
    assert cli("describe", "hello").exit_code == 4


def test_for_people(cli: Any, node: NodeThread, module_file: Path) -> None:
    deployed = cli("deploy", module_file)
    assert deployed.exit_code == 0
    assert f"invoke   {node.gateway_url}/hello" in deployed.stdout
    assert "unchanged: hello" in cli("deploy", module_file).stdout
    assert digest_of(module_file.read_bytes())[:12] in cli("functions").stdout
    assert "10000 ms" in cli("describe", "hello").stdout
    assert "*" in cli("versions", "hello").stdout
    assert "compiled" in cli("explain", "hello").stdout
    assert node.gateway_url in cli("status").stdout
    assert "n1 *" in cli("members").stdout
    changed = cli("deploy", module_file, "--abi", "cgi")
    assert "(edged rollback hello)" in changed.stdout
    assert "hello is at version" in cli("rollback", "hello").stdout
    node.operator.sharing = ("hallo",)
    shown = cli("remove", "hello", "--yes").stdout
    assert shown == "removed hello\nits code stays for hallo\n"
    assert "no functions yet" in cli("functions").stdout


def test_fewer_copies_than_wanted_are_warned_of(cli: Any, as_json: Any, module_file: Path) -> None:
    warning = "warning: 1 of 3 on disk; restored when nodes are there\n"
    few = cli("deploy", module_file, "--replicas", "3")
    assert (few.exit_code, few.stderr) == (0, warning)
    assert "UNDER-REPLICATED: 1 of 3" in cli("describe", "hello").stdout
    assert cli("deploy", module_file, "--replicas", "1").stderr == ""
    asks = "this version asks for 1 replicas; other, with the same module, for 3: that counts"
    assert asks in cli("describe", "hello").stdout
    assert cli("rollback", "hello").stderr == warning
    told = as_json("deploy", module_file, "--replicas", "4")["function"]
    assert (told["replicas"], told["wanted"]) == (["n1"], 4)


@pytest.mark.parametrize(
    ("argv", "error", "help_of"),
    [
        (("gc", "--grace", "x"), "Invalid value for '--grace'", "gc"),
        (("cluster", "up", "-n", "x"), "Invalid value for '-n'", "cluster up"),
        (("nonsense",), "No such command 'nonsense'", ""),
    ],
)
def test_wrong_usage_looks_like_other_errors(
    run: Any, argv: tuple[str, ...], error: str, help_of: str
) -> None:
    wrong = run(*argv)
    assert wrong.exit_code == 2
    first, second = wrong.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert second.startswith("hint: ")
    assert second.endswith(f" {help_of} --help".replace("  ", " "))


def test_function_toml(as_json: Any, tmp_path: Path, module_file: Path) -> None:
    config = tmp_path / "function.toml"
    config.write_text(
        'name = "greeter"\nmodule = "hello.wasm"\nabi = "cgi"\nargs = ["a"]\n'
        '[policy]\ntimeout_ms = 7\nenv = { A = "1", B = "2" }\n'
    )
    assert as_json("deploy", "--config", config)["function"]["name"] == "greeter"
    spec = as_json("describe", "greeter")["spec"]
    assert (spec["abi"], spec["policy"]["timeout_ms"]) == ("cgi", 7)
    assert (
        as_json(
            "deploy", "--config", config, "--name", "other", "--env", "B=3", "--timeout-ms", "9"
        )["function"]["name"]
        == "other"
    )
    policy = as_json("describe", "other")["spec"]["policy"]
    assert (policy["env"], policy["timeout_ms"]) == ({"A": "1", "B": "3"}, 9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nmae = 'x'", "nmae"),
        ("[policy]\ntimeout = 3", "timeout"),
        ("methods = ['a b']", "methods = 'A B': an HTTP method"),
        ("[policy]\nmemory_bytes = '64 lots'", "policy.memory_bytes = '64 lots' is no size"),
        ("[policy]\nmemory_bytes = 1", "policy.memory_bytes = 1: write a whole number of bytes"),
        ("[policy]\ntmp_bytes = 1\nmounts = [{source = 'a', guest_path = '/tmp'}]", "/tmp"),
        ("policy = 3", "[policy]"),
        ("abi = 'lambda'", "lambda"),
        ("[policy]\ntimeout_ms = 0", "timeout_ms"),
        ("= 3", "not TOML"),
        ("name = 'x'", "give FILE"),
    ],
)
def test_wrong_function_toml(cli: Any, tmp_path: Path, text: str, named: str) -> None:
    config = tmp_path / "function.toml"
    config.write_text(text)
    result = cli("deploy", "--config", config)
    assert result.exit_code == 2
    assert named in result.stderr
    assert str(config) in result.stderr or "give FILE" in named


def test_sizes_and_methods_as_people_write_them(
    as_json: Any, tmp_path: Path, module_file: Path
) -> None:
    config = tmp_path / "function.toml"
    config.write_text(
        'module = "hello.wasm"\nmethods = ["get"]\n[policy]\nmemory_bytes = "64MiB"\n'
    )
    as_json("deploy", "--config", config, "--method", "post", "--method", "Get")
    spec = as_json("describe", "hello")["spec"]
    assert (spec["methods"], spec["policy"]["memory_bytes"]) == (["POST", "GET"], 64 * 1024**2)
    as_json("deploy", "--config", config)
    assert as_json("describe", "hello")["spec"]["methods"] == ["GET"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--env", "A"), "NAME=VALUE"),
        (("--env", "A B=c"), "--env = 'A B': a variable's name"),
        (("--mount", "/etc:/etc"), "--mount"),
        (("--timeout-ms", "0"), "--timeout-ms = 0: write a whole number from 1 to 300000"),
        (("--memory", "1"), "--memory = 1: write a whole number of bytes from 64 KiB to 4 GiB"),
        (("--method", "GE T"), "--method = 'GE T': an HTTP method"),
        (("--tmp-bytes", "1", "--mount", "a:/tmp"), "/tmp"),
        (("--memory", "lots"), "size"),
        (("--name", "Hello!"), "a-z"),
        (("--abi", "wasi"), "abi"),
    ],
)
def test_wrong_flags(run: Any, module_file: Path, flags: tuple[str, ...], named: str) -> None:
    result = run("deploy", module_file, *flags)  # no node is there to be asked
    assert result.exit_code == 2
    assert named in result.stderr


@pytest.mark.parametrize(
    ("exports", "paths"),
    [
        (("memory", "add_numbers", "_start"), ["/hello/add_numbers"]),
        (("add", "sub"), ["/hello/add", "/hello/sub"]),
        (("a/b c",), ["/hello/a%2Fb%20c"]),
        (("memory",), ["/hello"]),
    ],
)
def test_urls_of_exports(
    exports: tuple[str, ...], paths: list[str], as_json: Any, node: NodeThread, module_file: Path
) -> None:
    node.operator.exports = exports
    deployed = as_json("deploy", module_file, "--abi", "export")
    assert deployed["urls"] == [node.gateway_url + path for path in paths]
    assert deployed["url"] == deployed["urls"][0]
    entry = as_json("deploy", module_file, "--abi", "export", "--entrypoint", "add")
    assert entry["urls"] == [f"{node.gateway_url}/hello"]


def test_files_that_cannot_be_deployed(cli: Any, tmp_path: Path) -> None:
    assert cli("deploy", tmp_path / "none.wasm").exit_code == 2
    assert cli("deploy", tmp_path).exit_code == 2
    empty = tmp_path / "empty.wasm"
    empty.touch()
    assert "is empty" in cli("deploy", empty).stderr
    text = tmp_path / "text.wasm"
    text.write_text("hello")
    result = cli("deploy", text)
    assert result.exit_code == 1
    assert "neither .wasm nor .wat" in result.stderr


def test_a_module_of_many_chunks(as_json: Any, tmp_path: Path) -> None:
    path = tmp_path / "big.wasm"
    path.write_bytes(b"\x00asm\x01\x00\x00\x00" + os.urandom(3_000_000))
    assert as_json("deploy", path)["module"]["size_bytes"] == 3_000_008


# ---------------------------------------------------------------- problems
def test_problems_as_json(cli: Any) -> None:
    result = cli("describe", "nothing", "--json")
    assert (result.exit_code, result.stdout) == (4, "")
    problem = json.loads(result.stderr)
    assert problem["type"] == "urn:edged:error:function-not-found"
    assert problem["node"].startswith("http://")


def test_problems_for_people(cli: Any) -> None:
    result = cli("describe", "nothing")
    assert result.stdout == ""
    assert "error: node http://" in result.stderr
    assert "hint: edged functions" in result.stderr


@pytest.mark.parametrize("name", ["a/b", "../status", "ä", "a b", "%2e%2e", "?x", "#", ""])
def test_hostile_names_stay_names(cli: Any, name: str) -> None:
    assert cli("describe", name).exit_code == 4


def test_wrong_token(run: Any, node: NodeThread) -> None:
    result = run("status", env={"EDGED_CONTROL": node.url, "EDGED_TOKEN": "wrong"})
    assert result.exit_code == 1
    assert "control token" in result.stderr


def test_token_file(run: Any, node: NodeThread, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert run("status", "--control", node.url, "--token-file", path).exit_code == 0
    missing = run("status", "--control", node.url, "--token-file", tmp_path / "none")
    assert (missing.exit_code, "cannot be read" in missing.stderr) == (2, True)


@pytest.mark.parametrize("token", ["", "a\nb", "ä"])
def test_unusable_tokens(run: Any, node: NodeThread, token: str) -> None:
    result = run("status", env={"EDGED_CONTROL": node.url, "EDGED_TOKEN": token})
    assert result.exit_code == 2
    assert "--token-file" in result.stderr


def test_nobody_answers(run: Any) -> None:
    result = run(
        "status", "--json", env={"EDGED_CONTROL": "http://127.0.0.1:1", "EDGED_TOKEN": "t"}
    )
    assert result.exit_code == 3
    assert json.loads(result.stderr)["type"] == "urn:edged:error:unreachable"
    assert json.loads(result.stderr)["url"] == "http://127.0.0.1:1"


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://h:0", "http://h:99999"])
def test_urls_that_are_none(run: Any, url: str) -> None:
    result = run("status", env={"EDGED_CONTROL": url, "EDGED_TOKEN": "t"})
    assert result.exit_code == 2
    assert "http://host:port" in result.stderr


def test_a_server_that_is_no_node(run: Any, node: NodeThread) -> None:
    env = {"EDGED_CONTROL": node.gateway_url, "EDGED_TOKEN": TOKEN}
    result = run("status", env=env)
    assert result.exit_code == 1
    assert "not understood" in result.stderr


def test_no_cluster(run: Any) -> None:
    for command in (
        ("status",),
        ("cluster", "status"),
        ("cluster", "down"),
        ("cluster", "kill", "n1"),
    ):
        result = run(*command)
        assert result.exit_code == 4
        assert "edged cluster up" in result.stderr


def test_control_and_node_together(run: Any, node: NodeThread) -> None:
    result = run("status", "--control", node.url, "--node", "n1", env={"EDGED_TOKEN": TOKEN})
    assert (result.exit_code, "leave out" in result.stderr) == (2, True)


def test_join(cli: Any, as_json: Any, node: NodeThread) -> None:
    assert as_json("join", "10.0.0.1:7946")["seeds"] == ["10.0.0.1:7946"]
    assert "10.0.0.1:7946, b:1" in cli("join", "10.0.0.1:7946", "b:1").stdout
    assert node.operator.joined == [("10.0.0.1:7946",), ("10.0.0.1:7946", "b:1")]
    result = cli("join", "nowhere")
    assert (result.exit_code, "host:port" in result.stderr) == (1, True)
    assert cli("join").exit_code == 2


def test_rollback_to_what_is_not_there(cli: Any, module_file: Path) -> None:
    cli("deploy", module_file)
    result = cli("rollback", "hello", "deadbeef")
    assert (result.exit_code, "hint: edged versions hello" in result.stderr) == (4, True)
    wrong = cli("rollback", "hello", "zzzz")
    assert (wrong.exit_code, "edged versions hello" in wrong.stderr) == (2, True)
    result = cli("rollback", "nothing", "deadbeef")
    assert (result.exit_code, "hint: edged functions" in result.stderr) == (4, True)


def test_tables_fit_a_terminal(cli: Any, module_file: Path) -> None:
    cli("deploy", module_file)
    for command in (("members",), ("versions", "hello"), ("functions",)):
        lines = cli(*command).stdout.splitlines()
        assert max(map(len, lines)) <= 100, command


def test_an_address_is_told_once(run: Any) -> None:
    env = {"EDGED_CONTROL": "http://127.0.0.1:1", "EDGED_TOKEN": "t"}
    assert run("status", env=env).stderr.count("http://127.0.0.1:1") == 1


def test_which_token_counts(run: Any, node: NodeThread, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(TOKEN)
    wrong.write_text("wrong")
    env = {"EDGED_CONTROL": node.url}
    assert run("status", env=env | {"EDGED_TOKEN_FILE": str(right)}).exit_code == 0
    both = env | {"EDGED_TOKEN_FILE": str(wrong), "EDGED_TOKEN": TOKEN}
    assert run("status", env=both).exit_code == 0
    flag = env | {"EDGED_TOKEN_FILE": str(wrong), "EDGED_TOKEN": "wrong"}
    assert run("status", "--token-file", right, env=flag).exit_code == 0
    missing = run("status", env=env | {"EDGED_TOKEN_FILE": str(tmp_path / "none")})
    assert (missing.exit_code, "EDGED_TOKEN_FILE" in missing.stderr) == (2, True)


def test_remove_asks(cli: Any, module_file: Path) -> None:
    assert cli("remove", "hello", input="y\n").exit_code == 4  # nothing to ask about
    cli("deploy", module_file)
    silent = cli("remove", "hello", "--json")
    assert (silent.exit_code, "--yes" in silent.stderr) == (2, True)
    refused = cli("remove", "hello", input="n\n")
    assert (refused.exit_code, cli("describe", "hello").exit_code) == (1, 0)
    assert cli("remove", "hello", input="y\n").exit_code == 0


def test_records_of_the_future_are_shown_and_discarded(
    cli: Any, as_json: Any, node: NodeThread
) -> None:
    assert "nothing" in cli("catalog", "future").stdout
    assert cli("catalog", "discard-future").stdout == "0 records discarded\n"
    at_s = time.time() + 7200
    alias = FutureRecord(FunctionName("f"), "alias", "", False, at_s, "n1")
    version = FutureRecord(FunctionName("f"), "version", "ab" * 32, True, at_s, "n1")
    node.operator.future = (alias, version)
    shown = cli("catalog", "future").stdout
    assert "f: change of current version, " in shown
    assert "f: removal of version abababababab, " in shown
    assert [row["name"] for row in as_json("catalog", "future")["records"]] == ["f", "f"]
    silent = cli("catalog", "discard-future", "--json")
    assert (silent.exit_code, "--yes" in silent.stderr) == (2, True)
    assert cli("catalog", "discard-future", input="n\n").exit_code == 1
    assert len(node.operator.future) == 2
    assert cli("catalog", "discard-future", input="y\n").stdout == "2 records discarded\n"
    assert as_json("catalog", "discard-future", "--yes") == {"records": []}


# ---------------------------------------------------------------- logs
def say(node: NodeThread, *texts: str) -> None:
    for text in texts:
        node.do(node.operator.say, "hello", text)


def test_logs(cli: Any, node: NodeThread, module_file: Path) -> None:
    cli("deploy", module_file)
    say(node, "one", "two", "\x1b[31mred\x07")
    shown = cli("logs", "hello", "--tail", "2").stdout
    assert "one" not in shown
    assert "two" in shown
    assert "\x1b[31mred" not in shown
    assert "\\x1b[31mred\\x07" in shown
    lines = cli("logs", "hello", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "two", "\x1b[31mred\x07"]
    assert cli("logs", "nothing", "--follow").exit_code == 4
    assert cli("logs", "hello", "--tail", "-1").exit_code == 1


def test_logs_follow_until_the_function_goes(cli: Any, node: NodeThread, module_file: Path) -> None:
    cli("deploy", module_file)
    say(node, "one")
    results = []
    reader = threading.Thread(target=lambda: results.append(cli("logs", "hello", "-f", "--json")))
    reader.start()
    deadline = time.monotonic() + 10
    while node.do(lambda: node.operator.following) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    say(node, "two")
    assert edged_subprocess(node, "remove", "hello", "--yes").returncode == 0
    reader.join(10)
    assert [json.loads(line)["text"] for line in results[0].stdout.splitlines()] == ["one", "two"]


# ---------------------------------------------------------------- as a process
def edged_subprocess(node: NodeThread | None, *args: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, EDGED_STATE="/nonexistent")
    if node is not None:
        env |= {"EDGED_CONTROL": node.url, "EDGED_TOKEN": TOKEN}
    return subprocess.run(
        [sys.executable, "-m", "edged", *map(str, args)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_as_a_process(node: NodeThread, module_file: Path) -> None:
    deployed = edged_subprocess(node, "deploy", module_file, "--json")
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert json.loads(deployed.stdout)["function"]["created"]
    assert edged_subprocess(node, "describe", "none").returncode == 4
    assert edged_subprocess(node, "invoke", "hello", "-q", "status=500").returncode == 6
    assert edged_subprocess(None, "functions").returncode == 4
    assert edged_subprocess(None, "nonsense").returncode == 2
    assert edged_subprocess(None, "--version").stdout.startswith("edged ")


def test_a_closed_stdout_is_not_the_nodes_fault(node: NodeThread) -> None:
    env = dict(os.environ, EDGED_CONTROL=node.url, EDGED_TOKEN=TOKEN)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "edged", "invoke", "f"],
        cwd=ROOT,
        env=env,
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, b"does not answer" in done.stderr) == (1, False)


HEAVY = ("wasmtime", "hypercorn", "starlette", "trio", "httpx", "cryptography")


@pytest.mark.parametrize(
    ("args", "unwanted"),
    [
        (("--help",), (*HEAVY, "rich", "msgspec", "http.client")),
        (("status",), HEAVY),
        (("deploy", "none.wasm"), HEAVY),
        (("cluster", "list"), HEAVY),
        (("cluster", "status"), HEAVY),
    ],
)
def test_commands_load_only_what_they_need(
    args: tuple[str, ...], unwanted: tuple[str, ...]
) -> None:
    code = (
        "import sys\nfrom edged.__main__ import main\nsys.argv = ['edged', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    env = dict(os.environ, EDGED_STATE="/nonexistent", EDGED_CONTROL="")
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = done.stderr.splitlines()[-1]
    assert [name for name in unwanted if f"'{name}'" in loaded] == []


# ---------------------------------------------------------------- cluster
def test_init_and_issue(run: Any, tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "trust"
    assert run("cluster", "init", ca).exit_code == 0
    again = run("cluster", "init", ca)
    assert (again.exit_code, "there is a CA already" in again.stderr) == (2, True)
    first = json.loads(run("cluster", "issue", ca, "edge-1", "--out", out, "--json").stdout)
    renewed = run("cluster", "issue", ca, "edge-1", "--out", out, "--role", "serve", "--json")
    assert json.loads(renewed.stdout)["node_id"] == first["node_id"]
    trust = load_trust(out)
    assert (trust.node_id, trust.credential.roles) == (first["node_id"], ("serve",))
    other = run("cluster", "issue", ca, "edge-2", "--out", out)
    assert (other.exit_code, "'edge-1'" in other.stderr) == (2, True)
    assert load_trust(out).name == "edge-1"
    people = run("cluster", "issue", ca, "edge-2", "--out", tmp_path / "second")
    assert "beside the node's node.toml as `trust`" in people.stdout
    assert run("cluster", "issue", ca, "Edge 1", "--out", out).exit_code == 2
    assert run("cluster", "issue", tmp_path / "none", "n1", "--out", out).exit_code == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("-n", "0"), "1 to 100"),
        (("-n", "2", "--pulley", "3"), "pulley64"),
        (("--region", "EU"), "region"),
        (("--name", "../x"), "cluster name"),
        (("--file", "none.toml"), "none.toml: cannot be read: No such file or directory\n"),
        (("--file", "x=2.toml"), "give --name"),
        (("none.toml",), "none.toml: cannot be read: No such file or directory\n"),
        (("x.toml", "-n", "2"), "leave out -n"),
        (("--topology", "nowhere"), "cannot read topology nowhere"),
    ],
)
def test_wrong_cluster_flags(run: Any, flags: tuple[str, ...], named: str) -> None:
    result = run("cluster", "up", *flags)
    assert (result.exit_code, named in result.stderr) == (2, True), result.output


def test_no_clusters(run: Any) -> None:
    assert json.loads(run("cluster", "list", "--json").stdout) == {"clusters": []}
    assert run("cluster", "list").stdout.endswith("edged cluster up makes one\n")


def test_a_state_directory_that_cannot_be_made(run: Any) -> None:
    result = run("cluster", "up", "--name", "c", env={"EDGED_STATE": "/proc/nope"})
    assert (result.exit_code, "EDGED_STATE" in result.stderr) == (2, True)


def test_a_cluster_without_its_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "state" / "clusters" / "lost" / "nodes").mkdir(parents=True)
    (row,) = json.loads(run("cluster", "list", "--json").stdout)["clusters"]
    assert (row["name"], row["nodes"], row["running"]) == ("lost", None, 0)
    assert "damaged" in run("cluster", "list").stdout
    status = run("cluster", "status")
    assert (status.exit_code, "edged cluster down lost" in status.stderr) == (2, True)
    assert run("cluster", "down").exit_code == 0
    assert json.loads(run("cluster", "list", "--json").stdout) == {"clusters": []}


# ---------------------------------------------------------------- run
@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "cannot be read"),
        ("node", "not TOML"),
        ("", "node"),
        ("[node]\nname = 'n1'\ncolour = 1", "colour"),
        ("[node]\nname = 'N 1'", "node.name"),
        ("[node]\nname = 'n1'\n[gateway]\nbind = '8080'", "gateway.bind"),
    ],
)
def test_run_with_a_wrong_config(
    run: Callable[..., Any], tmp_path: Path, text: str | None, named: str
) -> None:
    path = tmp_path / "node.toml"
    if text is not None:
        path.write_text(text)
    result = run("run", path)
    assert result.exit_code == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
