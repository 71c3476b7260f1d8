"""function.toml, and how flags are laid over it. edged/docs/API.md has an example with every key.

Checked here as far as this side can, by the rules of function specs, so that nothing is uploaded in
vain. Sizes are bytes, or text with a binary suffix.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edged.errors import ConfigError
from edged.interfaces import SnapshotWish
from edged.validation import explain
from protocol.errors import RemoteProtocolError
from protocol.function import Abi, FunctionSpec, InitCall, InitSpec, Mount, Policy, check_spec
from protocol.ids import FunctionName, digest_of, parse_function_name

from .calls import parse_call

_SIZE: Final = re.compile(r"(\d{1,15})\s*([KMG]?)(?:iB|B)?\Z", re.IGNORECASE)
INIT_AUTO: Final = "auto"
"""For --init: whichever conventional export there is."""
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

FLAGS: Final = {
    "args": "--arg",
    "entrypoint": "--entrypoint",
    "methods": "--method",
    "replicas": "--replicas",
    "policy.timeout_ms": "--timeout-ms",
    "policy.memory_bytes": "--memory",
    "policy.table_elements": "--table-elements",
    "policy.tmp_bytes": "--tmp-bytes",
    "policy.body_bytes": "--body-bytes",
    "policy.stdout_bytes": "--stdout-bytes",
    "policy.stderr_bytes": "--stderr-bytes",
    "policy.concurrency": "--concurrency",
    "policy.env": "--env",
    "policy.mounts": "--mount",
    "init.calls": "--init-call",
    "init.env": "--init-env",
    "init.timeout_ms": "--init-timeout-ms",
    "init.stubs": "--init-stub",
}
"""By the key that each sets."""


class FunctionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    module: str = ""
    """Path of the .wasm or .wat file."""
    abi: Abi = "raw"
    args: tuple[str, ...] = ()
    entrypoint: str = ""
    methods: tuple[str, ...] = ()
    replicas: int | None = None
    policy: Policy = Policy()
    init: InitSpec | None = None
    snapshot: SnapshotWish = "auto"


class InitFlags(NamedTuple):
    """As they were given."""

    export: str | None = None
    calls: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_ms: int | None = None
    stubs: tuple[str, ...] = ()


NO_INIT: Final = InitFlags()


class Plan(msgspec.Struct, frozen=True):
    """What shall be deployed, complete and checked as far as this side can."""

    name: FunctionName
    file: Path
    abi: Abi
    args: tuple[str, ...]
    entrypoint: str
    methods: tuple[str, ...]
    policy: Policy
    replicas: int | None
    """None: as the node has it."""
    init: InitSpec | None
    snapshot: SnapshotWish


def load_function_file(path: Path) -> tuple[FunctionFile, Path]:
    """The file and the directory its paths are relative to.

    Raises ConfigError: unreadable, not TOML, unknown or wrong keys."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        _read_sizes(data.get("policy"))
        try:
            source = msgspec.convert(data, FunctionFile)
        except msgspec.ValidationError as error:
            raise ConfigError(explain(error, data, FunctionFile)) from error
        _check(source, _builtins(source.policy), _builtins(source.init), name=str)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return source, path.parent


def _read_sizes(policy: object) -> None:
    """Sizes written as text become numbers, in place. Raises ConfigError."""
    if not isinstance(policy, dict):
        return
    for key, value in policy.items():
        if key.endswith("_bytes") and isinstance(value, str):
            try:
                policy[key] = parse_size(value)
            except ConfigError as error:
                raise ConfigError(f"policy.{key} = {error}") from error


def _builtins(value: object) -> Any:
    return msgspec.to_builtins(value)


