"""What a request and its answer carry from gateway to gateway (SPEC §12). No I/O.

Fields that begin with `x-edged-` are the gateways' own. Of a client's request they are dropped, of
an authenticated peer's they are believed, and what breaks their form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from edged.errors import BadRequest
from edged.http import HOP_BY_HOP
from protocol.ids import NodeId, VersionId

RESERVED: Final = b"x-edged-"
REFUSED: Final = b"x-edged-refused"
HOPS_MAX: Final = 2
LEFT_MS_MAX: Final = 10**9 - 1

Headers = list[tuple[bytes, bytes]]
Address = tuple[str, int]

_PATH: Final = re.compile(rb"[0-9a-f]{32}(?:,[0-9a-f]{32}){0,%d}\Z" % (HOPS_MAX - 1))
_VERSION: Final = re.compile(rb"[0-9a-f]{64}\Z")
_LEFT_MS: Final = re.compile(rb"[0-9]{1,9}\Z")
_ADDRESS: Final = re.compile(rb"([0-9A-Fa-f.:]{2,45}) ([0-9]{1,5})\Z")
_TOTAL: Final = re.compile(rb"total;dur=([0-9]{1,9}(?:\.[0-9]{1,9})?)\Z")
_NEVER_NAMED: Final = frozenset((b"host", b"content-length", b"x-request-id"))
"""By Connection: without them the request would be another one."""
_PASSED_ON_ANEW: Final = HOP_BY_HOP | {b"content-length", b"expect", b"x-request-id"}
_ANSWERED_ANEW: Final = HOP_BY_HOP | {
    b"server-timing",
    b"via",
    b"x-edged-forwarded-by",
    REFUSED,
    b"x-edged-start",
    b"x-request-id",
}


class Passage(NamedTuple):
    """How a request came here, as the peer says that passed it on."""

    path: tuple[NodeId, ...]
    """Who passed it on, the first first."""
    version: VersionId
    """To run."""
    left_s: float
    """Of its time, from when its body is whole."""
    client: Address | None
    server: Address | None
    """Both ends of the client's own connection."""


def without_reserved(headers: Headers) -> Headers:
    return [field for field in headers if not field[0].startswith(RESERVED)]


def take_passage(headers: Headers, peer: str) -> tuple[Passage, Headers]:
    """Of a request that came from node `peer`; and its other fields. Raises BadRequest."""
    own: dict[bytes, bytes] = {}
    rest: Headers = []
    for name, value in headers:
        if not name.startswith(RESERVED):
            rest.append((name, value))
        elif name in own:
            raise BadRequest(f"more than one {name.decode()}")
        else:
            own[name] = value
    path = _matched(_PATH, b"x-edged-path", own).group().decode().split(",")
    if path[-1] != peer or len(set(path)) < len(path):
        raise BadRequest("x-edged-path: not the way it came")
    return (
        Passage(
            path=tuple(map(NodeId, path)),
            version=VersionId(_matched(_VERSION, b"x-edged-version", own).group().decode()),
            left_s=int(_matched(_LEFT_MS, b"x-edged-deadline-ms", own).group()) / 1000,
            client=_address(b"x-edged-client", own),
            server=_address(b"x-edged-server", own),
        ),
        rest,
    )


def _matched(form: re.Pattern[bytes], name: bytes, own: dict[bytes, bytes]) -> re.Match[bytes]:
    match = form.match(own.get(name, b""))
    if match is None:
        raise BadRequest(f"{name.decode()}: missing or malformed")
    return match


def _address(name: bytes, own: dict[bytes, bytes]) -> Address | None:
    if name not in own:
        return None
    host, port = _matched(_ADDRESS, name, own).groups()
    return host.decode(), int(port)


def passed_on(
    headers: Headers,
    passage: Passage,
    *,
    node: str,
    http_version: str,
    request_id: bytes,
    length: int | None,
) -> Headers:
    """The fields to pass a request on with; `length` of its body, None: in chunks. `headers` hold
    no reserved ones. RFC 9110 §7.6, RFC 7239."""
    named = connection_options(headers) - _NEVER_NAMED
    sent = [field for field in headers if field[0] not in _PASSED_ON_ANEW and field[0] not in named]
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts:  # HTTP/1.0
        hosts = [_url_host(passage.server)]
        sent.append((b"host", hosts[0]))
    if length is None:
        sent.append((b"transfer-encoding", b"chunked"))
    elif length or any(name == b"content-length" for name, _ in headers):
        sent.append((b"content-length", b"%d" % length))
    sent += [
        (b"via", f"{http_version} {node}".encode()),
        (b"forwarded", _forwarded(passage.client, hosts[0], node)),
        (b"x-request-id", request_id),
        (b"x-edged-path", ",".join(passage.path).encode()),
        (b"x-edged-version", passage.version.encode()),
        (b"x-edged-deadline-ms", b"%d" % min(max(round(passage.left_s * 1000), 0), LEFT_MS_MAX)),
    ]
    for name, address in ((b"x-edged-client", passage.client), (b"x-edged-server", passage.server)):
        text = b"" if address is None else f"{address[0]} {address[1]}".encode()
        if _ADDRESS.match(text):
            sent.append((name, text))
    return sent


def connection_options(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """What Connection names, in lower case."""
    return {
        option.strip(b" \t").lower()
        for name, value in headers
        if name == b"connection"
        for option in value.split(b",")
    }


def _url_host(address: Address | None) -> bytes:
    if address is None:
        return b"localhost"
    host, port = address
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()


def _forwarded(client: Address | None, host: bytes, node: str) -> bytes:
    # The name is an obfuscated identifier (RFC 7239 §6.3); Host holds neither quotes nor "\".
    source = b"unknown" if client is None else b'"%b"' % _url_host(client)
    return b'for=%b;host="%b";proto=http;by=_%b' % (source, host, node.encode())


def answered(headers: Headers, *, node: str, request_id: bytes, total_s: float) -> Headers:
    """The fields of a peer's answer as the client gets them: hop-by-hop ones removed, the way and
    its time added. `total_s`: since the request came."""
    named = connection_options(headers)
    sent = [field for field in headers if field[0] not in _ANSWERED_ANEW and field[0] not in named]
    by = [value for name, value in headers if name == b"x-edged-forwarded-by"]
    via = [value for name, value in headers if name == b"via"]
    timing = [value for name, value in headers if name == b"server-timing"]
    sent += [
        (b"via", b", ".join([*via, b"1.1 " + node.encode()])),
        (b"x-edged-forwarded-by", b", ".join([node.encode(), *by])),
        (b"x-edged-start", b"forwarded"),
        (b"x-request-id", request_id),
        (b"server-timing", _timing(timing, total_s)),
    ]
    return sent


def _timing(theirs: Iterable[bytes], total_s: float) -> bytes:
    """Their phases, and how much longer it took from here."""
    parts: list[bytes] = []
    their_ms = 0.0
    for part in b",".join(theirs).split(b","):
        total = _TOTAL.match(part.strip(b" \t"))
        if total is not None:
            their_ms = float(total.group(1))
        elif part.strip(b" \t"):
            parts.append(part.strip(b" \t"))
    total_ms = total_s * 1000
    parts.append(b"forward;dur=%.3f" % max(total_ms - their_ms, 0.0))
    parts.append(b"total;dur=%.3f" % total_ms)
    return b", ".join(parts)
