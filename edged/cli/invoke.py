"""`edged invoke`: one real HTTP request to a node's gateway."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

import click

from edged.errors import ConfigError

from .common import (
    EXIT_CLIENT_ERROR,
    EXIT_NOT_FOUND,
    EXIT_SERVER_ERROR,
    PROBLEM_PREFIX,
    EdgedCommand,
    clean,
    hint_for,
    print_error,
    print_json,
    target_options,
)

if TYPE_CHECKING:
    from .client import Answer, Client
    from .distance import Distance

CHUNK_BYTES: Final = 64 * 1024
PROBLEM_BYTES_MAX: Final = 64 * 1024
NOT_FOUND: Final = PROBLEM_PREFIX + "function-not-found"
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~-._"
"""RFC 3986's pchar, "/", and "%": what is escaped already stays as it is."""


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.argument("path", default="")
@click.option("-q", "--query", "queries", multiple=True, metavar="K=V", help="Repeatable.")
@click.option("-d", "--data", help="Request body; @FILE reads a file, @- stdin.")
@click.option("-X", "--request", "method", metavar="METHOD", help="Default: GET, with -d POST.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", help="Repeatable.")
@click.option("-i", "--include", is_flag=True, help="Print status and headers before the body.")
@click.option("-v", "--verbose", is_flag=True, help="Tell start type and times on stderr.")
@click.option("--gateway", metavar="URL", help="A gateway; no control API is asked.")
@click.option(
    "--from", "region", metavar="REGION", help="As a client there: nearest node, links' latency."
)
@target_options
def invoke(
    name: str,
    path: str,
    queries: tuple[str, ...],
    data: str | None,
    method: str | None,
    headers: tuple[str, ...],
    include: bool,
    verbose: bool,
    gateway: str | None,
    region: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Invoke function NAME through a node's gateway and print the answer's body as it is.

    Leaves with 0 for an answer below 400, 4 where there is no such function, 5 for any other 4xx,
    6 for 5xx. On a terminal a problem (RFC 9457) is told on stderr; elsewhere the body is printed
    as it is."""
    client, distance = _reached(gateway, region, where)
    body = _body(data)
    target = _target(name, path, queries)
    parsed = _headers(headers)
    started_at = time.perf_counter()
    verb = method or ("GET" if body is None else "POST")
    if distance is not None:
        distance.go(len(target) + len(body or b""))
    with _usage_errors(), client.open(verb, target, body=body, headers=parsed) as answer:
        if distance is not None:
            distance.come(_length(answer))
        head, problem = _problem(answer)
        if as_json:
            _print_document(answer, head, started_at)
        elif problem and sys.stdout.isatty() and not include:
            _print_problem(problem, name, where["node"])
        else:
            _print_raw(answer, head, include=include)
        if verbose and not as_json:
            _print_times(answer, client.name, time.perf_counter() - started_at)
    if problem.get("type") == NOT_FOUND:
        raise SystemExit(EXIT_NOT_FOUND)
    if answer.status >= 400:
        raise SystemExit(EXIT_CLIENT_ERROR if answer.status < 500 else EXIT_SERVER_ERROR)


def _reached(
    gateway: str | None, region: str | None, where: dict[str, Any]
) -> tuple[Client, Distance | None]:
    """Whom to ask, and how far it is for a client in `region`. Raises ConfigError."""
    from .client import Client
    from .target import find_target

    if region is None:
        if gateway:
            return Client(gateway, name=gateway, what="--gateway"), None
        return find_target(**where).gateway(), None
    if gateway or (where["control"] and not where["node"] and not where["cluster"]):
        raise ConfigError(
            "--from needs a local cluster, whose links say how far it is: --cluster NAME"
        )
    from .distance import seen_from

    found, distance = seen_from(region, cluster=where["cluster"], node=where["node"])
    return Client(f"http://{found.host}:{found.port}", name=found.name), distance


def _length(answer: Answer) -> int:
    length = answer.header("content-length") or ""
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else 0


def _problem(answer: Answer) -> tuple[bytes, dict[str, Any]]:
    """(what of the body was read, the problem document it is or nothing)."""
    kind = (answer.header("content-type") or "").partition(";")[0].strip().lower()
    if answer.status < 400 or kind != "application/problem+json":
        return b"", {}
    head = answer.read(PROBLEM_BYTES_MAX)
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        return head, {}
    return head, document if isinstance(document, dict) else {}


def _print_problem(problem: dict[str, Any], name: str, node: str | None) -> None:
    kind = str(problem.get("type", ""))
    code = f" {kind.removeprefix(PROBLEM_PREFIX)}" if kind.startswith(PROBLEM_PREFIX) else ""
    text = problem.get("detail") or problem.get("title") or "no details"
    status = problem.get("status", "")
    logs = f"edged logs {name}" + (f" --node {node}" if node else "")
    failed = isinstance(status, int) and status >= 500
    print_error(f"{status}{code}: {text}", hint_for(kind) or (logs if failed else ""))


class _usage_errors:  # noqa: N801 - used as a statement
    """http.client refuses CR, LF and the like in methods, paths and headers with ValueError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ValueError):
            raise ConfigError(f"not a valid HTTP request: {error}") from error


