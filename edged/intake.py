"""Modules that operators hand in: checked and stored; deploys of them: checked against the module.

Owns nothing but a small cache of what was found out about modules. Runs in the node's event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from protocol.errors import RemoteProtocolError
from protocol.function import MODULE_BYTES_MAX, FunctionSpec, check_spec
from protocol.ids import Digest, digest_of
from protocol.manifest import manifest_digest

from .errors import BadRequest, BlobNotFound, DigestMismatch, ModuleRejected
from .interfaces import DeployRequest, ModuleInfo, ModuleStored, Runtime, Store

MODULE_INFOS_MAX: Final = 1024
EXPORTS_SHOWN_MAX: Final = 50
NAME_CHARS_SHOWN: Final = 200


class Intake:
    def __init__(
        self,
        *,
        store: Store,
        runtime: Runtime,
        keeping: Callable[[Digest], AbstractAsyncContextManager[None]],
        on_held: Callable[[Digest], None],
        mounts: frozenset[str],
        replicas: int,
    ) -> None:
        """`keeping`: from collection, while it lasts. `replicas`: of a deploy that does not say."""
        self._store = store
        self._runtime = runtime
        self._keeping = keeping
        self._on_held = on_held
        self._mounts = mounts
        self._replicas = replicas
        self._infos: OrderedDict[Digest, ModuleInfo] = OrderedDict()

    async def put(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        """As interfaces.Operator.put_module."""
        if expected is not None:
            actual = await trio.to_thread.run_sync(digest_of, data)
            if actual != expected:
                raise DigestMismatch(
                    f"the body hashes to {actual}, not to the declared {expected}",
                    expected=expected,
                    actual=actual,
                )
        if len(data) > MODULE_BYTES_MAX:
            raise ModuleRejected("too-large", f"{len(data)} bytes; at most {MODULE_BYTES_MAX}")
        wasm = await self._runtime.parse(data)
        info = await self._runtime.validate(wasm)
        async with self._keeping(info.digest):
            created = self._store.info(info.digest) is None
            await self._store.put(wasm, kind="module", expected=info.digest)
            manifest = await self._store.make_manifest(info.digest)
            self._on_held(info.digest)
        self._remember(info)
        return ModuleStored(
            module=info.digest,
            size_bytes=info.size_bytes,
            wire_bytes=manifest.wire_bytes,
            imports=info.imports,
            exports=info.exports,
            created=created,
        )

    def _remember(self, info: ModuleInfo) -> None:
        self._infos[info.digest] = info
        if len(self._infos) > MODULE_INFOS_MAX:
            self._infos.popitem(last=False)

    async def _module_info(self, digest: Digest) -> ModuleInfo:
        info = self._infos.get(digest)
        if info is None:
            info = await self._runtime.validate(await self._store.read(digest))
            self._remember(info)
        return info

    async def spec(self, request: DeployRequest) -> tuple[FunctionSpec, int]:
        """With the wire bytes of its module. Raises BlobNotFound, BadRequest, ModuleRejected."""
        if self._store.info(request.module) is None:
            raise BlobNotFound(
                f"module {request.module} is not on this node; upload it first (PUT /v1/modules)",
                digest=request.module,
            )
        if request.init is None and request.snapshot == "always":
            raise BadRequest('snapshot: "always" wants an init: what a snapshot is taken after')
        for mount in request.policy.mounts:
            if mount.source not in self._mounts:
                raise BadRequest(
                    f"policy.mounts: {mount.source!r} is not in this node's [mounts] allow-list"
                )
        info = await self._module_info(request.module)
        _check_fit(info, request)
        manifest = await self._store.make_manifest(request.module)
        spec = FunctionSpec(
            abi=request.abi,
            module=request.module,
            module_bytes=info.size_bytes,
            manifest=manifest_digest(manifest),
            args=request.args,
            entrypoint=request.entrypoint,
            methods=request.methods,
            policy=request.policy,
            replicas=self._replicas if request.replicas is None else request.replicas,
            init=request.init,
        )
        try:
            check_spec(spec)
        except RemoteProtocolError as error:
            raise BadRequest(error.detail) from error
        return spec, manifest.wire_bytes

    async def fits(self, snapshot: Digest, request: DeployRequest) -> tuple[str, ...]:
        """Exports of a snapshot, with which the function is to work, too. Raises ModuleRejected."""
        info = await self._module_info(snapshot)
        try:
            _check_fit(info, request)
        except ModuleRejected as error:
            more = {key: value for key, value in error.extra.items() if key != "reason"}
            raise ModuleRejected(error.reason, f"after its init, {error}", **more) from error
        return info.exports


def _check_fit(info: ModuleInfo, request: DeployRequest) -> None:
    """Refuses at deploy what every invocation would fail on. Raises ModuleRejected."""
    policy = request.policy
    _check_imports(info, () if request.init is None else request.init.stubs)
    entrypoint = request.entrypoint or ("" if request.abi == "export" else "_start")
    if entrypoint and entrypoint not in info.exports:
        raise ModuleRejected(
            "missing-export",
            f"the module does not export {entrypoint!r}, which abi {request.abi!r} calls",
            exports=list(info.exports[:EXPORTS_SHOWN_MAX]),
        )
    if entrypoint and request.abi != "export" and entrypoint not in info.entry_points:
        raise ModuleRejected(
            "missing-export",
            f"{entrypoint!r} is no function without parameters, so abi {request.abi!r} cannot "
            "call it",
            entry_points=list(info.entry_points[:EXPORTS_SHOWN_MAX]),
        )
    if info.memory_bytes_min > policy.memory_bytes:
        raise ModuleRejected(
            "limits",
            f"the module declares {info.memory_bytes_min} bytes of memory, its policy grants "
            f"{policy.memory_bytes} (policy.memory_bytes)",
        )
    if info.table_elements_min > policy.table_elements:
        raise ModuleRejected(
            "limits",
            f"the module declares {info.table_elements_min} table elements, its policy grants "
            f"{policy.table_elements} (policy.table_elements)",
        )


def _check_imports(info: ModuleInfo, stubs: tuple[str, ...]) -> None:
    lacking = [one for one in info.foreign_imports if one[0] not in stubs]
    if lacking:
        modules = list(dict.fromkeys(module[:NAME_CHARS_SHOWN] for module, _name in lacking))
        raise ModuleRejected(
            "missing-import",
            f"{'.'.join(lacking[0])[:NAME_CHARS_SHOWN]}: no such host function; nodes offer WASI "
            "preview 1, and to an init stubs that trap, of the modules that it names (init.stubs)",
            modules=modules[:EXPORTS_SHOWN_MAX],
        )
