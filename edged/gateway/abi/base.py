"""The interface of a calling convention, and the plain values it maps between. No I/O.

A convention turns a request into an invocation and its result into a response; it neither runs
anything nor knows of HTTP's wire form. A new one is a file here and a line in the registry.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from edged.errors import BadRequest, MalformedGuestOutput
from edged.interfaces import FunctionView, Invocation, InvocationResult, Slot

TEXT: Final = b"text/plain; charset=utf-8"
BYTES: Final = b"application/octet-stream"
JSON: Final = b"application/json"


class HttpRequest(NamedTuple):
    """A request as the gateway routed it."""

    method: str
    scheme: str
    raw_path: bytes
    """As sent, without the query."""
    path_info: bytes
    """What follows the function's name in `raw_path`: b"" or from a "/" on, still encoded."""
    query: bytes
    """Without "?", still encoded."""
    version: str
    """ "1.1" or "1.0"."""
    headers: list[tuple[bytes, bytes]]
    """Lower-case names, checked by the adapter."""
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    body: bytes


class HttpResponse(NamedTuple):
    """`headers` hold neither framing nor hop-by-hop fields, and no CR, LF or NUL."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Abi(Protocol):
    @property
    def methods(self) -> tuple[str, ...]:
        """Allowed where the function's spec names none."""
        ...

    async def invocation(
        self, request: HttpRequest, function: FunctionView, slot: Slot, /
    ) -> Invocation:
        """Raises BadRequest, FunctionNotFound; and as `slot.params` where it asks that."""
        ...

    def response(
        self, request: HttpRequest, function: FunctionView, result: InvocationResult, /
    ) -> HttpResponse:
        """Raises MalformedGuestOutput."""
        ...


_HEX: Final = {
    bytes((high, low)): bytes((int(bytes((high, low)), 16),))
    for high in b"0123456789abcdefABCDEF"
    for low in b"0123456789abcdefABCDEF"
}


def unquote(text: bytes, *, what: str, plus: bool, lines: bool = False) -> bytes:
    """Percent-decoded; `plus`: "+" is a space, as forms write it; `lines`: CR and LF are data.

    Raises BadRequest naming `what`: broken escapes, bytes that are not UTF-8, NUL, CR or LF."""
    if plus and b"+" in text:
        text = text.replace(b"+", b" ")
    if b"%" not in text:
        return text  # the adapter lets only visible ASCII through
    first, *parts = text.split(b"%")
    out = [first]
    for part in parts:
        byte = _HEX.get(part[:2])
        if byte is None:
            raise BadRequest(f"{what}: '%' without two hex digits")
        out.append(byte)
        out.append(part[2:])
    decoded = b"".join(out)
    try:
        decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{what}: not UTF-8 when decoded") from None
    if b"\x00" in decoded:
        raise BadRequest(f"{what}: holds NUL")
    if not lines and (b"\n" in decoded or b"\r" in decoded):
        raise BadRequest(f"{what}: holds CR or LF")
    return decoded


def malformed(detail: str, result: InvocationResult) -> MalformedGuestOutput:
    """With the output's beginning for the function's log."""
    return MalformedGuestOutput(detail, private=f"{detail}; stdout began {result.stdout[:200]!r}")


def header(request: HttpRequest, name: bytes) -> bytes | None:
    """The first value of a header."""
    for key, value in request.headers:
        if key == name:
            return value
    return None
