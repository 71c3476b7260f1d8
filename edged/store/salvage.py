"""What outlives a lost blob: its wire form becomes a partial again.

Damage of a blob says nothing of the wire form beside it, whose segments verify one by one. Under
the partial's name they are there for `rebuild`, and for the next fetch of the same manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from protocol.ids import Digest
from protocol.manifest import Manifest

from .disk import Disk, is_damage, open_file
from .layout import Layout
from .quarantine import move_to_quarantine
from .wire import present_segments, read_exactly


def keep_wire(
    disk: Disk,
    layout: Layout,
    blob: Digest,
    name: Digest,
    read_manifest: Callable[[], Manifest | None],
) -> None:
    """Moves the wire form of `blob` to the partial of the same manifest `name`; none is fine.

    The caller holds the blob's lock. Raises OSError; then the next start does it."""
    wire = layout.wire_form(blob, name)
    partial = layout.partial_form(blob, name)
    try:
        fd = open_file(wire)
    except FileNotFoundError:
        return
    except OSError as error:
        if not is_damage(error):
            raise
        move_to_quarantine(disk, layout, wire)
        return
    try:
        os.fchmod(fd, 0o600)
        os.utime(fd)  # its age as a partial begins now
        if _another(partial, fd):
            manifest = read_manifest()
            if manifest is not None:
                _merge(disk, fd, partial, manifest)
        else:
            disk.rename(wire, partial)
    finally:
        os.close(fd)
    # Merged, or a second name of the partial itself, which a rename leaves as it is.
    disk.unlink(wire)


def _another(partial: Path, fd: int) -> bool:
    """Whether the partial exists and is not the open file itself."""
    try:
        return not os.path.samestat(partial.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _merge(disk: Disk, source: int, partial: Path, manifest: Manifest) -> None:
    """Copies what verifies and the partial lacks; a fetch may be writing the same bytes there."""
    partial.chmod(0o600)  # an interrupted finish may have sealed it
    target = open_file(partial, os.O_RDWR)
    try:
        lacking = present_segments(source, manifest) - present_segments(target, manifest)
        for index in sorted(lacking):
            offset = manifest.wire_offset(index)
            disk.write(target, read_exactly(source, manifest.wire_lengths[index], offset), offset)
    finally:
        os.close(target)
