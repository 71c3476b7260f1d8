"""`cgi`: RFC 3875 as Wagi does it.

- Environment: the RFC's meta-variables, HTTP_* for request headers, Wagi's X_FULL_URL,
  X_MATCHED_ROUTE and X_RAW_PATH_INFO. The policy's env is laid below: a meta-variable always says
  what the request says.
- Not passed on: Proxy (httpoxy, CVE-2016-5385), Authorization and Proxy-Authorization (RFC 3875
  §4.1.18; Wagi too), Connection and its kin, names with "_" (they would collide with "-"), and
  values that are not UTF-8. Repeated headers are joined as RFC 9110 §5.3 says.
- argv: the script's path, the spec's args, then the query's words between "&", percent-decoded (as
  Wagi's descendants do, and as RFC 3875 §4.4 wants of words). stdin: the body.
- stdout: a header block, ended by an empty line, in LF or CRLF; then the body. It must hold
  content-type or location (RFC 3875 §6.2; Wagi refuses others too). `status: 404 Not found` sets
  the status, location alone is a 302. A redirect goes to the client also where the RFC would have
  the server follow a local path itself. Framing and hop-by-hop fields are dropped; anything
  malformed is a 502.
"""

from __future__ import annotations

import re
from typing import Final

from edged.errors import BadRequest
from edged.interfaces import FunctionView, Invocation, InvocationResult, Slot

from .base import HttpRequest, HttpResponse, malformed, unquote

WORDS_MAX: Final = 64
BLOCK_BYTES_MAX: Final = 32 * 1024
"""Of the guest's header block (nginx takes 4 to 8 KiB from a CGI, Apache 8 KiB a field)."""
FIELDS_MAX: Final = 100

SERVER_SOFTWARE: Final = b"edged"

