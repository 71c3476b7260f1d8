"""A real node process: what it acknowledged survives SIGKILL, and SIGTERM loses no request."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edged.trust import create_ca, issue_node

WAIT_S = 30.0
HELLO = (
    '(module (import "wasi_snapshot_preview1" "fd_write"'
    " (func $w (param i32 i32 i32 i32) (result i32)))"
    ' (memory (export "memory") 1) (data (i32.const 16) "%s")'
    ' (func (export "_start") (i32.store (i32.const 0) (i32.const 16))'
    " (i32.store (i32.const 4) (i32.const %d))"
    " (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"
)


def says(text: str) -> bytes:
    return (HELLO % (text, len(text))).encode()


class NodeProcess:
    """`python -m edged run` in a directory of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        create_ca(base / "ca")
        issue_node(base / "ca", base / "trust", name="n", roles=("serve", "build", "control"))
        (base / "node.toml").write_text(
            '[node]\nname = "n"\n[gateway]\nbind = "127.0.0.1:0"\n[control]\nbind = "127.0.0.1:0"\n'
            '[gossip]\nbind = "127.0.0.1:0"\npreset = "local"\n[store]\nmin_free_bytes = 0\n'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.gateway = self.control = ""

    def start(self) -> None:
        run_file = self.base / "data" / "run.json"
        run_file.unlink(missing_ok=True)
        with (self.base / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edged", "run", str(self.base / "node.toml")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + WAIT_S
        while not run_file.exists():
            assert self.process.poll() is None, (self.base / "node.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        document = json.loads(run_file.read_text())
        assert document["pid"] == self.process.pid
        self.gateway = document["gateway_url"].removeprefix("http://")
        self.control = document["control_url"].removeprefix("http://")

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def ask(self, method: str, path: str, body: bytes = b"") -> object:
        token = (self.base / "control.token").read_text().strip()
        connection = http.client.HTTPConnection(self.control, timeout=WAIT_S)
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status < 300, data
        return json.loads(data)

    def deploy(self, name: str, module: bytes) -> None:
        stored = self.ask("PUT", "/v1/modules", module)
        assert isinstance(stored, dict)
        body = msgspec.json.encode({"module": stored["module"]})
        self.ask("PUT", f"/v1/functions/{name}", body)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.gateway, timeout=WAIT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path)
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_acknowledged_deploys_survive_sigkill_right_after_the_answer(node: NodeProcess) -> None:
    expected: dict[str, bytes] = {}
    for round_ in range(3):
        for index in range(4):
            name = f"f{index}"
            text = f"round {round_} function {index}"
            node.deploy(name, says(text))
            expected[name] = text.encode()
        assert node.end(signal.SIGKILL) == -signal.SIGKILL
        node.start()
        for name, text in expected.items():
            assert node.get(f"/{name}") == (200, text)
    assert node.end(signal.SIGTERM) == 0
    assert not (node.base / "data" / "run.json").exists()


def test_sigterm_under_load_answers_every_request_that_was_accepted(node: NodeProcess) -> None:
    node.deploy("hello", says("hello"))
    assert node.get("/hello") == (200, b"hello")
    wrong: list[object] = []
    served = [0]
    refused = threading.Event()

    def client() -> None:
        """A connection per request: connected means accepted, so it must be answered."""
        while True:
            connection = http.client.HTTPConnection(node.gateway, timeout=WAIT_S)
            try:
                connection.connect()
            except ConnectionError:
                refused.set()
                return
            try:
                connection.request("GET", "/hello")
                answer = connection.getresponse()
                body = answer.read()
                if answer.headers["x-edged-node"] != "n":
                    refused.set()  # another process has the port by now
                    return
                if (answer.status, body) != (200, b"hello"):
                    wrong.append((answer.status, body))
                served[0] += 1
            except (OSError, http.client.HTTPException) as error:
                wrong.append(error)
            finally:
                connection.close()

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    while served[0] < 100:
        time.sleep(0.01)
    assert node.end(signal.SIGTERM) == 0
    for thread in clients:
        thread.join(WAIT_S)
    assert refused.is_set()
    assert wrong == []


def test_a_second_process_on_one_data_directory_says_who_has_it(node: NodeProcess) -> None:
    assert node.process is not None
    second = subprocess.run(
        [sys.executable, "-m", "edged", "run", str(node.base / "node.toml")],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert second.returncode != 0
    assert str(node.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert node.get("/_edged/health")[0] == 200
