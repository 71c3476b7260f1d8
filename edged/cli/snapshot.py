"""`edged snapshot`: initialise a module once, and write it down as a module. Needs no daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .common import EdgedCommand, json_option, print_json
from .deploy import Size

if TYPE_CHECKING:
    from edged.interfaces import Examination, InitCall, InitPlan, SnapshotReport
    from protocol.function import Mount

MEMORY_BYTES: Final = 1024 * 1024 * 1024
TABLE_ELEMENTS: Final = 1_000_000
NAMES_SHOWN: Final = 8
NAME_CHARS_MAX: Final = 120
OUTPUT_CHARS_MAX: Final = 2000
"""Of what the initialiser printed, in the table for people."""


@click.command(cls=EdgedCommand)
@click.argument("module", metavar="MODULE", type=click.Path())
@click.option(
    "-o", "--output", metavar="OUT.wasm", type=click.Path(), help="Where the snapshot goes."
)
@click.option(
    "--init",
    metavar="EXPORT",
    default="",
    help="Initialiser to call; default: wizer.initialize, wizer-initialize or _initialize.",
)
@click.option(
    "--call",
    "calls",
    multiple=True,
    metavar="NAME(ARG,…)",
    help="Another export to call, with numbers, texts and lists of texts as in JSON; repeatable.",
)
@click.option(
    "--rename",
    multiple=True,
    metavar="NEW=OLD",
    help="Export OLD as NEW; default: _start=wizer.resume, where both are.",
)
@click.option("--keep-init", is_flag=True, help="Go on exporting the initialiser.")
@click.option("--strip", is_flag=True, help="Drop custom sections: names, debug information.")
@click.option("--arg", "args", multiple=True, help="argv for the initialiser; repeatable.")
@click.option("--env", multiple=True, metavar="K=V", help="Its environment; repeatable.")
@click.option(
    "--dir", "dirs", multiple=True, metavar="DIR[:/PATH]", help="Read-only directory; repeatable."
)
@click.option(
    "--zero",
    "zeros",
    multiple=True,
    metavar="MODULE.NAME",
    help="An import besides WASI (MODULE.*: all of it) that gives zeros when called; any other ends"
    " the initialiser; repeatable.",
)
@click.option("--real-clock", is_flag=True, help="Real time and random numbers: not repeatable.")
@click.option("--timeout-ms", type=int, default=60_000, show_default=True, help="Of all calls.")
@click.option("--memory", "memory_bytes", type=Size(), default=MEMORY_BYTES, help="Default: 1GiB.")
@click.option("--examine", "only_examine", is_flag=True, help="Run nothing: tell what can be told.")
@json_option
def snapshot(
    module: str,
    output: str | None,
    timeout_ms: int,
    memory_bytes: int,
    dirs: tuple[str, ...],
    only_examine: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Make a snapshot of MODULE (.wasm or .wat): what its initialiser did is done already when an
    instance of it starts. Like Wizer; edged/docs/SNAPSHOTS.md says what can be captured, and what
    cannot.

    Initialised in the sandbox of a function, deterministically: the same module gives the same
    snapshot."""
    from edged.errors import ConfigError
    from edged.snapshot.api import binary_of, examine, make_snapshot

    data = binary_of(Path(module).read_bytes())
    found = examine(data)
    if only_examine:
        _show_examination(found, as_json=as_json)
        return
    if output is None:
        raise ConfigError("say where the snapshot goes: -o OUT.wasm")
    target = Path(output).resolve()
    if not target.parent.is_dir():
        raise ConfigError(f"-o {output}: no such directory")
    mounts = [_mount(index, text) for index, text in enumerate(dirs)]
    policy = _policy(timeout_ms, memory_bytes, tuple(mount for mount, _source in mounts))
    sources = {mount.source: source for mount, source in mounts}
    made, report = make_snapshot(data, _plan(data, **wanted), policy, mounts=sources)
    _write(target, made)
    if as_json:
        print_json(report)
    else:
        _show(report)


def _write(target: Path, made: bytes) -> None:
    """Whole or not at all, but for what is no file: a pipe, a device. Raises ConfigError."""
    from edged.errors import ConfigError
    from edged.files import write_file

    if not target.exists() or target.is_file():
        write_file(target, made, secret=False)
        return
    try:
        target.write_bytes(made)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error


def _policy(timeout_ms: int, memory_bytes: int, mounts: tuple[Mount, ...]) -> Any:
    """Raises ConfigError."""
    import msgspec

    from edged.errors import ConfigError
    from protocol.function import Policy

    wanted = Policy(timeout_ms=timeout_ms, memory_bytes=memory_bytes, mounts=mounts,
                    table_elements=TABLE_ELEMENTS)  # fmt: skip
    try:
        return msgspec.convert(msgspec.to_builtins(wanted), Policy)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def _mount(index: int, text: str) -> tuple[Mount, Path]:
    from protocol.function import Mount

    source, colon, guest = text.rpartition(":")
    if not colon or not guest.startswith("/"):
        source, guest = text, f"/{Path(text).resolve().name}"
    return Mount(f"dir{index}", guest), Path(source).resolve()


