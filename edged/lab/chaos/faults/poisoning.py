"""A builder that lies: its store is made to vouch, with the node's real identity, for other code.

The node is killed, its store changed by `python -m edged.poison`, of the daemon's side, and
the node started again: what it says from then on is what that store has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from edged.lab.history import Planned

from ..field import Field, on_each
from .base import Fault, Unproven

PLANT_TIMEOUT_S: Final = 30.0
_ROOT: Final = Path(__file__).resolve().parents[4]


class _Planted(msgspec.Struct, frozen=True):
    node: str
    artifact: str
    code_of: str
    module: str


class Poison(Fault):
    lasting: ClassVar[bool] = False

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._planted: dict[str, _Planted] = {}

    async def begin(self) -> None:
        async def one(name: str) -> None:
            await self.field.kill(name)
            try:
                self._planted[name] = await self.field.thread(self._plant, name)
            finally:
                await self.field.restart(name)

        await on_each(self.targets, one)

    def _plant(self, name: str) -> _Planted:
        """Raises Unproven."""
        unsigned = [] if self.planned.settings["signed"] else ["--unsigned"]
        config = str(self.field.directory(name) / "node.toml")
        argv = [sys.executable, "-P", "-m", "edged.poison", *unsigned, config]
        known = os.environ.get("PYTHONPATH", "")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), known)))}
        try:
            done = subprocess.run(
                [*argv, self.text("module"), self.text("code_of")],
                env=environ,
                capture_output=True,
                timeout=PLANT_TIMEOUT_S,
                check=True,
            )
            return msgspec.json.decode(done.stdout, type=_Planted)
        except subprocess.CalledProcessError as error:
            told = error.stderr.decode(errors="replace").strip()
            raise Unproven(f"{name}: nothing was planted: {told[-500:]}") from error
        except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
            raise Unproven(f"{name}: nothing was planted: {error}") from error

    async def prove(self) -> str:
        def told(name: str) -> str:
            planted, known = self._planted[name], self.field.process(name)
            if known is None:
                raise Unproven(f"{name} does not run again")
            word = "vouches" if self.planned.settings["signed"] else "says without a signature"
            return (
                f"{name}: process {known.pid} {word} that code {planted.artifact[:12]}, of module"
                f" {planted.code_of[:12]}, is that of {planted.module[:12]}"
            )

        return "; ".join(told(name) for name in self.targets)

    async def end(self) -> str:
        return "left as it is: the others are to find it"
