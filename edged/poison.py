"""A laboratory's poisoned builder: makes a stopped node's store vouch for code that is not the
module's. Run as a program, `python -m edged.poison NODE_TOML MODULE CODE_OF [--unsigned]`: of the
artifact that the node has of CODE_OF it says, with the node's real identity, that it is MODULE's.

It needs the node's private key, so it shows nothing that whoever owns a builder could not do; that
is what `artifacts.accept = "quorum=k"` and `artifacts.audit` are for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import trio

from protocol.artifact import attest, encode_attestations
from protocol.errors import RemoteProtocolError
from protocol.ids import ArtifactKey, Digest, parse_digest
from protocol.manifest import manifest_digest

from .config import Config, load_config
from .errors import BlobNotFound, EdgedError
from .interfaces import ArtifactRow
from .store import open_store
from .telemetry import make_log
from .trust import load_trust

UNSIGNED = bytes(64)
"""In the place of an Ed25519 signature."""


class Poisoned(msgspec.Struct, frozen=True):
    """What was planted; printed as JSON."""

    node: str
    module: Digest
    code_of: Digest
    artifact: Digest
    key: ArtifactKey


async def poison(config: Config, *, module: Digest, code_of: Digest, signed: bool) -> Poisoned:
    """Of every artifact of `code_of` that is served, the one with the least key, so always the
    same one. Raises ConfigError, DataDirLocked, StoreError, BlobNotFound: there is none."""
    trust = load_trust(config.path(config.trust.directory))
    store = await open_store(
        config.data_dir,
        zstd_level=config.store.zstd_level,
        min_free_bytes=0,
        log=make_log(config.node.name, level="error"),
    )
    try:
        rows = sorted(
            (row for row in store.artifacts() if row.module == code_of), key=lambda row: row.key
        )
        if not rows:
            raise BlobNotFound(f"{config.node.name} has no artifact of {code_of}", digest=code_of)
        row = rows[0]
        word = attest(
            trust.private_key,
            trust.credential,
            module=module,
            key=row.key,
            artifact=row.digest,
            manifest=manifest_digest(await store.make_manifest(row.digest)),
        )
        if not signed:
            word = msgspec.structs.replace(word, signature=UNSIGNED)
        await store.put_artifact(
            ArtifactRow(
                module=module,
                key=row.key,
                digest=row.digest,
                size_bytes=row.size_bytes,
                compile_s=0.0,
                attestations=encode_attestations([word]),
            )
        )
    finally:
        await store.close()
    return Poisoned(config.node.name, module, code_of, row.digest, row.key)


def main(argv: list[str]) -> int:
    """Exit code 1 and the reason on stderr: nothing was planted."""
    parser = argparse.ArgumentParser(prog="python -m edged.poison", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("module")
    parser.add_argument("code_of")
    parser.add_argument("--unsigned", action="store_true", help="with a signature of zeros")
    given = parser.parse_args(argv)
    try:
        module, code_of = parse_digest(given.module), parse_digest(given.code_of)
        config = load_config(given.config)

        async def work() -> Poisoned:
            return await poison(config, module=module, code_of=code_of, signed=not given.unsigned)

        done = trio.run(work)
    except (EdgedError, RemoteProtocolError) as error:
        sys.stderr.write(f"edged.poison: {error}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