def _plan(
    data: bytes,
    *,
    init: str,
    calls: tuple[str, ...],
    rename: tuple[str, ...],
    keep_init: bool,
    strip: bool,
    args: tuple[str, ...],
    env: tuple[str, ...],
    zeros: tuple[str, ...],
    real_clock: bool,
) -> InitPlan:
    from edged.interfaces import InitPlan

    return InitPlan(
        init=init,
        calls=tuple(_call(data, text) for text in calls),
        env=dict(_pair(text, "--env") for text in env),
        args=args,
        deterministic=not real_clock,
        zeros=zeros,
        keep_custom_sections=not strip,
        keep_init_export=keep_init,
        rename=tuple(_pair(text, "--rename") for text in rename) or None,
    )


def _pair(text: str, option: str) -> tuple[str, str]:
    from edged.errors import ConfigError

    left, equals, right = text.partition("=")
    if not equals or not left:
        raise ConfigError(f"{option} {text!r}: no '=' in it")
    return left, right


def _call(data: bytes, text: str) -> InitCall:
    """Raises ConfigError."""
    import msgspec

    from edged.errors import ConfigError
    from edged.interfaces import InitCall
    from edged.snapshot.api import exported_functions

    from .calls import parse_call

    export, args = parse_call(text, option="--call", exports=exported_functions(data))
    try:
        return msgspec.convert({"export": export, "args": args}, InitCall)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--call {text!r}: {error}") from error


def _show_examination(found: Examination, *, as_json: bool) -> None:
    from .render import NONE, fields, size

    if as_json:
        print_json(found)
        return
    refusal = found.refusal
    fields(
        (
            ("snapshot", "possible" if refusal is None else f"{refusal.reason}: {refusal.detail}"),
            ("initialiser", found.initializer or NONE),
            ("start function", "yes" if found.start else "no"),
            ("_start", "yes" if found.command else "no"),
            ("edged.reseed", "yes" if found.reseed else "no"),
            ("memories", f"{found.memories}, {size(found.memory_bytes_min)} at start"),
            ("tables", found.tables),
            ("mutable globals", found.globals_mutable),
            ("data segments", found.data_segments),
            ("foreign imports", _some(found.foreign_imports) or NONE),
        )
    )


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(_cut(name) for name in names[:NAMES_SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )


def _cut(name: str) -> str:
    """A module's names may have 100 KB each."""
    return name if len(name) <= NAME_CHARS_MAX else f"{name[: NAME_CHARS_MAX - 1]}…"


def _show(report: SnapshotReport) -> None:
    from edged.interfaces import RESEED

    from .render import duration, fields, size

    padding = sum(each.padding_bytes for each in report.memories)
    mapped = all(each.mapped for each in report.memories)
    phases = report.phases
    at_start = size(sum(each.bytes_after for each in report.memories))
    captured = f"{size(report.memory_bytes)} in {report.data_segments} data segments"
    fields(
        (
            ("module", size(report.module_bytes)),
            ("snapshot", size(report.snapshot_bytes)),
            ("called", _some(report.called)),
            ("memory", f"{at_start}, of which {captured}"),
            ("padding", size(padding)),
            ("an instance", "maps its memory" if mapped else "copies its memory"),
            ("globals changed", report.globals_rewritten),
            ("exports dropped", _some(report.dropped_exports)),
            ("gave zeros", _some(report.zeros_called)),
            ("compile", f"{duration(phases.compile_s)} ({report.tier})"),
            ("initialise", duration(phases.init_s)),
            ("capture, rewrite", f"{duration(phases.capture_s)}, {duration(phases.rewrite_s)}"),
            ("CPU, memory", f"{duration(report.cpu_s)}, {size(report.peak_rss_bytes)}"),
        )
    )
    if report.random_bytes:
        click.echo(
            f"It asked for {report.random_bytes} random bytes: what it made of them is the same in"
            f" every instance, unless the module exports {RESEED}."
        )
    if report.environment_reads:
        click.echo(
            "It read its environment: a libc that keeps what it saw will not see an invocation's."
        )
    for name, text in (("stdout", report.stdout), ("stderr", report.stderr)):
        if text:
            from .common import clean

            shown = text[-OUTPUT_CHARS_MAX:].decode("utf-8", "replace")
            click.echo(f"its {name}:\n{clean(shown)}")
