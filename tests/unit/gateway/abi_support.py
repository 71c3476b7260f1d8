"""Requests, functions and results as the gateway hands them to a calling convention."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from edged.gateway.abi import HttpRequest
from edged.interfaces import FunctionView, InvocationResult
from protocol.function import FunctionSpec
from protocol.ids import FunctionName, VersionId, digest_of

BASE = HttpRequest(
    method="GET",
    scheme="http",
    raw_path=b"/fn",
    path_info=b"",
    query=b"",
    version="1.1",
    headers=[(b"host", b"edge.test:8080")],
    client=("192.0.2.7", 4242),
    server=("127.0.0.1", 8080),
    body=b"",
)


def request(**fields: Any) -> HttpRequest:
    made = BASE._replace(**fields)
    return made._replace(raw_path=b"/fn" + made.path_info)


def function(**fields: Any) -> FunctionView:
    digest = digest_of(b"module")
    spec = FunctionSpec(abi="raw", module=digest, module_bytes=8, manifest=digest)
    return FunctionView(FunctionName("fn"), VersionId("0" * 64), replace(spec, **fields))


def result(stdout: bytes = b"", values: tuple[int | float, ...] = ()) -> InvocationResult:
    return InvocationResult(
        stdout=stdout,
        stderr=b"",
        stderr_truncated=False,
        values=values,
        instantiate_s=0.0,
        run_s=0.0,
    )


class Exports:
    """The part of interfaces.Slot that conventions use."""

    def __init__(self, **params: tuple[str, ...]) -> None:
        self._params = params

    async def params(self, export: str) -> tuple[str, ...] | None:
        return self._params.get(export)
