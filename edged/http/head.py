"""The strict gate: one request head, from raw bytes to a value or a typed refusal. No I/O.

Rules: RFC 9112 without its leniencies. Lines end in CRLF; no folding; no control characters; names
are tokens with nothing before the colon; exactly one valid Host on 1.1; a body has exactly one
length, Content-Length (digits, once) or `Transfer-Encoding: chunked` (exactly, once), never both.
What could be read in two ways is refused, as that is what request smuggling is made of; whatever
passes, h11 reads the same way (tests/property/test_http_head_properties.py).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from edged.errors import BadRequest, HeadersTooLarge, PayloadTooLarge

from .limits import HttpLimits

END: Final = b"\r\n\r\n"

# 1: method, 2: target, 3: minor version. RFC 9110 §5.6.2 token; the target is visible ASCII but for
# "#", as a fragment is never sent.
_REQUEST_LINE: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!\"$-~]+) HTTP/1\.([01])\Z"
)
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# Possessive throughout: linear in the input, whatever it is.
_HEADERS: Final = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\Z")
_HEADER: Final = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\Z")
# RFC 3986 host [":" port]; empty is not a host.
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?\Z"
)
_DIGITS: Final = re.compile(rb"[0-9]{1,19}\Z")
_ABSOLUTE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)\Z")

CHUNKED: Final = -1


class Head(NamedTuple):
    """A request head that broke no rule."""

    method: str
    target: bytes
    """Origin form, or "*"."""
    version: str
    """ "1.1" or "1.0"."""
    headers: list[tuple[bytes, bytes]]
    """Lower-case names; values without surrounding white space."""
    body: int
    """Bytes of body to come; CHUNKED: as its chunks say."""
    keep_alive: bool
    expects_continue: bool


def check_first_byte(data: bytes | bytearray) -> None:
    """A TLS hello or line noise is refused at its first byte instead of after a timeout."""
    if not 0x21 <= data[0] <= 0x7E:
        raise BadRequest("not an HTTP/1.1 request")


def parse_head(raw: bytes, limits: HttpLimits) -> Head:
    """`raw` is everything up to and with the first CRLF CRLF.

    Raises BadRequest, HeadersTooLarge, PayloadTooLarge."""
    line_end = raw.find(b"\r\n")
    if line_end > limits.request_line_bytes_max:
        raise HeadersTooLarge(
            f"the request line is over {limits.request_line_bytes_max} bytes",
        )
    line = _REQUEST_LINE.match(raw, 0, line_end)
    if line is None:
        raise _bad_request_line(raw[:line_end])
    block = raw[line_end + 2 : -2]
    if block.count(b"\r\n") > limits.header_count_max:
        raise HeadersTooLarge(f"more than {limits.header_count_max} header fields")
    if _HEADERS.match(block) is None:
        raise _bad_header(block)
    method, target, minor = line.group(1, 2, 3)
    is_11 = minor == b"1"
    headers: list[tuple[bytes, bytes]] = []
    host = length = coding = connection = None
    expects_continue = False
    for field in block[:-2].split(b"\r\n") if block else ():
        name, _, value = field.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        headers.append((name, value))
        if name in _SPECIAL:
            if name == b"host":
                host = _only(host, name, value)
            elif name == b"content-length":
                length = _only(length, name, value)
            elif name == b"transfer-encoding":
                coding = _only(coding, name, value)
            elif name == b"connection":
                connection = value if connection is None else connection + b"," + value
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise BadRequest("Expect: only 100-continue is understood")
                expects_continue = is_11
            else:
                raise BadRequest(f"{name.decode()}: this server speaks HTTP/1.1 only")
    _check_host(host, required=is_11)
    return Head(
        method.decode(),
        _origin_form(method, target, host),
        "1.1" if is_11 else "1.0",
        headers,
        _body_length(length, coding, limits, is_11=is_11),
        is_11 if connection is None else _keep_alive(connection, is_11=is_11),
        expects_continue,
    )


_SPECIAL: Final = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"expect",
        b"upgrade",
        b"http2-settings",
    )
)


def _only(before: bytes | None, name: bytes, value: bytes) -> bytes:
    if before is not None:
        raise BadRequest(f"more than one {name.decode()} header")
    return value


def _check_host(host: bytes | None, *, required: bool) -> None:
    if host is None:
        if required:
            raise BadRequest("HTTP/1.1 without a host header")
    elif _HOST.match(host) is None:
        raise BadRequest("host header: not a host name with an optional port")


def _body_length(
    length: bytes | None, coding: bytes | None, limits: HttpLimits, *, is_11: bool
) -> int:
    if coding is not None:
        if length is not None:
            raise BadRequest("both content-length and transfer-encoding")
        if not is_11:
            raise BadRequest("transfer-encoding in an HTTP/1.0 request")
        if coding.lower() != b"chunked":
            raise BadRequest("transfer-encoding: only chunked is understood")
        return CHUNKED
    if length is None:
        return 0
    if _DIGITS.match(length) is None:
        raise BadRequest("content-length: not a number of bytes")
    size = int(length)
    if size > limits.body_bytes_max:
        raise PayloadTooLarge(f"the body is over {limits.body_bytes_max} bytes")
    return size


def _keep_alive(connection: bytes, *, is_11: bool) -> bool:
    options = [option.strip(b" \t") for option in connection.lower().split(b",")]
    if b"close" in options:
        return False
    return is_11 or b"keep-alive" in options


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The target as a path with an optional query. RFC 9112 §3.2."""
    if method == b"CONNECT":
        raise BadRequest("CONNECT: this server is not a proxy")
    if target[0] == 0x2F:  # "/"
        return target
    if target == b"*":
        if method == b"OPTIONS":
            return target
        raise BadRequest("'*' is a target of OPTIONS only")
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise BadRequest("the request target is neither a path nor a URL")
    scheme, authority, rest = absolute.group(1, 2, 3)
    if scheme.lower() != b"http":
        raise BadRequest("the request target is of another scheme than http")
    if host is None or authority.lower() != host.lower():
        raise BadRequest("the request target's host is not the host header's")
    return rest if rest.startswith(b"/") else b"/" + rest


def _bad_request_line(line: bytes) -> BadRequest:
    if line.startswith(b"PRI * HTTP/2"):
        return BadRequest("HTTP/2 without TLS is not spoken here; use HTTP/1.1")
    if b"\n" in line:
        return BadRequest("a line ends in a bare LF")
    if any(byte >= 0x7F for byte in line):
        return BadRequest("the request line is not visible ASCII; percent-encode the target")
    if re.search(rb" HTTP/(?!1\.[01]\Z)\S*\Z", line):
        return BadRequest("only HTTP/1.1 and HTTP/1.0 are spoken here")
    return BadRequest("malformed request line")


def _bad_header(block: bytes) -> BadRequest:
    for field in block.split(b"\r\n"):
        if field and _HEADER.match(field) is None:
            if b"\n" in field or b"\r" in field:
                return BadRequest("a header holds a bare CR or LF")
            if field[:1] in b" \t":
                return BadRequest("a header is folded over lines")
            name, colon, _ = field.partition(b":")
            if not colon or re.fullmatch(_TOKEN, name) is None:
                return BadRequest("a header's name is not a token followed by ':'")
            return BadRequest(f"header {name.decode().lower()}: control character in its value")
    return BadRequest("malformed headers")
