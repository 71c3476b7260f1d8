"""`edged load`: requests to a cluster's functions as clients in several regions make them."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import click

from edged.errors import ConfigError

from .common import EXIT_FAILED, SEED, EdgedCommand, clean, console, json_option, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from edged.lab.load.around import Target
    from edged.lab.load.session import Progress
    from edged.lab.load.spec import LoadSpec
    from edged.lab.load.summary import Group, Summary

FILE_BYTES_MAX: Final = 64 * 1024 * 1024

EXIT_INTERRUPTED: Final = 130
"""What shells say of Ctrl-C."""


@click.command(cls=EdgedCommand)
@click.argument("functions", nargs=-1, metavar="[FUNCTION[/PATH][?QUERY]]...")
@click.option("-f", "--file", metavar="FILE", type=click.Path(), help="A load in TOML.")
@click.option("--rate", metavar="R:T,…", help="Per second, for how long: 50:30s,50-200:10s.")
@click.option("--from", "sources", multiple=True, metavar="REGION[=WEIGHT]", help="Repeatable.")
@click.option("--routing", metavar="HOW", help="nearest (default), random, or node:NAME.")
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), help="Default: poisson.")
@click.option("--zipf", type=float, metavar="S", help="Popularity: the n-th by n^-S; default 0.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Default: 10.")
@click.option("--seed", type=SEED, default=1, show_default=True, help="Same seed, same plan.")
@click.option("--links", metavar="FILE", help="Links document; default: the cluster's.")
@click.option("--cluster", metavar="NAME", help="A local cluster; default: the newest running.")
@click.option(
    "--gateway", "gateways", multiple=True, metavar="[REGION=]URL", help="Instead of a cluster."
)
@click.option("-o", "--out", metavar="DIR", help="Keep rows, summary and histograms there.")
@json_option
def load(
    functions: tuple[str, ...],
    file: str | None,
    sources: tuple[str, ...],
    seed: int,
    links: str | None,
    cluster: str | None,
    gateways: tuple[str, ...],
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Put load on FUNCTIONs, open-loop, and tell latencies by region and start type.

    Requests begin when planned, however slow those before are, and latency counts from then. With
    several FUNCTIONs the first is the most popular (--zipf). Clients are in each --from region, or
    in every region that has a node, as far from the nodes as the links document says.

    Leaves with 1 if no request was answered well, or an answer was not the expected one; with 130
    if Ctrl-C or SIGTERM cut it short."""
    from edged.lab.load.session import Plan, run_session
    from edged.links import load_document

    from .distance import document_at, local_gateways

    spec = _spec(functions, file, sources, options)
    if gateways and cluster:
        raise ConfigError("--gateway names the targets already: leave out --cluster")
    targets, own_links = _gateways(gateways) if gateways else local_gateways(cluster)
    plan = Plan(
        spec=spec,
        targets=targets,
        document=document_at(own_links) if links is None else load_document(Path(links)),
        seed=seed,
        started_at_ms=time.time_ns() // 1_000_000,
        replay=shlex.join(["edged", *sys.argv[1:]]),
        folder=None if out is None else Path(out),
    )
    with _Display(spec, shown=not as_json) as display:
        summary = run_session(plan, display.update)
    if as_json:
        print_json(summary)
    else:
        _print(summary, out)
    if summary.cut_short:
        told = f"cut short after {summary.duration_s:.1f} of {spec.duration_s:g} s"
        click.echo(told, err=True)
        raise SystemExit(EXIT_INTERRUPTED)
    if summary.wrong_bodies or not summary.all.latency_ms.count:
        raise SystemExit(EXIT_FAILED)


# ---------------------------------------------------------------- what is asked
def _spec(
    functions: tuple[str, ...], file: str | None, sources: tuple[str, ...], options: dict[str, Any]
) -> LoadSpec:
    """Flags over the file. Raises ConfigError."""
    from edged.lab.load.spec import parse_load

    data = _read_toml(file) if file else {}
    data |= {key: value for key, value in options.items() if value is not None}
    if options["rate"] is not None:
        data.pop("stages", None)
    elif "stages" not in data and "rate" not in data:
        data["rate"] = "50:10s"
    if functions:
        data["functions"] = [_function(text) for text in functions]
    elif "functions" not in data:
        raise ConfigError("say what to ask: a FUNCTION, or functions in a --file")
    if sources:
        data["regions"] = dict(_weighted(text) for text in sources)
    return parse_load(data, where=file or "load")


