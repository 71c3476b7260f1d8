"""Names of things, as distinct types: digests, nodes, functions, versions, artifact keys.

In memory and in JSON every one of them is a short ASCII string that prints as itself; the parse
functions are the only way from outside input to the type (parse, don't validate).
"""

from __future__ import annotations

import re
from typing import NewType

from blake3 import blake3

from .errors import RemoteProtocolError

Digest = NewType("Digest", str)
"""BLAKE3-256 of a blob's bytes, 64 lower-case hex digits, as `b3sum` prints it."""

NodeId = NewType("NodeId", str)
"""First 16 bytes of BLAKE3(Ed25519 public key), 32 lower-case hex digits: self-certifying."""

FunctionName = NewType("FunctionName", str)
"""The first path segment of an invocation; see FUNCTION_NAME."""

VersionId = NewType("VersionId", str)
"""BLAKE3-256 of the encoded function spec, 64 lower-case hex digits: immutable."""

ArtifactKey = NewType("ArtifactKey", str)
"""BLAKE3-256 over what decides whether native code fits an engine; see runtime.engine."""

DIGEST_BYTES = 32
NODE_ID_BYTES = 16

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
FUNCTION_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z")
NODE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    return Digest(blake3(data).hexdigest())


def parse_digest(text: str) -> Digest:
    """Raises RemoteProtocolError("digest") unless `text` is 64 lower-case hex digits."""
    if not _HEX64.match(text):
        raise RemoteProtocolError("digest", f"not 64 lower-case hex digits: {text[:80]!r}")
    return Digest(text)


def parse_version(text: str) -> VersionId:
    """Raises RemoteProtocolError("version") unless `text` is 64 lower-case hex digits."""
    if not _HEX64.match(text):
        raise RemoteProtocolError("version", f"not 64 lower-case hex digits: {text[:80]!r}")
    return VersionId(text)


def parse_function_name(text: str) -> FunctionName:
    """Raises RemoteProtocolError("function-name") with the rule it breaks."""
    if not FUNCTION_NAME.match(text):
        raise RemoteProtocolError(
            "function-name",
            f"{text[:80]!r}: 1 to 63 of a-z 0-9 - _, first and last a letter or digit",
        )
    return FunctionName(text)


def parse_node_name(text: str) -> str:
    """Raises RemoteProtocolError("node-name") with the rule it breaks."""
    if not NODE_NAME.match(text):
        raise RemoteProtocolError(
            "node-name",
            f"{text[:80]!r}: 1 to 63 of a-z 0-9 . - _, first and last a letter or digit",
        )
    return text


def node_id_of(public_key: bytes) -> NodeId:
    """Node id of a raw 32-byte Ed25519 public key."""
    return NodeId(blake3(public_key).digest(NODE_ID_BYTES).hex())
