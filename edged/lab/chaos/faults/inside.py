"""Faults inside a node: a wrong clock and a full disk by its lab switches, damage on its disk."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from blake3 import blake3

from edged.errors import Unreachable
from edged.lab.history import Planned

from ..control import Blobs, Detail, Lab, understood
from ..field import Field, on_each
from ..modules import module_that_says
from .base import Fault, Unproven

CLOCK_TOLERANCE_MS: Final = 100
DISK_FULL_STATUS: Final = 507


class Switch(Fault):
    """One lab switch on, and off again. A restart turns it off too, which is its end as well."""

    def switches(self) -> dict[str, Any]:
        raise AssertionError("of a kind of switch")

    async def begin(self) -> None:
        async def one(name: str) -> None:
            await self._put(name, **self.switches())

        await on_each(self.targets, one)

    async def end(self) -> str:
        async def one(name: str) -> None:
            if self.field.process(name) is not None:
                await self._put(name, **dict.fromkeys(self.switches(), 0))

        await on_each(self.targets, one)
        return "switched off"

    async def _put(self, name: str, **switches: Any) -> None:
        wish = {key: value for key, value in self.field.wish(name, **switches).items() if value}
        answer = await self.field.call(name, "PUT", "/v1/lab", msgspec.json.encode(wish))
        if answer is None or answer.status != 200:
            told = "no answer" if answer is None else answer.told()
            raise Unreachable(f"{name}: lab switches: {told}")


class ClockSkew(Switch):
    def switches(self) -> dict[str, Any]:
        return {"clock_skew_ms": int(self.number("skew_ms"))}

    async def prove(self) -> str:
        skew_ms = int(self.number("skew_ms"))

        async def one(name: str) -> str:
            lab = await self.field.ask(name, "/v1/lab", Lab)
            if lab is None:
                raise Unproven(f"{name} does not tell its clock")
            ahead_ms = lab.clock_ms - lab.machine_ms
            if abs(ahead_ms - skew_ms) > CLOCK_TOLERANCE_MS:
                raise Unproven(f"{name}: its clock is {ahead_ms} ms ahead, not {skew_ms}")
            return f"{name}: its clock is {ahead_ms} ms ahead"

        return "; ".join(await on_each(self.targets, one))


class DiskFull(Switch):
    def switches(self) -> dict[str, Any]:
        return {"disk_full": True}

    async def prove(self) -> str:
        async def one(name: str) -> str:
            module = module_that_says(secrets.token_hex(16))
            answer = await self.field.call(name, "PUT", "/v1/modules", module)
            if answer is None or answer.status != DISK_FULL_STATUS:
                told = "no answer" if answer is None else answer.told()
                raise Unproven(f"{name}: a write was not refused: {told}")
            return f"{name}: a module was refused, {answer.told()}"

        return "; ".join(await on_each(self.targets, one))


class Corrupt(Fault):
    """Flips one bit in the middle of a file of the store, which the node last wrote long before."""

    lasting: ClassVar[bool] = False

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._evidence: list[str] = []

    async def begin(self) -> None:
        for name in self.targets:
            path = await self._path(name)
            before, after = await self.field.thread(flip_a_bit, path)
            if before == after:
                raise Unproven(f"{name}: {path.name} is as it was")
            self._evidence.append(f"{name}: {path.name}: {before[:12]} became {after[:12]}")

    async def _path(self, name: str) -> Path:
        function, what = self.text("function"), self.text("what")
        detail = await self.field.ask(name, f"/v1/functions/{function}", Detail)
        if detail is None:
            raise Unproven(f"{name} does not know function {function}")
        module = detail.summary.module
        data = self.field.directory(name) / "data"
        if what == "module":
            found = [data / "blobs" / module[:2] / f"{module}.module"]
        elif what == "wire":
            found = sorted((data / "wire" / module[:2]).glob(f"{module}.*"))
        else:
            listed = understood(await self.field.call(name, "GET", "/v1/blobs"), Blobs)
            artifacts = (
                []
                if listed is None
                else [
                    blob.digest
                    for blob in listed.blobs
                    if blob.kind == "artifact" and blob.module == module
                ]
            )
            found = [data / "blobs" / each[:2] / f"{each}.artifact" for each in artifacts]
        there = [path for path in found if path.is_file()]
        if not there:
            raise Unproven(f"{name} has no {what} of {function} on disk")
        return there[0]

    async def prove(self) -> str:
        return "; ".join(self._evidence)

    async def end(self) -> str:
        return "left as it is: the node is to find it"


def flip_a_bit(path: Path) -> tuple[str, str]:
    """BLAKE3 before and after. In place: whoever has the file mapped or open sees it too."""
    data = bytearray(path.read_bytes())
    before = blake3(data).hexdigest()
    if not data:
        raise Unproven(f"{path.name} is empty")
    at = len(data) // 2
    data[at] ^= 1
    mode = path.stat().st_mode
    path.chmod(mode | 0o200)
    try:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data[at : at + 1])
    finally:
        path.chmod(mode)
    return before, blake3(path.read_bytes()).hexdigest()
