"""`export`: call an exported function with typed query parameters.

`/{function}/{export}?a=5&b=10`, or `/{function}?…` where the spec names an entrypoint. Values are
positional, in the query's order; their names are the caller's own. They are parsed by the export's
wasm types: i32 and i64 as signed or unsigned decimal, f32 and f64 as decimal, inf or nan.

Results: none is 204; one is text (`15`); several, or one for a client that accepts JSON rather than
text, are a JSON value: integers exact, NaN and infinities as the strings "NaN", "Infinity",
"-Infinity", since JSON has no such numbers.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from edged.errors import BadRequest, FunctionNotFound
from edged.interfaces import ExportCall, FunctionView, Invocation, InvocationResult, Slot

from .base import JSON, TEXT, HttpRequest, HttpResponse, header, unquote

PARAMS_MAX: Final = 64
TEXT_BYTES_MAX: Final = 128
"""Of one value: f64's longest exact decimals have some 770 digits, but 17 say the same."""

_EXPORT: Final = re.compile(rb"/([^/]{1,256})/?\Z")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}\Z")
_FLOAT: Final = re.compile(
    r"[+-]?(?:(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:e[+-]?[0-9]{1,4})?|inf|nan)\Z", re.IGNORECASE
)
_BITS: Final = {"i32": 32, "i64": 64}


class Export:
    methods = ("GET", "HEAD")

    async def invocation(
        self, request: HttpRequest, function: FunctionView, slot: Slot, /
    ) -> Invocation:
        name = export_name(request.path_info, function)
        values = query_values(request.query)
        types = await slot.params(name)
        if types is None:
            raise FunctionNotFound(f"{function.name} has no exported function {name!r}")
        return Invocation(
            policy=function.spec.policy,
            args=(function.name.encode(), *(arg.encode() for arg in function.spec.args)),
            env=tuple((k.encode(), v.encode()) for k, v in function.spec.policy.env.items()),
            stdin=request.body,
            export=ExportCall(name, check_values(name, types, values)),
        )

    def response(
        self, request: HttpRequest, _function: FunctionView, result: InvocationResult, /
    ) -> HttpResponse:
        values = result.values
        if not values:
            return HttpResponse(204, [], b"")
        if len(values) > 1:
            body = msgspec.json.encode([_json_value(value) for value in values]) + b"\n"
        elif _prefers_json(request):
            body = msgspec.json.encode(_json_value(values[0])) + b"\n"
        else:
            return HttpResponse(200, [(b"content-type", TEXT)], f"{_text(values[0])}\n".encode())
        return HttpResponse(200, [(b"content-type", JSON)], body)


def export_name(path_info: bytes, function: FunctionView) -> str:
    """Raises FunctionNotFound, BadRequest."""
    if path_info in (b"", b"/"):
        if function.spec.entrypoint:
            return function.spec.entrypoint
        raise FunctionNotFound(f"name an export: /{function.name}/{{export}}")
    match = _EXPORT.match(path_info)
    if match is None:
        raise FunctionNotFound(f"{function.name}: the path is not one export's name")
    return unquote(match.group(1), what="the export's name", plus=False).decode()


def query_values(query: bytes) -> list[tuple[str, str]]:
    """(name, value) in order. Raises BadRequest."""
    if not query:
        return []
    words = query.split(b"&", PARAMS_MAX)
    if len(words) > PARAMS_MAX:
        raise BadRequest(f"the query has more than {PARAMS_MAX} parameters")
    pairs = []
    for word in words:
        name, equals, value = word.partition(b"=")
        if not equals:
            raise BadRequest("write each parameter as name=value")
        label = unquote(name, what="a parameter's name", plus=True).decode()
        text = unquote(value, what=f"parameter {label[:64]!r}", plus=True).decode()
        pairs.append((label, text.strip(" ")))
    return pairs


def check_values(
    export: str, types: tuple[str, ...], values: list[tuple[str, str]]
) -> tuple[str, ...]:
    """The values' texts. Raises BadRequest naming the parameter that does not fit."""
    if len(values) != len(types):
        raise BadRequest(
            f"{export} takes {len(types)} parameters ({', '.join(types)}), got {len(values)}",
            expected=list(types),
        )
    for position, (kind, (name, text)) in enumerate(zip(types, values, strict=True), 1):
        if not _fits(kind, text):
            raise BadRequest(
                f"{export}: parameter {position} ({name[:64]!r}) is not {_article(kind)}",
                parameter=name[:64],
                expected=kind,
            )
    return tuple(text for _, text in values)


def _fits(kind: str, text: str) -> bool:
    if len(text) > TEXT_BYTES_MAX:
        return False
    bits = _BITS.get(kind)
    if bits is not None:
        if _INTEGER.match(text) is None:
            return False
        return -(1 << (bits - 1)) <= int(text) < (1 << bits)
    return kind in ("f32", "f64") and _FLOAT.match(text) is not None


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "if" else f"something HTTP can carry ({kind})"


def _prefers_json(request: HttpRequest) -> bool:
    accept = header(request, b"accept")
    return accept is not None and b"application/json" in accept and b"text/plain" not in accept


def _json_value(value: float) -> int | float | str:
    return value if math.isfinite(value) else _text(value)


def _text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)
