"""`raw`: the thesis's proof of concept. Query keys become the environment, stdout is the body.

- `?name=value` sets `name`; a key without "=" is set to ""; of a repeated key the last wins. The
  policy's env wins over the query: an operator pins a variable by naming it there.
- argv is the function's name and the spec's args; the request's body is stdin.
- The answer is stdout as it is: text/plain if it starts as UTF-8, else application/octet-stream.

CR and LF are refused in names, but are data in values (a multi-line text field); NUL ends C strings
and is refused in both.
"""

from __future__ import annotations

import codecs
from typing import Final

from edged.errors import BadRequest
from edged.interfaces import FunctionView, Invocation, InvocationResult, Slot

from .base import BYTES, TEXT, HttpRequest, HttpResponse, unquote

KEYS_MAX: Final = 64
"""As many variables as a policy may set."""
KEY_BYTES_MAX: Final = 128
VALUE_BYTES_MAX: Final = 8192
JUDGED_BYTES: Final = 64 * 1024
"""Of stdout, in the event loop; all of a policy's 256 MiB would hold everyone up for 0.1 s."""

_OK_TEXT: Final = [(b"content-type", TEXT)]
_OK_BYTES: Final = [(b"content-type", BYTES)]


class Raw:
    methods = ("GET", "HEAD", "POST")

    async def invocation(
        self, request: HttpRequest, function: FunctionView, _slot: Slot, /
    ) -> Invocation:
        spec = function.spec
        policy = spec.policy
        env = query_env(request.query) if request.query else {}
        for name, value in policy.env.items():
            env[name.encode()] = value.encode()
        return Invocation(
            policy=policy,
            args=(function.name.encode(), *(arg.encode() for arg in spec.args)),
            env=tuple(env.items()),
            stdin=request.body,
            entrypoint=spec.entrypoint,
        )

    def response(
        self, _request: HttpRequest, _function: FunctionView, result: InvocationResult, /
    ) -> HttpResponse:
        stdout = result.stdout
        return HttpResponse(200, _OK_TEXT if _looks_like_text(stdout) else _OK_BYTES, stdout)


def _looks_like_text(stdout: bytes) -> bool:
    """By its first JUDGED_BYTES; a character that they cut is no fault."""
    head = stdout[:JUDGED_BYTES]
    if head.isascii():
        return True
    try:
        codecs.utf_8_decode(head, "strict", len(head) == len(stdout))
    except UnicodeDecodeError:
        return False
    return True


def query_env(query: bytes) -> dict[bytes, bytes]:
    """Variables of a query. Raises BadRequest."""
    env: dict[bytes, bytes] = {}
    words = query.split(b"&", KEYS_MAX)
    if len(words) > KEYS_MAX:
        raise BadRequest(f"the query has more than {KEYS_MAX} keys")
    for word in words:
        if not word:
            continue
        key, _, value = word.partition(b"=")
        name = unquote(key, what="a query key", plus=True)
        if not name:
            raise BadRequest("a query key is empty")
        if b"=" in name:
            raise BadRequest("a query key holds '='")
        if len(name) > KEY_BYTES_MAX:
            raise BadRequest(f"a query key is over {KEY_BYTES_MAX} bytes")
        if len(value) > VALUE_BYTES_MAX:
            raise BadRequest(f"a query value is over {VALUE_BYTES_MAX} bytes")
        env[name] = unquote(value, what="a query value", plus=True, lines=True)
    return env