_WITHHELD: Final = frozenset(
    (
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"keep-alive",
        b"proxy",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_DROPPED: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"status",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # The gateway's own words, which a guest must not counterfeit; and x-edged-*.
        b"server-timing",
        b"x-request-id",
    )
)
# Possessive, and blanks are stripped afterwards: quantifiers that overlap made 6,000 spaces before
# a control character cost minutes of the event loop.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}+):([\t\x20-\x7e\x80-\xff]*+)\Z")
_STATUS: Final = re.compile(rb"([2-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_BLANK: Final = re.compile(rb"\n\r?\n")
_HOST: Final = re.compile(rb"(.*?)(?::([0-9]*))?\Z")


class Cgi:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

    async def invocation(
        self, request: HttpRequest, function: FunctionView, _slot: Slot, /
    ) -> Invocation:
        spec = function.spec
        env = {name.encode(): value.encode() for name, value in spec.policy.env.items()}
        env.update(header_variables(request.headers))
        env.update(meta_variables(request, function.name.encode()))
        words = query_words(request.query)
        script = b"/" + function.name.encode()
        return Invocation(
            policy=spec.policy,
            args=(script, *(arg.encode() for arg in spec.args), *words),
            env=tuple(env.items()),
            stdin=request.body,
            entrypoint=spec.entrypoint,
        )

    def response(
        self, _request: HttpRequest, _function: FunctionView, result: InvocationResult, /
    ) -> HttpResponse:
        stdout = result.stdout
        blank = _BLANK.search(stdout, 0, BLOCK_BYTES_MAX)
        if blank is None:
            raise malformed("the output has no header block ended by an empty line", result)
        return parse_block(stdout[: blank.start()], stdout[blank.end() :], result)


def meta_variables(request: HttpRequest, name: bytes) -> dict[bytes, bytes]:
    """RFC 3875 §4.1. Raises BadRequest for a path that cannot be one."""
    host = content_type = b""
    for key, value in request.headers:
        if key == b"host":
            host = value
        elif key == b"content-type":
            content_type = value
    path_info = unquote(request.path_info, what="the path", plus=False)
    server_name, server_port = _server(host, request.server)
    query = b"?" + request.query if request.query else b""
    address = request.client[0].encode() if request.client else b""
    return {
        b"AUTH_TYPE": b"",
        b"CONTENT_LENGTH": b"%d" % len(request.body),
        b"CONTENT_TYPE": content_type,
        b"GATEWAY_INTERFACE": b"CGI/1.1",
        b"PATH_INFO": path_info,
        b"PATH_TRANSLATED": path_info,
        b"QUERY_STRING": request.query,
        b"REMOTE_ADDR": address,
        b"REMOTE_HOST": address,
        b"REMOTE_USER": b"",
        b"REQUEST_METHOD": request.method.encode(),
        b"SCRIPT_NAME": b"/" + name,
        b"SERVER_NAME": server_name,
        b"SERVER_PORT": server_port,
        b"SERVER_PROTOCOL": b"HTTP/" + request.version.encode(),
        b"SERVER_SOFTWARE": SERVER_SOFTWARE,
        b"X_FULL_URL": b"%b://%b:%b%b%b"
        % (request.scheme.encode(), server_name, server_port, request.raw_path, query),
        b"X_MATCHED_ROUTE": b"/" + name + (b"/..." if request.path_info else b""),
        b"X_RAW_PATH_INFO": request.path_info,
    }


def _server(host: bytes, server: tuple[str, int] | None) -> tuple[bytes, bytes]:
    """Name and port from the Host header, else from the socket."""
    match = _HOST.match(host)
    name = match.group(1) if match else b""
    port = (match.group(2) if match else None) or b""
    if not name:
        name = server[0].encode() if server else b"localhost"
    if not port:
        port = b"%d" % server[1] if server else b"80"
    return name, port


def header_variables(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """HTTP_* of the headers that are passed on."""
    env: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _WITHHELD or b"_" in name:
            continue
        if not value.isascii():
            try:
                value.decode("utf-8")
            except UnicodeDecodeError:
                continue
        key = b"HTTP_" + name.upper().replace(b"-", b"_")
        if key in env:
            value = env[key] + (b"; " if name == b"cookie" else b", ") + value
        env[key] = value
    return env


def query_words(query: bytes) -> list[bytes]:
    """Raises BadRequest."""
    if not query:
        return []
    words = query.split(b"&", WORDS_MAX)
    if len(words) > WORDS_MAX:
        raise BadRequest(f"the query has more than {WORDS_MAX} words")
    return [unquote(word, what="the query", plus=True, lines=True) for word in words if word]


def parse_block(block: bytes, body: bytes, result: InvocationResult) -> HttpResponse:
    """Raises MalformedGuestOutput."""
    fields = block.split(b"\n")
    if len(fields) > FIELDS_MAX:
        raise malformed(f"the header block has more than {FIELDS_MAX} fields", result)
    status: int | None = None
    headers: list[tuple[bytes, bytes]] = []
    names: set[bytes] = set()
    for field in fields:
        match = _FIELD.match(field[:-1] if field.endswith(b"\r") else field)
        if match is None:
            raise malformed("a line of the header block is not 'name: value'", result)
        name = match.group(1).lower()
        value = match.group(2).strip(b" \t")
        if name in (b"content-type", b"location", b"status") and name in names:
            raise malformed(f"more than one {name.decode()} in the header block", result)
        names.add(name)
        if name == b"status":
            parsed = _STATUS.match(value)
            if parsed is None:
                raise malformed("status: not a number from 200 to 599", result)
            status = int(parsed.group(1))
        elif name not in _DROPPED and not name.startswith(b"x-edged-"):
            headers.append((name, value))
    if b"content-type" not in names and b"location" not in names:
        raise malformed("the header block has neither content-type nor location", result)
    if status is None:
        status = 302 if b"location" in names else 200
    return HttpResponse(status, headers, b"" if status in (204, 304) else body)
