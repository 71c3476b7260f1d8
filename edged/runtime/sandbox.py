"""What a guest gets to see: argv, environment, stdin and directories. Nothing by default.

stdout and stderr are not here: fd_write is ours (host.py), so wasmtime's own are never written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ctypes import byref
from pathlib import Path
from typing import Final

from edged.errors import BadRequest, DiskFull, Overloaded, PolicyDenied
from edged.interfaces import Invocation
from edged.telemetry import Log
from protocol.function import GUEST_TMP, Policy

from . import tmpdir
from .code import Code
from .ffi import Api, ByteVec, c_strings

ARGUMENTS_MAX: Final = 4096
ENVIRONMENT_MAX: Final = 4096


class Sandbox:
    """Makes WASI configurations; `mounts` is the operator's allow-list."""

    def __init__(self, api: Api, mounts: Mapping[str, Path], scratch: Path, log: Log) -> None:
        self._api = api
        self._mounts = dict(mounts)
        self._scratch = scratch
        self._log = log

    def make_tmp(self) -> Path:
        """A fresh private directory. Raises DiskFull."""
        try:
            return tmpdir.make(self._scratch)
        except OSError as error:
            raise DiskFull("no room for a private /tmp", private=str(error)) from error

    def remove_tmp(self, path: Path) -> None:
        """What cannot be removed now is swept at the next start."""
        try:
            tmpdir.remove(path)
        except OSError as error:
            self._log.error("a private /tmp stays behind", path=str(path), reason=str(error))

    def wasi_config(self, call: Invocation, code: Code, tmp: Path | None) -> int:
        """A wasi_config_t, which the caller gives to a store or deletes.

        Raises BadRequest (argv, env), PolicyDenied (a mount that is not offered)."""
        config: int = self._api.wasi_config_new()
        try:
            self._fill(config, call, code, tmp)
        except BaseException:
            self._api.wasi_config_delete(config)
            raise
        return config

    def _fill(self, config: int, call: Invocation, code: Code, tmp: Path | None) -> None:
        api, policy = self._api, call.policy
        if call.args and code.needs_args:
            args, strings = code.arguments
            if args != call.args:
                _check_arguments(call.args)
                strings = c_strings(call.args)
                code.arguments = call.args, strings  # a function's are mostly the same each time
            if not api.wasi_config_set_argv(config, len(call.args), strings):
                raise BadRequest("an argument is not UTF-8")
        env = environment(call, policy) if policy.env else call.env
        if env and code.needs_env:
            names, values = _check_environment(env)
            if not api.wasi_config_set_env(config, len(env), c_strings(names), c_strings(values)):
                raise BadRequest("an environment variable is not UTF-8")
        # Without bytes stdin would be a closed stream; with them it ends after the last one.
        if call.stdin:
            vec = ByteVec()
            api.wasm_byte_vec_new(byref(vec), len(call.stdin), call.stdin)
            api.wasi_config_set_stdin_bytes(config, byref(vec))
        for mount in policy.mounts:
            source = self._mounts.get(mount.source)
            if source is None:
                raise PolicyDenied(f"this node offers no mount named {mount.source!r}")
            self._preopen(config, source, mount.guest_path, writable=False)
        if tmp is not None:
            self._preopen(config, tmp, GUEST_TMP, writable=True)

    def _preopen(self, config: int, source: Path, guest_path: str, *, writable: bool) -> None:
        if not self._api.wasi_config_preopen_dir(
            config, str(source).encode(), guest_path.encode(), writable
        ):
            # The API does not say why. Asking again here tells scarcity from a wrong mount.
            if os.path.isdir(source) and os.access(source, os.R_OK | os.X_OK):
                raise Overloaded("no descriptor is left for a directory", private=str(source))
            raise PolicyDenied(
                f"the directory for {guest_path} cannot be opened", private=str(source)
            )


def environment(call: Invocation, policy: Policy) -> tuple[tuple[bytes, bytes], ...]:
    """The call's variables with the policy's over them: what the operator set, no request can
    replace. Idempotent, so callers may have merged already."""
    merged = dict(call.env)
    merged.update((name.encode(), value.encode()) for name, value in policy.env.items())
    return tuple(merged.items())


def _check_arguments(args: tuple[bytes, ...]) -> None:
    if len(args) > ARGUMENTS_MAX:
        raise BadRequest(f"more than {ARGUMENTS_MAX} arguments")
    if b"\x00" in b"".join(args):
        raise BadRequest("an argument holds a NUL byte")


def _check_environment(
    env: tuple[tuple[bytes, bytes], ...],
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    if len(env) > ENVIRONMENT_MAX:
        raise BadRequest(f"more than {ENVIRONMENT_MAX} environment variables")
    names, values = zip(*env, strict=True)
    joined = b"".join(names)
    if b"\x00" in joined or b"=" in joined or b"" in names:
        raise BadRequest("an environment variable's name is empty or holds '=' or NUL")
    if b"\x00" in b"".join(values):
        raise BadRequest("an environment variable holds a NUL byte")
    return names, values