def _read_toml(file: str) -> dict[str, Any]:
    import tomllib

    try:
        data = Path(file).read_bytes()
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{file}: more than {FILE_BYTES_MAX} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error


def _function(text: str) -> dict[str, str]:
    end = min((at for mark in "/?" if (at := text.find(mark)) >= 0), default=len(text))
    return {"name": unquote(text[:end]), "path": text[end:]}


def _weighted(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise ConfigError(f"--from {text!r}: write REGION or REGION=WEIGHT") from None


# ---------------------------------------------------------------- of whom
def _gateways(texts: tuple[str, ...]) -> tuple[list[Target], None]:
    from edged.lab.load.around import Target

    targets = []
    for text in texts:
        region, equals, url = text.partition("=")
        parts = urlsplit(url if equals and "://" not in region else text)
        region = region if equals and "://" not in region else "local"
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/"):
            raise ConfigError(f"--gateway {text!r}: write http://host:port or REGION=http://…")
        targets.append(Target(f"{parts.hostname}:{port}", region, parts.hostname, port))
    return targets, None


# ---------------------------------------------------------------- what is seen
class _Display:
    """One line on stderr that lives while the load runs; nothing where stderr is no terminal."""

    def __init__(self, spec: LoadSpec, *, shown: bool) -> None:
        self._spec = spec
        self._progress: Progress | None = None
        self._live: Any = None
        if shown and sys.stderr.isatty():
            from rich.live import Live

            from .common import progress_console

            self._live = Live(
                console=progress_console(), transient=True, get_renderable=self._line,
                refresh_per_second=4,
            )  # fmt: skip

    def __enter__(self) -> _Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        self._progress = progress

    def _line(self) -> RenderableType:
        from rich.text import Text

        if self._progress is None:
            return Text("connecting …")
        elapsed_s, in_flight, collected = self._progress
        p50, p99 = (collected.latency.quantile(share) / 1000 for share in (0.5, 0.99))
        text = Text(
            f"{min(elapsed_s, self._spec.duration_s):6.1f} of {self._spec.duration_s:g} s"
            f"  {collected.requests} requests, {in_flight} under way"
            f"  p50 {p50:.1f} ms p99 {p99:.1f} ms"
        )
        if collected.failed:
            text.append(f"  {collected.failed} failed", style="red")
        if collected.late:
            text.append("  this client is late", style="yellow")
        return text


def _print(summary: Summary, out: str | None) -> None:
    table = _table()
    _add(table, "all", summary.all)
    for title, groups in (
        ("stage", summary.stages),
        ("from", summary.regions),
        ("start", summary.starts),
        ("function", summary.functions),
    ):
        table.add_section()
        for name, group in groups.items():
            _add(table, f"{title} {clean(name)}", group)
    console().print(table)
    failed = summary.all.failed
    if failed:
        reasons = ", ".join(f"{count} {clean(why)}" for why, count in summary.all.errors.items())
        click.echo(f"{failed} of {summary.all.requests} requests failed: {reasons}")
    for wrong in summary.wrong_bodies:
        click.echo(
            clean(
                f"{wrong.count} answers of {wrong.function}, version {wrong.version}, had another"
                " body than expected"
            )
        )
    for warning in summary.warnings:
        click.echo(click.style("warning: ", fg="yellow", bold=True) + warning, err=True)
    if out is not None:
        click.echo(f"kept in {out}; edged report {shlex.quote(out)} draws it", err=True)


def _table() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for head in ("requests", "failed", "mean ms", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(head, justify="right")
    return table


def _add(table: Table, name: str, group: Group) -> None:
    found = group.latency_ms
    times = (found.mean, found.p50, found.p90, found.p99, found.p999, found.max)
    table.add_row(
        name,
        str(group.requests),
        str(group.failed or "–"),
        *(f"{value:.1f}" if found.count else "–" for value in times),
    )
