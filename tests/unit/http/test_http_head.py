"""The strict gate, shape by shape; whole hostile requests are in tests/integration/http."""

from __future__ import annotations

import pytest

from edged.errors import BadRequest, HeadersTooLarge, PayloadTooLarge
from edged.http.head import CHUNKED, check_first_byte, parse_head
from edged.http.limits import HttpLimits

LIMITS = HttpLimits(body_bytes_max=1000)


def head(first: str, *lines: str) -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin1")


def get(*lines: str) -> bytes:
    return head("GET / HTTP/1.1", "Host: test", *lines)


def test_a_plain_request() -> None:
    parsed = parse_head(get("X-A:b", "X-C: \t d e \t"), LIMITS)
    assert (parsed.method, parsed.target, parsed.version) == ("GET", b"/", "1.1")
    assert parsed.headers == [(b"host", b"test"), (b"x-a", b"b"), (b"x-c", b"d e")]
    assert (parsed.body, parsed.keep_alive, parsed.expects_continue) == (0, True, False)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((), 0),
        (("Content-Length: 0",), 0),
        (("content-length: 0999",), 999),
        (("Transfer-Encoding: chunked",), CHUNKED),
        (("TRANSFER-ENCODING: Chunked",), CHUNKED),
    ],
)
def test_body_lengths(lines: tuple[str, ...], body: int) -> None:
    assert parse_head(get(*lines), LIMITS).body == body


@pytest.mark.parametrize("value", ["1001", "9" * 19])
def test_a_body_over_the_limit_is_refused_at_its_head(value: str) -> None:
    with pytest.raises(PayloadTooLarge):
        parse_head(get(f"Content-Length: {value}"), LIMITS)


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "1 ", "0x1", "1,1", "1.0", "1e1", "١", "1_0", "9" * 20]
)
def test_what_is_no_length(value: str) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x" + value.encode() + b"x\r\n\r\n"
    with pytest.raises(BadRequest):
        parse_head(raw, LIMITS)
    if value.strip() != "1":
        with pytest.raises(BadRequest):
            parse_head(raw.replace(b"x" + value.encode() + b"x", value.encode()), LIMITS)


@pytest.mark.parametrize(
    "host", ["a", "a.b-c.test", "a:8080", "a:", "127.0.0.1:1", "[::1]", "[::1]:80", "a_b", "%41"]
)
def test_hosts(host: str) -> None:
    assert parse_head(head("GET / HTTP/1.1", f"Host: {host}"), LIMITS).headers[0][1]


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "::1", "a\xe9", "<a>", '"', "a,b c"],
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(BadRequest):
        parse_head(head("GET / HTTP/1.1", f"Host: {host}"), LIMITS)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", b"/"),
        ("/a?b=%20&c|d", b"/a?b=%20&c|d"),
        ("//x", b"//x"),
        ("http://TEST", b"/"),
        ("HTTP://test/a?b", b"/a?b"),
        ("http://test?b", b"/?b"),
    ],
)
def test_targets(target: str, path: bytes) -> None:
    parsed = parse_head(head(f"GET {target} HTTP/1.1", "Host: test"), LIMITS)
    assert parsed.target == path


def test_options_of_everything() -> None:
    assert parse_head(head("OPTIONS * HTTP/1.1", "Host: a"), LIMITS).target == b"*"


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive, CLOSE", False),
        ("1.1", "enclosed", True),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_keep_alive(version: str, connection: str | None, keep: bool) -> None:
    lines = ["Host: a"] if connection is None else ["Host: a", f"Connection: {connection}"]
    assert parse_head(head(f"GET / HTTP/{version}", *lines), LIMITS).keep_alive == keep


def test_close_counts_in_any_connection_header() -> None:
    assert not parse_head(get("Connection: close", "Connection: keep-alive"), LIMITS).keep_alive


def test_expect_continue_is_not_for_http_10() -> None:
    assert parse_head(get("Expect: 100-Continue"), LIMITS).expects_continue
    old = head("GET / HTTP/1.0", "Host: a", "Expect: 100-continue")
    assert not parse_head(old, LIMITS).expects_continue


def test_counts_and_sizes() -> None:
    limits = HttpLimits(header_count_max=3, request_line_bytes_max=100)
    parse_head(get("a: b", "c: d"), limits)
    with pytest.raises(HeadersTooLarge):
        parse_head(get("a: b", "c: d", "e: f"), limits)
    with pytest.raises(HeadersTooLarge):
        parse_head(head("GET /" + "a" * 100 + " HTTP/1.1", "Host: a"), limits)


@pytest.mark.parametrize("byte", [0x00, 0x0A, 0x0D, 0x16, 0x20, 0x7F, 0x80, 0xFF])
def test_first_bytes_that_cannot_begin_a_request(byte: int) -> None:
    with pytest.raises(BadRequest):
        check_first_byte(bytes((byte,)))


def test_refusals_say_what_is_wrong() -> None:
    for raw, words in (
        (b"PRI * HTTP/2.0\r\n\r\n", "HTTP/2"),
        (b"GET / HTTP/3.0\r\n\r\n", "only HTTP/1.1 and HTTP/1.0"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", "percent-encode"),
        (get("Upgrade: h2c"), "upgrade: this server speaks HTTP/1.1 only"),
        (get("X : y"), "not a token"),
        (get("X: y", " z"), "folded"),
        (get("X: a\nb"), "bare CR or LF"),
        (get("X: a\x01b"), "header x: control character"),
    ):
        with pytest.raises(BadRequest, match=words):
            parse_head(raw, LIMITS)
