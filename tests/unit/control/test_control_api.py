"""Every endpoint of the control API, with friendly and hostile input."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.control import bodies, make_control_app
from edged.errors import ConfigError, Overloaded
from edged.eventlog import EventLog
from edged.interfaces import FutureRecord
from edged.telemetry import Metrics, make_log
from protocol.ids import FunctionName, digest_of
from tests.unit.control.asgi_client import Answer, Client
from tests.unit.control.harness import TOKEN, WASM, Node, check_problem
from tests.unit.control.memory_builders import MemoryBuilders
from tests.unit.control.memory_keys import MemoryKeys
from tests.unit.control.memory_operator import MemoryOperator
from tests.unit.control.memory_upkeep import MemoryUpkeep

# ---------------------------------------------------------------- authentication
EVERYTHING = [
    ("GET", "/v1/status"),
    ("GET", "/v1/members"),
    ("GET", "/v1/metrics"),
    ("GET", "/v1/artifacts"),
    ("GET", "/v1/lab"),
    ("PUT", "/v1/lab"),
    ("POST", "/v1/join"),
    ("GET", "/v1/events"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("POST", "/v1/keys/00000000/use"),
    ("DELETE", "/v1/keys/00000000"),
    ("GET", "/v1/records/future"),
    ("DELETE", "/v1/records/future"),
    ("PUT", "/v1/modules"),
    ("GET", "/v1/functions"),
    ("PUT", "/v1/functions/a"),
    ("GET", "/v1/functions/a"),
    ("DELETE", "/v1/functions/a"),
    ("GET", "/v1/functions/a/versions"),
    ("POST", "/v1/functions/a/rollback"),
    ("GET", "/v1/functions/a/logs"),
    ("GET", "/v1/functions/a/explain"),
    ("GET", "/nothing"),
    ("OPTIONS", "/v1/functions"),
    ("POST", "/v1/health"),
]


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
async def test_everything_needs_the_token(node: Node, method: str, path: str) -> None:
    answer = await Client(node.app).request(method, path)
    check_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="edged control"'
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "value",
    [
        "Bearer wrong-horse",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer",
        "Bearer ",
        "",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff\xfe",
    ],
)
async def test_wrong_tokens(node: Node, value: str) -> None:
    answer = await Client(node.app).request("GET", "/v1/status", headers=[("Authorization", value)])
    check_problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert TOKEN not in node.log.getvalue()


async def test_two_authorization_headers_are_refused(node: Node) -> None:
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    check_problem(
        await Client(node.app).request("GET", "/v1/status", headers=headers), 401, "unauthorized"
    )


async def test_scheme_is_case_insensitive(node: Node) -> None:
    headers = [("Authorization", f"bearer {TOKEN}")]
    assert (await Client(node.app).request("GET", "/v1/status", headers=headers)).status == 200


async def test_upload_without_token_stores_nothing(node: Node) -> None:
    await Client(node.app).request("PUT", "/v1/modules", body=WASM)
    assert not node.operator.modules


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="token"):
        make_control_app(
            MemoryOperator(),
            explainer=MemoryOperator(),
            events=EventLog(node="n1", generation=1),
            keys=MemoryKeys().service,
            upkeep=MemoryUpkeep(),
            builders=MemoryBuilders().service,
            lab=None,
            links=None,
            token="",
            log=make_log("n"),
            metrics=Metrics(),
        )


# ---------------------------------------------------------------- health, status, members, metrics
async def test_health_without_token(node: Node) -> None:
    answer = await Client(node.app).request("GET", "/v1/health")
    assert (answer.status, answer.json()) == (200, {"state": "ready"})
    assert node.operator.status_calls == 0, "without a token nothing costly is done"


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_health_while_not_ready(node: Node, state: str) -> None:
    node.operator.node_state = state
    answer = await Client(node.app).request("GET", "/v1/health")
    assert answer.status == 503
    assert answer.json()["state"] == state
    assert answer.headers["retry-after"] == "1"


async def test_views(node: Node) -> None:
    status = (await node.client.request("GET", "/v1/status")).json()
    assert (status["node"], status["state"]) == ("n1", "ready")
    members = (await node.client.request("GET", "/v1/members")).json()["members"]
    assert [member["name"] for member in members] == ["n1"]
    artifacts = (await node.client.request("GET", "/v1/artifacts")).json()
    assert (artifacts["accept"], artifacts["artifacts"][0]["builders"]) == ("signed", ["n2"])
    metrics = await node.client.request("GET", "/v1/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"edged_invocations_running" in metrics.body


async def test_join(node: Node) -> None:
    body = msgspec.json.encode({"seeds": ["10.0.0.1:7946", "edge.example:7946"]})
    answer = await node.client.request("POST", "/v1/join", body=body)
    assert answer.status == 202
    assert node.operator.joined == [("10.0.0.1:7946", "edge.example:7946")]
    for seeds in ([], ["no port"], [":"] * 17, "10.0.0.1:7946", [7946]):
        body = msgspec.json.encode({"seeds": seeds})
        answer = await node.client.request("POST", "/v1/join", body=body)
        check_problem(answer, 400, "bad-request")
    assert len(node.operator.joined) == 1


async def test_records_of_the_future(node: Node) -> None:
    one = FutureRecord(FunctionName("f"), "alias", "", False, 5e9, "n1")
    node.operator.future = (one,)
    told = {"records": [msgspec.to_builtins(one)]}
    for method in ("GET", "DELETE"):
        answer = await node.client.request(method, "/v1/records/future")
        assert (answer.status, msgspec.json.decode(answer.body)) == (200, told)
    assert node.operator.future == ()


@pytest.mark.parametrize(
    ("method", "path", "known"),
    [
        ("GET", "/v1/status?node=n1", []),
        ("GET", "/v1/events?afer=3", ["after", "limit", "wait_s"]),
        ("DELETE", "/v1/keys/00000000?froce=1", ["force"]),
        ("GET", "/v1/functions/a/logs?lines=3", ["tail", "follow"]),
        ("DELETE", "/v1/functions/a?dry_run", []),
        ("GET", "/v1/health?x=", []),
    ],
)
async def test_unknown_query_keys(node: Node, method: str, path: str, known: list[str]) -> None:
    path, _, query = path.partition("?")
    answer = await node.client.request(method, path, query=query)
    problem = check_problem(answer, 400, "bad-request")
    assert problem["known"] == known
    assert repr(query.partition("=")[0]) in problem["detail"]


async def test_a_query_key_that_is_given_twice(node: Node) -> None:
    answer = await node.client.request("GET", "/v1/events", query="after=1&after=2")
    assert "'after' is given twice" in check_problem(answer, 400, "bad-request")["detail"]


async def test_an_empty_body_is_said_to_be_empty(node: Node) -> None:
    headers = [("content-length", "0")]
    answer = await node.client.request("POST", "/v1/join", body=b"", headers=headers)
    assert "it is empty" in check_problem(answer, 400, "bad-request")["detail"]


# ---------------------------------------------------------------- modules
async def test_upload_in_pieces(node: Node) -> None:
    answer = await node.client.request("PUT", "/v1/modules", body=[WASM[:3], b"", WASM[3:]])
    assert answer.status == 201
    assert answer.json()["module"] == digest_of(WASM)
    again = await node.client.request("PUT", "/v1/modules", body=WASM)
    assert (again.status, again.json()["created"]) == (200, False)


async def test_upload_with_its_digest(node: Node) -> None:
    headers = [("Edged-Digest", digest_of(WASM))]
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    assert answer.status == 201


async def test_upload_with_another_digest(node: Node) -> None:
    headers = [("Edged-Digest", digest_of(b"else"))]
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    problem = check_problem(answer, 422, "digest-mismatch")
    assert problem["digest"] == digest_of(WASM)
    assert not node.operator.modules


@pytest.mark.parametrize("value", ["", "00", "Z" * 64, "AB" * 32, "ab" * 33, "b3:" + "0" * 61])
async def test_upload_with_a_malformed_digest(node: Node, value: str) -> None:
    headers = [("Edged-Digest", value)]
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    assert "Edged-Digest" in check_problem(answer, 400, "bad-request")["detail"]


async def test_upload_with_two_digests(node: Node) -> None:
    headers = [("Edged-Digest", digest_of(WASM))] * 2
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    check_problem(answer, 400, "bad-request")


async def test_cut_off_upload_stores_nothing(node: Node) -> None:
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, cut_off=True)
    assert "cut off" in check_problem(answer, 400, "bad-request")["detail"]
    assert not node.operator.modules


@pytest.mark.parametrize("length", [len(WASM) + 1, len(WASM) - 1])
async def test_upload_of_another_length_than_declared(node: Node, length: int) -> None:
    headers = [("Content-Length", str(length))]
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    check_problem(answer, 400, "bad-request")
    assert not node.operator.modules


async def test_malformed_content_length(node: Node) -> None:
    for value in ("-1", "1e3", "0x10", "٣", "9" * 30):
        raw = value.encode().decode("latin-1")
        headers = [("Content-Length", raw)]
        answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
        check_problem(answer, 400, "bad-request")


async def test_declared_oversize_is_refused_before_reading(node: Node) -> None:
    headers = [("Content-Length", str(256 * 1024 * 1024 + 1))]
    answer = await node.client.request("PUT", "/v1/modules", body=WASM, headers=headers)
    assert check_problem(answer, 413, "payload-too-large")["limit_bytes"] == 256 * 1024 * 1024


async def test_undeclared_oversize(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.control.api.MODULE_BYTES_MAX", 100)
    answer = await node.client.request("PUT", "/v1/modules", body=[WASM, bytes(60), bytes(60)])
    check_problem(answer, 413, "payload-too-large")
    assert not node.operator.modules


async def test_empty_upload(node: Node) -> None:
    for path in ("/v1/modules", "/v1/functions/a"):
        answer = await node.client.request("PUT", path)
        check_problem(answer, 411, "length-required")
    for declared in (("content-length", "0"), ("transfer-encoding", "chunked")):
        answer = await node.client.request("PUT", "/v1/modules", headers=[declared])
        check_problem(answer, 400, "bad-request")


async def test_upload_of_something_else_names_the_reason(node: Node) -> None:
    answer = await node.client.request("PUT", "/v1/modules", body=b"#!/bin/sh")
    assert check_problem(answer, 422, "module-rejected")["reason"] == "bad-magic"


def test_upload_budget_is_given_back() -> None:
    budget = bodies.UploadBudget(10)
    with budget.share() as share:
        share.take(8)
        with budget.share() as other, pytest.raises(Overloaded):
            other.take(3)
    with budget.share() as share:
        share.take(10)


async def test_uploads_together_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.control.bodies.UPLOADS_BYTES_MAX", 20)
    monkeypatch.setattr("edged.control.bodies.UploadBudget.__init__.__defaults__", (20,))
    app = make_control_app(
        MemoryOperator(),
        explainer=MemoryOperator(),
        events=EventLog(node="n1", generation=1),
        keys=MemoryKeys().service,
        upkeep=MemoryUpkeep(),
        builders=MemoryBuilders().service,
        lab=None,
        links=None,
        token=TOKEN,
        log=make_log("n", stream=io.StringIO()),
        metrics=Metrics(),
    )
    answer = await Client(app, TOKEN).request("PUT", "/v1/modules", body=WASM + bytes(20))
    check_problem(answer, 503, "overloaded")
    assert (await Client(app, TOKEN).request("PUT", "/v1/modules", body=WASM)).status == 201


# ---------------------------------------------------------------- functions
async def test_life_of_a_function(node: Node) -> None:
    module = await node.upload()
    first = await node.deploy("hello", module=module)
    assert first.status == 201
    assert first.headers["location"] == "/v1/functions/hello"
    again = await node.deploy("hello", module=module)
    assert (again.status, again.json()["created"]) == (200, False)
    second = await node.deploy(
        "hello", module=module, abi="cgi", policy={"timeout_ms": 5, "env": {"A": "b"}}
    )
    assert second.json()["previous"] == first.json()["version"]

    listed = (await node.client.request("GET", "/v1/functions")).json()["functions"]
    assert [(row["name"], row["versions"]) for row in listed] == [("hello", 2)]
    detail = (await node.client.request("GET", "/v1/functions/hello")).json()
    assert detail["spec"]["policy"]["env"] == {"A": "b"}
    assert detail["holders"][0]["node"] == "n1"
    versions = (await node.client.request("GET", "/v1/functions/hello/versions")).json()
    assert [row["current"] for row in versions["versions"]] == [True, False]
    explained = (await node.client.request("GET", "/v1/functions/hello/explain")).json()
    assert explained["next_start"] == "compiled"

    back = await node.client.request("POST", "/v1/functions/hello/rollback")
    assert back.json()["version"] == first.json()["version"]
    prefix = json.dumps({"version": second.json()["version"][:8]}).encode()
    forth = await node.client.request("POST", "/v1/functions/hello/rollback", body=prefix)
    assert forth.json()["version"] == second.json()["version"]

    gone = await node.client.request("DELETE", "/v1/functions/hello")
    assert (gone.status, gone.json()["version"]) == (200, None)
    check_problem(
        await node.client.request("GET", "/v1/functions/hello"), 404, "function-not-found"
    )


async def test_deploy_of_a_module_that_is_not_there(node: Node) -> None:
    check_problem(await node.deploy("a", module="00" * 32), 404, "blob-not-found")


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({}, "module"),
        ({"module": "00" * 32, "colour": 1}, "colour"),
        ({"module": "00" * 32, "policy": {"memory": 1}}, "memory"),
        ({"module": "00" * 32, "policy": {"timeout_ms": 0}}, "timeout_ms"),
        ({"module": "00" * 32, "policy": {"timeout_ms": "10"}}, "timeout_ms"),
        ({"module": "00" * 32, "policy": {"env": {"A=B": "c"}}}, "env"),
        ({"module": "00" * 32, "policy": {"mounts": [{"source": "../etc"}]}}, "source"),
        ({"module": "00" * 32, "abi": "lambda"}, "abi"),
        ({"module": "00" * 31}, "module"),
        ({"module": "../" * 20}, "module"),
        ({"module": 7}, "module"),
        ({"module": "00" * 32, "args": [None]}, "args"),
    ],
)
async def test_wrong_deploy_requests_name_the_key(node: Node, request_: dict, named: str) -> None:
    problem = check_problem(await node.deploy("a", **request_), 400, "bad-request")
    assert named in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"module": "' + b"0" * 64 + b'", "args": ["\\ud800"]}',
        b'{"module":' + b"[" * 20000,
    ],
)
async def test_bodies_that_are_not_requests(node: Node, body: bytes) -> None:
    answer = await node.client.request("PUT", "/v1/functions/a", body=body)
    check_problem(answer, 400, "bad-request")


async def test_oversize_deploy_request(node: Node) -> None:
    answer = await node.client.request("PUT", "/v1/functions/a", body=b" " * (32 * 1024 + 1))
    check_problem(answer, 413, "payload-too-large")


async def test_cut_off_deploy_request(node: Node) -> None:
    module = await node.upload()
    body = json.dumps({"module": module}).encode()
    answer = await node.client.request("PUT", "/v1/functions/a", body=body, cut_off=True)
    check_problem(answer, 400, "bad-request")
    assert not node.operator.table


NAMES = ["A", "-a", "a" * 64, "ä", "a.b", "a b", "a\x00", "..", "a\n", "\u202ea"]


@pytest.mark.parametrize("name", NAMES)
async def test_names_that_cannot_be_deployed(node: Node, name: str) -> None:
    module = await node.upload()
    problem = check_problem(await node.deploy(name, module=module), 400, "bad-request")
    assert "a-z" in problem["detail"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/versions"),
        ("GET", "/explain"),
        ("GET", "/logs"),
        ("POST", "/rollback"),
    ],
)
async def test_names_that_no_function_has(node: Node, name: str, method: str, rest: str) -> None:
    answer = await node.client.request(method, f"/v1/functions/{name}{rest}")
    check_problem(answer, 404, "function-not-found")


@pytest.mark.parametrize(
    "path", ["/v1/functions/a/b", "/v1/functions/", "/v1/functions//", "/", ""]
)
async def test_paths_that_are_no_endpoint(node: Node, path: str) -> None:
    answer = await node.client.request("PUT", path, body=b"{}")
    assert answer.status in (404, 405)
    assert answer.json()["status"] == answer.status


async def test_wrong_method_says_which_are_right(node: Node) -> None:
    answer = await node.client.request("POST", "/v1/functions/a")
    problem = check_problem(answer, 405, "method-not-allowed")
    assert problem["allow"] == ["DELETE", "GET", "HEAD", "PUT"]
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


async def test_unknown_path(node: Node) -> None:
    answer = await node.client.request("GET", "/v2/functions")
    assert answer.status == 404
    assert answer.json()["type"] == "about:blank"


# ---------------------------------------------------------------- rollback
async def test_rollback_without_an_earlier_version(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    check_problem(await node.client.request("POST", "/v1/functions/a/rollback"), 409, "conflict")


@pytest.mark.parametrize("version", ["", "abc", "ABCD", "0" * 65, "../..", "zzzz"])
async def test_rollback_to_what_is_no_version(node: Node, version: str) -> None:
    await node.deploy("a", module=await node.upload())
    body = json.dumps({"version": version}).encode()
    answer = await node.client.request("POST", "/v1/functions/a/rollback", body=body)
    check_problem(answer, 400, "bad-request")


async def test_rollback_with_an_unknown_key(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    answer = await node.client.request("POST", "/v1/functions/a/rollback", body=b'{"to": "0000"}')
    assert "to" in check_problem(answer, 400, "bad-request")["detail"]


# ---------------------------------------------------------------- bugs and noise
async def test_a_bug_is_a_500_that_says_nothing(node: Node) -> None:
    node.operator.bug = RuntimeError("secret path")
    answer = await node.client.request("GET", "/v1/functions/a")
    problem = check_problem(answer, 500, "internal")
    assert "secret" not in json.dumps(problem)
    assert "secret path" in node.log.getvalue()
    node.operator.bug = None
    assert (await node.client.request("GET", "/v1/status")).status == 200


async def test_errors_are_counted(node: Node) -> None:
    await node.client.request("GET", "/v1/functions/a")
    await Client(node.app).request("GET", "/v1/functions/a")
    assert b'edged_errors_total{code="function-not-found"} 1.0' in node.metrics.render()
    assert b'edged_errors_total{code="unauthorized"} 1.0' in node.metrics.render()


async def test_changes_are_logged(node: Node) -> None:
    await node.deploy("a", module=await node.upload())
    done = [line for line in node.logged() if line["event"] == "control.request"]
    assert [(line["method"], line["path"], line["status"], line["level"]) for line in done] == [
        ("PUT", "/v1/modules", 201, "info"),
        ("PUT", "/v1/functions/a", 201, "info"),
    ]


async def test_websockets_are_closed(node: Node) -> None:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    await node.app({"type": "websocket", "path": "/", "headers": []}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@settings(max_examples=150, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["module", "abi", "policy", "env", "mounts", "args", "x"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: msgspec.json.encode(value)),
    )
)
def test_any_body_is_answered(body: bytes) -> None:
    async def ask() -> Answer:
        return await Node().client.request("PUT", "/v1/functions/a", body=body)

    answer = trio.run(ask)
    assert answer.status in ((400, 404) if body else (411,))
    assert answer.json()["status"] == answer.status


# ---------------------------------------------------------------- builders
async def test_a_distrusted_builder_is_listed_and_trusted_again(node: Node) -> None:
    (builder,) = await node.builders.distrust("b1")
    one = {"node_id": builder, "name": "b1"}
    listed = (await node.client.request("GET", "/v1/builders/distrusted")).json()
    assert listed == {"node": "n1", "accept": "signed", "distrusted": [one]}
    path = "/v1/builders/distrusted/b1"
    done = await node.client.request("DELETE", path)
    assert (done.status, done.json()) == (200, one)
    check_problem(await node.client.request("DELETE", path), 404, "builder-not-found")
