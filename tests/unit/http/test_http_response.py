"""Response heads: framing by version, method and status, and what may not get out."""

from __future__ import annotations

import pytest

from edged.errors import (
    ConcurrencyExceeded,
    DiskFull,
    EdgedError,
    GuestTrap,
    MethodNotAllowed,
    Overloaded,
    PeerError,
)
from edged.http.response import BadResponse, Encoder, problem_response


def head(
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    version: str = "1.1",
    status: int = 200,
    whole: int | None = 3,
    close: bool = False,
) -> tuple[dict[str, str], int | None, bool]:
    raw, left, closes = Encoder().head(
        method=method,
        version=version,
        status=status,
        headers=headers,
        whole_bytes=whole,
        close=close,
    )
    first, *lines, end, nothing = raw.decode("latin1").split("\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert (end, nothing) == ("", "")
    fields = [line.split(": ", 1) for line in lines]
    assert len({name for name, _ in fields}) == len(fields)
    return dict(fields), left, closes


def test_a_whole_body_has_its_length() -> None:
    fields, left, close = head((b"X-A", b"b"))
    assert fields["content-length"] == "3"
    assert fields["x-a"] == "b"
    assert fields["date"].endswith(" GMT")
    assert (left, close) == (3, False)


def test_framing_belongs_to_the_adapter() -> None:
    fields, _, _ = head(
        (b"Connection", b"keep-alive"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Keep-Alive", b"x"),
        (b"Upgrade", b"h2c"),
    )
    assert set(fields) == {"date", "content-length"}


@pytest.mark.parametrize(
    ("version", "framing", "closes"),
    [("1.1", ("transfer-encoding", "chunked"), False), ("1.0", ("connection", "close"), True)],
)
def test_a_stream_of_unknown_length(version: str, framing: tuple[str, str], closes: bool) -> None:
    fields, left, close = head(version=version, whole=None)
    assert fields[framing[0]] == framing[1]
    assert (left, close) == (None, closes)


def test_a_stream_of_known_length() -> None:
    fields, left, _ = head((b"content-length", b"7"), whole=None)
    assert (fields["content-length"], left) == ("7", 7)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_without_a_body(method: str, status: int) -> None:
    fields, left, _ = head(method=method, status=status)
    assert left == 0
    assert ("content-length" in fields) == (method == "HEAD")


def test_the_applications_date_wins() -> None:
    assert head((b"Date", b"then"))[0]["date"] == "then"


def test_a_status_without_a_phrase() -> None:
    assert head(status=299)


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x\r\ny", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"content-length", b"x"),
        (b"content-length", b"4"),
    ],
)
def test_what_could_split_or_frame_falsely_is_not_sent(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(BadResponse):
        head(header)


@pytest.mark.parametrize("status", [0, 101, 199, 1000])
def test_statuses_that_are_none(status: int) -> None:
    with pytest.raises(BadResponse):
        Encoder().head(
            method="GET", version="1.1", status=status, headers=(), whole_bytes=0, close=False
        )


def test_problems() -> None:
    status, headers, body = problem_response(
        GuestTrap("it trapped", private="backtrace"), extra_headers=[(b"x", b"y")], instance="urn:i"
    )
    assert status == 500
    assert (b"x", b"y") in headers
    assert (b"content-type", b"application/problem+json") in headers
    assert b'"instance":"urn:i"' in body
    assert b"backtrace" not in body
    assert body.endswith(b"}\n")


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (Overloaded("x"), True),
        (ConcurrencyExceeded("x"), True),
        (DiskFull("x"), True),
        (PeerError("x"), True),
        (EdgedError("x"), False),
    ],
)
def test_retry_after_goes_with_what_is_retryable(error: EdgedError, retry: bool) -> None:
    _, headers, _ = problem_response(error)
    assert any(name == b"retry-after" for name, _ in headers) == retry


def test_allow_goes_with_405() -> None:
    _, headers, _ = problem_response(MethodNotAllowed("x", allow=["GET", "HEAD"]))
    assert (b"allow", b"GET, HEAD") in headers