def _check(
    file: FunctionFile,
    policy: dict[str, Any],
    init: dict[str, Any] | None,
    *,
    name: Callable[[str], str],
) -> Plan:
    """`file` under `policy`, after `init`, by the rules of function specs, so that nothing is
    uploaded in vain; the plan's name and file are not looked at. Raises ConfigError with `name`'s
    name of the key."""
    nothing = digest_of(b"")
    data = {
        "abi": file.abi,
        "module": nothing,
        "module_bytes": 8,
        "manifest": nothing,
        "args": list(file.args),
        "entrypoint": file.entrypoint,
        "methods": [method.upper() for method in file.methods],
        "policy": policy,
        "init": init,
        **({} if file.replicas is None else {"replicas": file.replicas}),
    }
    try:
        spec = msgspec.convert(data, FunctionSpec)
        check_spec(spec)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, data, FunctionSpec, name=name)) from error
    except RemoteProtocolError as error:
        raise ConfigError(error.detail) from error
    if file.snapshot == "always" and spec.init is None:
        raise ConfigError(f'{name("snapshot")} = "always": there is no init to take it after')
    return Plan(
        FunctionName(""),
        Path(),
        spec.abi,
        spec.args,
        spec.entrypoint,
        spec.methods,
        spec.policy,
        file.replicas,
        spec.init,
        file.snapshot,
    )


def _flag(key: str) -> str:
    return next((flag for path, flag in FLAGS.items() if key.startswith(path)), key)


def make_plan(
    source: FunctionFile,
    base: Path,
    *,
    file: str | None,
    changes: dict[str, Any],
    policy: dict[str, Any],
    init: InitFlags = NO_INIT,
    env: Iterable[str],
    mounts: Iterable[str],
) -> Plan:
    """Flags over file: `changes` and `policy` hold what was given; env is merged by name.

    Raises ConfigError naming the key."""
    given = {key: value for key, value in changes.items() if value not in ((), "", None)}
    merged = msgspec.structs.replace(source, **given)
    policy_data = _builtins(merged.policy)
    policy_data |= {key: value for key, value in policy.items() if value is not None}
    policy_data["env"] |= dict(parse_pair(item, what="--env") for item in env)
    more = [_builtins(parse_mount(item)) for item in mounts]
    policy_data["mounts"] = [*policy_data["mounts"], *more]
    # What a file says has been checked under the file's own names: what is wrong now is a flag.
    checked = _check(merged, policy_data, _merge_init(merged.init, init), name=_flag)
    if not file and not merged.module:
        raise ConfigError("give FILE (.wasm or .wat), or module = … in the --config file")
    path = Path(file) if file else base / merged.module
    try:
        name = parse_function_name(merged.name or path.stem)
    except RemoteProtocolError as error:
        raise ConfigError(f"--name {error.detail}") from error
    return msgspec.structs.replace(checked, name=name, file=path)


def _merge_init(init: InitSpec | None, flags: InitFlags) -> dict[str, Any] | None:
    """Calls that are given stand in the place of the file's. Raises ConfigError."""
    if init is None and flags == NO_INIT:
        return None
    merged: dict[str, Any] = _builtins(init or InitSpec())
    if flags.export is not None or flags.calls:
        first = [] if flags.export in (None, INIT_AUTO) else [{"export": flags.export}]
        merged["calls"] = [*first, *map(_call, flags.calls)]
    merged["env"] |= dict(parse_pair(item, what="--init-env") for item in flags.env)
    if flags.timeout_ms is not None:
        merged["timeout_ms"] = flags.timeout_ms
    if flags.stubs:
        merged["stubs"] = sorted({*merged["stubs"], *flags.stubs})
    return merged


def _call(text: str) -> dict[str, Any]:
    export, args = parse_call(text, option="--init-call")
    data = {"export": export, "args": args}
    try:
        msgspec.convert(data, InitCall)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--init-call {text!r}: {error}") from error
    return data


def parse_pair(text: str, *, what: str) -> tuple[str, str]:
    """Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{what} {text!r}: write NAME=VALUE")
    return key, value


def parse_mount(text: str) -> Mount:
    """ "assets:/assets" and "assets" (at /assets). Raises ConfigError."""
    source, colon, guest_path = text.partition(":")
    data = {"source": source, "guest_path": guest_path if colon else f"/{source}"}
    try:
        return msgspec.convert(data, Mount)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"--mount {text!r}: write SOURCE:/guest/path ({explain(error, data, Mount)})"
        ) from error


def parse_size(text: str) -> int:
    """Bytes of "65536", "64K", "64KiB", "1.5" not. Raises ConfigError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write bytes, or e.g. 64KiB, 128MiB, 1GiB")
    return int(match[1]) * _UNITS[match[2].upper()]
