"""Names of everything below the data directory; no I/O.

lock                        flock; who owns the directory, in which boot, and how it ended
tmp/                        being written; swept at start
blobs/ab/<digest>.<kind>    mode 0444, never modified; the name alone restores its index row
wire/ab/<blob>.<manifest>   joined zstd frames; the manifest is itself a blob
partial/<blob>.<manifest>   a fetch in progress, or what is left of a lost blob: a sparse wire form
journal                     records, meta and artifact rows: what no file could restore
index.sqlite                answers fast; holds nothing that the files above lack
quarantine/                 what was damaged, for a human; 64 files, 256 MiB
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

from edged.interfaces import BlobKind
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, parse_digest

KINDS: Final[tuple[BlobKind, ...]] = get_args(BlobKind)


class Layout:
    """Paths of one data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock"
        self.tmp = root / "tmp"
        self.blobs = root / "blobs"
        self._blobs_prefix = f"{self.blobs}/"
        self.wire = root / "wire"
        self.partial = root / "partial"
        self.quarantine = root / "quarantine"
        self.journal = root / "journal"
        self.index = root / "index.sqlite"

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.tmp, self.blobs, self.wire, self.partial, self.quarantine)

    def blob(self, digest: Digest, kind: BlobKind) -> str:
        """Text, not a Path: a start names every blob, and pathlib was half of its time."""
        return f"{self._blobs_prefix}{digest[:2]}/{digest}.{kind}"

    def wire_form(self, blob: Digest, manifest: Digest) -> Path:
        return self.wire / blob[:2] / f"{blob}.{manifest}"

    def partial_form(self, blob: Digest, manifest: Digest) -> Path:
        return self.partial / f"{blob}.{manifest}"


def parse_blob_name(name: str) -> tuple[Digest, BlobKind] | None:
    """None: not a name that Layout.blob gives."""
    stem, _, suffix = name.partition(".")
    kind = next((known for known in KINDS if known == suffix), None)
    digest = _digest(stem)
    return None if kind is None or digest is None else (digest, kind)


def parse_pair_name(name: str) -> tuple[Digest, Digest] | None:
    """(blob, manifest) of a wire or partial file; None: not such a name."""
    left, _, right = name.partition(".")
    blob, manifest = _digest(left), _digest(right)
    return None if blob is None or manifest is None else (blob, manifest)


def _digest(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except RemoteProtocolError:
        return None


def kind_of(head: bytes) -> BlobKind:
    """What a fetched blob is, by its first bytes: wasmtime's artifacts are ELF files."""
    return "artifact" if head.startswith(b"\x7fELF") else "module"
