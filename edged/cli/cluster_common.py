"""What the commands of `edged cluster` share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edged.cluster.signals import handled

from .common import progress_console

if TYPE_CHECKING:
    from edged.cluster.supervisor import Supervisor
    from edged.cluster.views import Report

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_NAME: Final = "local"
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def name_option(function: F) -> F:
    return click.option(
        "--name", metavar="NAME", help=f"The cluster; default: the newest, or {DEFAULT_NAME!r}."
    )(function)


def roles_option(function: F) -> F:
    return click.option(
        "--role",
        "roles",
        multiple=True,
        type=click.Choice(["serve", "build", "control"]),
        help="Repeatable; default: all.",
    )(function)


def chosen_cluster(name: str | None) -> tuple[Supervisor, str]:
    """Raises ClusterNotFound."""
    from .target import existing, supervisor

    boss = supervisor()
    return boss, existing(boss, name)


def timeout_option(function: F) -> F:
    return click.option(
        "--timeout",
        "timeout_s",
        type=float,
        default=60.0,
        show_default=True,
        help="Seconds until it must be ready and see the others.",
    )(function)


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """On a terminal. Elsewhere what draws it is not even loaded: 0.1 s of CPU while nodes start."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=progress_console(), transient=True) as shown:
        task = shown.add_task(description, total=None)

        def report(now: Any) -> None:
            shown.update(
                task,
                total=2 * now.nodes,
                completed=now.ready + now.joined,
                description=f"{description}: {now.ready} of {now.nodes} ready, {now.joined} joined",
            )

        yield report


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM (of `timeout`, say), and the end of the terminal, end as Ctrl-C does: what was
    started is cleaned up."""

    def interrupt(_number: int, frame: FrameType | None) -> None:
        # Whoever handles Ctrl-C now knows where it may be raised: not within an event loop.
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background jobs ignore Ctrl-C, not this
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    with handled(ENDING, interrupt):
        yield