def _target(name: str, path: str, queries: tuple[str, ...]) -> str:
    """Request target. Keys and values of -q are escaped; what PATH escapes itself stays."""
    path, mark, own_query = path.partition("?")
    target = "/" + quote(name, safe="")
    if path:
        target += "/" + quote(path.lstrip("/"), safe=_PATH_SAFE)
    words = [quote(own_query, safe=_PATH_SAFE + "?")] if mark else []
    for item in queries:
        key, equals, value = item.partition("=")
        words.append(quote_plus(key) + (f"={quote_plus(value)}" if equals else ""))
    return target + ("?" + "&".join(words) if words else "")


def _body(data: str | None) -> bytes | None:
    """Raises ConfigError."""
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ConfigError(f"-d {data}: cannot be read: {error.strerror}") from error


def _headers(lines: tuple[str, ...]) -> list[tuple[str, str]]:
    """All of them in their order, repeated names too. Raises ConfigError."""
    parsed: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"-H {line!r}: write 'Name: value'")
        parsed.append((name.strip(), value.strip()))
    return parsed


def _print_raw(answer: Answer, head: bytes, *, include: bool) -> None:
    """On a terminal a newline ends it, as the prompt is to start on a line of its own."""
    out = sys.stdout.buffer
    last = b"\n"
    if include:
        out.write(f"HTTP/1.1 {answer.status} {answer.reason}\r\n".encode("latin-1"))
        for name, value in answer.headers():
            out.write(f"{name}: {value}\r\n".encode("latin-1"))
        out.write(b"\r\n")
    chunk = head
    while chunk := chunk or answer.read_some(CHUNK_BYTES):
        out.write(chunk)
        out.flush()
        last, chunk = chunk[-1:], b""
    if last != b"\n" and sys.stdout.isatty():
        out.write(b"\n")
    out.flush()


def _print_times(answer: Answer, node: str, elapsed_s: float) -> None:
    from .render import duration

    start = answer.header("x-edged-start") or "–"
    served_by = answer.header("x-edged-node") or node
    timing = ", ".join(f"{name} {duration(seconds)}" for name, seconds in _timings(answer).items())
    text = f"{answer.status} from {served_by}: {start} start, {duration(elapsed_s)} in all"
    click.echo(clean(text + (f" ({timing})" if timing else "")), err=True)


def _timings(answer: Answer) -> dict[str, float]:
    """Seconds by phase, of the Server-Timing header (W3C: durations in milliseconds)."""
    found: dict[str, float] = {}
    for entry in (answer.header("server-timing") or "").split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            try:
                if key.strip() == "dur":
                    found[name] = float(value) / 1000
            except ValueError:
                continue
    return found


def _print_document(answer: Answer, head: bytes, started_at: float) -> None:
    import base64

    from .client import ANSWER_BYTES_MAX

    data = head + answer.read(ANSWER_BYTES_MAX)
    try:
        body = {"body": data.decode("utf-8")}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(data).decode()}
    print_json(
        {
            "status": answer.status,
            "node": answer.header("x-edged-node"),
            "start": answer.header("x-edged-start"),
            "elapsed_s": round(time.perf_counter() - started_at, 6),
            "timing_s": _timings(answer),
            "headers": [[name.lower(), value] for name, value in answer.headers()],
            **body,
        }
    )
