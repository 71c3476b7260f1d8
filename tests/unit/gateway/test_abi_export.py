"""`export`: typed query parameters to an exported function, and its results."""

from __future__ import annotations

import math

import pytest
from abi_support import Exports, function, request, result

from edged.errors import BadRequest, FunctionNotFound
from edged.gateway.abi.export import Export
from edged.interfaces import ExportCall

EXPORTS = Exports(add=("i32", "i32"), f=("f64",), g=("f32",), big=("i64",), none=(), odd=("v128",))


async def call(path: bytes, query: bytes, *, entrypoint: str = "") -> ExportCall | None:
    made = await Export().invocation(
        request(path_info=path, query=query),
        function(entrypoint=entrypoint),
        EXPORTS,  # type: ignore[arg-type]
    )
    return made.export


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        (b"/add", b"a=5&b=10", ExportCall("add", ("5", "10"))),
        (b"/add/", b"b=10&a=5", ExportCall("add", ("10", "5"))),
        (b"/add", b"a=-1&a=%2B7", ExportCall("add", ("-1", "+7"))),
        (b"/a%64d", b"a=1&b=4294967295", ExportCall("add", ("1", "4294967295"))),
        (b"/big", b"x=-9223372036854775808", ExportCall("big", ("-9223372036854775808",))),
        (b"/f", b"x=1.5e3", ExportCall("f", ("1.5e3",))),
        (b"/f", b"x=-inf", ExportCall("f", ("-inf",))),
        (b"/f", b"x=NaN", ExportCall("f", ("NaN",))),
        (b"/g", b"x=.5", ExportCall("g", (".5",))),
        (b"/none", b"", ExportCall("none", ())),
    ],
)
async def test_calls(path: bytes, query: bytes, expected: ExportCall) -> None:
    assert await call(path, query) == expected


async def test_the_entrypoint_is_called_without_a_path() -> None:
    assert await call(b"", b"a=1&b=2", entrypoint="add") == ExportCall("add", ("1", "2"))
    assert await call(b"/", b"a=1&b=2", entrypoint="add") == ExportCall("add", ("1", "2"))
    assert await call(b"/none", b"", entrypoint="add") == ExportCall("none", ())


@pytest.mark.parametrize("path", [b"", b"/", b"/absent", b"/add/more", b"//", b"/" + b"a" * 300])
async def test_what_is_no_export(path: bytes) -> None:
    with pytest.raises(FunctionNotFound):
        await call(path, b"")


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        (b"/add", b"", r"takes 2 parameters \(i32, i32\), got 0"),
        (b"/add", b"a=1", "got 1"),
        (b"/add", b"a=1&b=2&c=3", "got 3"),
        (b"/add", b"a=1&b=x", r"parameter 2 \('b'\) is not an i32"),
        (b"/add", b"a=1.5&b=1", r"parameter 1 \('a'\)"),
        (b"/add", b"a=&b=1", r"parameter 1 \('a'\)"),
        (b"/add", b"a=2147483647&b=4294967296", "parameter 2"),
        (b"/add", b"a=-2147483649&b=1", "parameter 1"),
        (b"/add", b"a=1&b", "name=value"),
        (b"/add", b"a=1&b=%D9%A1", "parameter 2"),
        (b"/big", b"x=18446744073709551616", "parameter 1"),
        (b"/f", b"x=1,5", "is not an f64"),
        (b"/f", b"x=0x10", "is not an f64"),
        (b"/f", b"x=" + b"1" * 200, "is not an f64"),
        (b"/odd", b"x=1", "v128"),
        (b"/add", b"a=%00&b=1", "NUL"),
        (b"/add", b"&".join([b"a=1"] * 65), "more than 64"),
        (b"/add%00", b"", "NUL"),
        (b"/%ff", b"", "UTF-8"),
    ],
)
async def test_bad_parameters_are_named(path: bytes, query: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        await call(path, query)


@pytest.mark.parametrize(
    ("values", "status", "body", "kind"),
    [
        ((), 204, b"", None),
        ((15,), 200, b"15\n", b"text/plain; charset=utf-8"),
        ((-(1 << 63),), 200, b"-9223372036854775808\n", b"text/plain; charset=utf-8"),
        ((0.1,), 200, b"0.1\n", b"text/plain; charset=utf-8"),
        ((math.nan,), 200, b"NaN\n", b"text/plain; charset=utf-8"),
        ((1, 2), 200, b"[1,2]\n", b"application/json"),
        (
            ((1 << 63) - 1, 1.5, math.nan, math.inf, -math.inf),
            200,
            b'[9223372036854775807,1.5,"NaN","Infinity","-Infinity"]\n',
            b"application/json",
        ),
    ],
)
def test_results(
    values: tuple[int | float, ...], status: int, body: bytes, kind: bytes | None
) -> None:
    response = Export().response(request(), function(), result(values=values))
    assert (response.status, response.body) == (status, body)
    assert response.headers == ([] if kind is None else [(b"content-type", kind)])


@pytest.mark.parametrize(
    ("accept", "body"),
    [
        (b"application/json", b'"NaN"\n'),
        (b"text/html, application/json;q=0.9", b'"NaN"\n'),
        (b"*/*", b"NaN\n"),
        (b"text/plain, application/json", b"NaN\n"),
    ],
)
def test_one_value_is_json_for_who_accepts_that(accept: bytes, body: bytes) -> None:
    asked = request(headers=[(b"host", b"a"), (b"accept", accept)])
    assert Export().response(asked, function(), result(values=(math.nan,))).body == body


async def test_a_number_made_to_be_slow_is_refused_as_fast_as_any() -> None:
    with pytest.raises(BadRequest):
        await call(b"/f", b"x=" + b"1" * 100_000 + b"x")
