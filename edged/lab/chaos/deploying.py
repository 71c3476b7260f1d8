"""Deploys of a run: the modules of a scenario, and their rows of history."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from edged.errors import ConfigError
from edged.lab import history
from edged.lab.history import Deploy, Planned

from .clock import RunClock
from .control import Answer, Deployed, Stored
from .field import Field
from .modules import module_that_says
from .scenario import FunctionSpec, Scenario, VersionSpec

UPLOAD_TIMEOUT_S: Final = 60.0
DEPLOY_TIMEOUT_S: Final = 60.0
"""edged itself gives up after 20 s and what the module's size adds."""
WASM_MAGIC: Final = b"\0asm"
CREATED: Final = (200, 201)


class Modules:
    """All that a scenario deploys, in memory."""

    def __init__(self, scenario: Scenario) -> None:
        """Raises ConfigError: a module file cannot be read."""
        self._bytes = {
            (function.name, version.label): _module(version, scenario)
            for function in scenario.functions
            for version in function.versions
        }
        self.functions: Final = tuple(self._function(each) for each in scenario.functions)
        self._scenario = scenario

    def _function(self, spec: FunctionSpec) -> history.Function:
        return history.Function(
            name=spec.name,
            abi=spec.abi,
            replicas=spec.replicas,
            path=spec.path,
            versions=tuple(self._version(spec, version) for version in spec.versions),
        )

    def _version(self, spec: FunctionSpec, version: VersionSpec) -> history.Version:
        data = self._bytes[spec.name, version.label]
        right = version.says if version.says is not None else version.body
        return history.Version(
            label=version.label,
            # What a text module's binary form hashes to, only a node can tell: its Deploy row does.
            module=blake3(data).hexdigest() if data.startswith(WASM_MAGIC) else "",
            body_digest=None if right is None else blake3(right.encode()).hexdigest(),
        )

    async def deploy(self, field: Field, planned: Planned, clock: RunClock) -> Deploy:
        """Uploads the module and names it. What fails is in the row."""
        name, label = (str(planned.settings[key]) for key in ("function", "version"))
        node = planned.targets[0]
        begun_s = clock.now()
        stored, deployed, error = await self._do(field, node, name, label)
        now_s = clock.now()
        return Deploy(
            t_s=now_s,
            function=name,
            label=label,
            version=None if deployed is None else deployed.version,
            module="" if stored is None else stored.module,
            node=node,
            begun_s=begun_s,
            acknowledged_s=None if deployed is None else now_s,
            wanted=0 if deployed is None else deployed.wanted,
            holders=() if deployed is None else deployed.replicas,
            error=error,
        )

    async def _do(
        self, field: Field, node: str, name: str, label: str
    ) -> tuple[Stored | None, Deployed | None, str | None]:
        data = self._bytes[name, label]
        answer = await field.call(node, "PUT", "/v1/modules", data, timeout_s=UPLOAD_TIMEOUT_S)
        stored = _taken(answer, Stored)
        if stored is None:
            return None, None, f"upload: {_told(answer)}"
        body = msgspec.json.encode(self._request(name, label, stored.module))
        answer = await field.call(
            node, "PUT", f"/v1/functions/{name}", body, timeout_s=DEPLOY_TIMEOUT_S
        )
        deployed = _taken(answer, Deployed)
        return stored, deployed, None if deployed is not None else _told(answer)

    def _request(self, name: str, label: str, module: str) -> dict[str, Any]:
        function = self._scenario.function(name)
        policy = msgspec.to_builtins(function.policy)
        policy["env"] = {**policy["env"], **function.version(label).env}
        return {
            "module": module,
            "abi": function.abi,
            "policy": policy,
            "replicas": function.replicas,
        }


def _module(version: VersionSpec, scenario: Scenario) -> bytes:
    if version.says is not None:
        return module_that_says(version.says, code_kib=version.code_kib)
    assert version.module is not None
    path: Path = scenario.beside(version.module)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{scenario.path}: module {path}: cannot be read: {error.strerror}; scripts/guests "
            f"builds those of guests/"
        ) from error


def _taken(answer: Answer | None, kind: type[Any]) -> Any:
    if answer is None or answer.status not in CREATED:
        return None
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.MsgspecError:
        return None


def _told(answer: Answer | None) -> str:
    return "no answer" if answer is None else answer.told()
