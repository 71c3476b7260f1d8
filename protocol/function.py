"""What a function is: its spec and its policy, immutable once deployed. SPEC §3.

A spec is encoded with msgpack in field order; its version id is the BLAKE3 of that encoding, so
the same module under another policy is another version. Everything that is not granted here is
denied (fail closed): no env, no files, no /tmp. Every bound is checked on decoding.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from .errors import RemoteProtocolError
from .ids import Digest, VersionId, digest_of, parse_digest
from .replicas import REPLICAS_DEFAULT, REPLICAS_MAX

Abi = Literal["raw", "cgi", "export"]

SPEC_BYTES_MAX: Final = 16 * 1024
MODULE_BYTES_MAX: Final = 256 * 1024 * 1024
MEBIBYTE: Final = 1024 * 1024
GUEST_TMP: Final = "/tmp"  # noqa: S108 - a path in the sandbox, never on the host

INIT_NAMES: Final = ("wizer.initialize", "wizer-initialize", "_initialize")
"""Exports that an init without calls means: the first of them that the module has."""

MOUNT_SOURCE: Final = r"^[a-z0-9][a-z0-9_-]{0,62}\Z"
"""Names of an operator's allow-list."""

_Method = Annotated[str, Meta(pattern=r"^[A-Z]{1,16}\Z")]
_EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\Z", max_length=128)]
_Text = Annotated[str, Meta(max_length=8192)]
_Integer = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_ImportModule = Annotated[str, Meta(min_length=1, max_length=256)]
_GuestPath = Annotated[str, Meta(pattern=r"^/[A-Za-z0-9._/-]*\Z", max_length=128)]


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A read-only directory: `source` names an entry of the node operator's allow-list."""

    source: Annotated[str, Meta(pattern=MOUNT_SOURCE)]
    guest_path: _GuestPath


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one invocation may use. Units are in the names; 0 means none where it is allowed."""

    timeout_ms: Annotated[int, Meta(ge=1, le=300_000)] = 10_000
    """Wall time of one invocation, host calls included."""
    memory_bytes: Annotated[int, Meta(ge=65_536, le=4 * 1024 * MEBIBYTE)] = 128 * MEBIBYTE
    """Linear memory, all memories together."""
    table_elements: Annotated[int, Meta(ge=0, le=10_000_000)] = 100_000
    stdout_bytes: Annotated[int, Meta(ge=0, le=256 * MEBIBYTE)] = 8 * MEBIBYTE
    stderr_bytes: Annotated[int, Meta(ge=0, le=16 * MEBIBYTE)] = 64 * 1024
    body_bytes: Annotated[int, Meta(ge=0, le=256 * MEBIBYTE)] = 1 * MEBIBYTE
    """Request body; larger is 413."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 32
    """Invocations of this function at once on one node; more is 429."""
    tmp_bytes: Annotated[int, Meta(ge=0, le=4 * 1024 * MEBIBYTE)] = 0
    """Bytes an invocation may write to its private, fresh /tmp; 0: there is no /tmp."""
    env: Annotated[dict[_EnvName, _Text], Meta(max_length=64)] = {}
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=16)] = ()


InitArgument = _Integer | float | _Text | Annotated[tuple[_Text, ...], Meta(max_length=64)]


class InitCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an exported function, once, before any invocation."""

    export: Annotated[str, Meta(min_length=1, max_length=256)]
    args: Annotated[tuple[InitArgument, ...], Meta(max_length=16)] = ()
    """A whole number for i32 and i64 (signed), a finite one with a point for f32 and f64. A text or
    an array of texts for two of i32: address and length of where it was put (SPEC §14.1)."""


class InitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runs before an invocation: each begins in the state that it leaves. SPEC §14."""

    calls: Annotated[tuple[InitCall, ...], Meta(max_length=16)] = ()
    """In this order; (): the first of INIT_NAMES that is exported."""
    env: Annotated[dict[_EnvName, _Text], Meta(max_length=64)] = {}
    """All that init sees of an environment: the policy's stays hidden, as a snapshot travels."""
    timeout_ms: Annotated[int, Meta(ge=1, le=300_000)] = 30_000
    """Wall time of all calls together; no part of an invocation's."""
    stubs: Annotated[tuple[_ImportModule, ...], Meta(max_length=16)] = ()
    """Modules whose functions may be imported though no node has them: calling one, at init or
    later, traps. In order, each once."""


class FunctionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of a function."""

    abi: Abi
    module: Digest
    module_bytes: Annotated[int, Meta(ge=8, le=MODULE_BYTES_MAX)]
    manifest: Digest
    """Digest of the module's encoded manifest (SPEC §8): what a fetch verifies against."""
    args: Annotated[tuple[_Text, ...], Meta(max_length=64)] = ()
    """argv after argv[0]; the `cgi` ABI appends the query's words."""
    entrypoint: Annotated[str, Meta(max_length=256)] = ""
    """Exported function that `raw` and `cgi` call; "" is `_start`."""
    methods: Annotated[tuple[_Method, ...], Meta(max_length=16)] = ()
    """Allowed HTTP methods; () is the ABI's default."""
    policy: Policy = Policy()
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] = REPLICAS_DEFAULT
    """Nodes that are to have the module on disk; all, where there are fewer."""
    init: InitSpec | None = None
    """None: an invocation begins in the module as it is."""


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(FunctionSpec)


def encode_spec(spec: FunctionSpec) -> bytes:
    return _encoder.encode(spec)


def init_digest(init: InitSpec) -> Digest:
    """Names an init in snapshot statements (SPEC §14.2): BLAKE3 of its encoding."""
    return digest_of(_encoder.encode(init))


def check_spec(spec: FunctionSpec) -> None:
    """Rules that no single field can state.

    Raises RemoteProtocolError("spec"): NUL in text, repeated or nested mount paths, `/tmp` both
    mounted and granted, malformed digests, arguments of init that are no numbers, its stubs
    out of order.
    """
    parse_digest(spec.module)
    parse_digest(spec.manifest)
    if spec.init is not None:
        _check_init(spec.init)
    texts = [*spec.args, *spec.policy.env.values(), spec.entrypoint]
    if any("\x00" in text for text in texts):
        raise RemoteProtocolError("spec", "NUL in args, env or entrypoint")
    paths = [mount.guest_path.rstrip("/") or "/" for mount in spec.policy.mounts]
    if len(set(paths)) != len(paths):
        raise RemoteProtocolError("spec", "two mounts at one guest path")
    if any(".." in path.split("/") for path in paths):
        raise RemoteProtocolError("spec", "'..' in a mount's guest path")
    if spec.policy.tmp_bytes and GUEST_TMP in paths:
        raise RemoteProtocolError("spec", f"{GUEST_TMP} is both granted (tmp_bytes) and mounted")


def _check_init(init: InitSpec) -> None:
    if any("\x00" in text for text in (*init.env.values(), *(call.export for call in init.calls))):
        raise RemoteProtocolError("spec", "NUL in init's env or calls")
    if any(one >= other for one, other in pairwise(init.stubs)):
        raise RemoteProtocolError("spec", "init's stubs are not in order, each once")
    given = [one for call in init.calls for one in call.args]
    if not all(math.isfinite(one) for one in given if isinstance(one, float)):
        raise RemoteProtocolError("spec", "an argument of init is infinite or no number")


def decode_spec(data: bytes) -> FunctionSpec:
    """Raises RemoteProtocolError("spec") with what is wrong and where."""
    if len(data) > SPEC_BYTES_MAX:
        raise RemoteProtocolError("spec", f"{len(data)} bytes; at most {SPEC_BYTES_MAX}")
    try:
        spec = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("spec", str(error)) from error
    check_spec(spec)
    return spec


def version_of(encoded_spec: bytes) -> VersionId:
    return VersionId(digest_of(encoded_spec))
