"""`edged run`: this process becomes a node."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from .common import EdgedCommand

_START_ERRORS: Final = (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL, errno.EROFS)


@click.command(cls=EdgedCommand)
@click.argument("config", type=click.Path())
def run(config: str) -> None:
    """Run a node with this CONFIG (node.toml) until SIGTERM or Ctrl-C, then drain."""
    from edged.config import load_config

    loaded = load_config(Path(config))
    # What modules define stays for good: looking for garbage in it while they load is a sixth of
    # that time, and later only delays what the node does.
    gc.disable()
    # The daemon's modules, wasmtime among them, are loaded only for a configuration that is right.
    import trio

    from edged.errors import EdgedError
    from edged.node import run_node

    gc.freeze()
    gc.enable()
    try:
        trio.run(run_node, loaded)
    except BaseExceptionGroup as group:
        # What ends a node on purpose comes wrapped once per nursery it passed.
        leaves = list(_leaves(group))
        if len(leaves) == 1 and isinstance(leaves[0], EdgedError | OSError):
            raise _told(leaves[0]) from group
        raise
    except OSError as error:
        told = _told(error)
        if told is error:
            raise
        raise told from error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _told(error: BaseException) -> BaseException:
    """A start that the operating system refused, as one line; other errors as they are."""
    from edged.errors import EdgedError

    if isinstance(error, OSError) and error.errno in _START_ERRORS:
        return EdgedError(f"cannot start: {error}")
    return error
