"""Modules written for one feature each: `same/` are snapshotted by Wizer, `refused/` are not.

The text's head says how a module is used: `;; init: EXPORT`, `;; calls: f(1) g()` after the
snapshot, `;; state: no` where its memory is too large to be read whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import wasmtime

from .running import Call

HERE = Path(__file__).resolve().parent
DIRECTIVE = re.compile(r"^;; (init|calls|state|edged|wizer): (.*)$", re.MULTILINE)
CALL = re.compile(r"([^\s()]*)\(([^)]*)\)")


@dataclass(frozen=True)
class Case:
    name: str
    wasm: bytes
    initialiser: str
    calls: tuple[Call, ...]
    whole: bool
    """Its memories are small enough to be compared byte for byte while it runs, too."""
    edged: str
    """Of a refused module: edged's reason, or "ok" if edged can."""
    wizer: str
    """Of a refused module: part of what Wizer says."""

    @property
    def before(self) -> list[Call]:
        """What stands for the initialiser where there is no snapshot."""
        reactor = self.initialiser != "_initialize" and b"_initialize" in self.wasm
        return [*([("_initialize", ())] * reactor), (self.initialiser, ())]


def number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def calls_of(text: str) -> tuple[Call, ...]:
    found = []
    for match in CALL.finditer(text):
        arguments = [number(part) for part in match[2].split(",") if part.strip()]
        found.append((match[1], tuple(arguments)))
    return tuple(found)


@cache
def cases(directory: str) -> dict[str, Case]:
    found = {}
    for path in sorted((HERE / directory).glob("*.wat")):
        text = path.read_text(encoding="utf-8")
        said = dict(DIRECTIVE.findall(text))
        found[path.stem] = Case(
            path.stem,
            bytes(wasmtime.wat2wasm(text)),
            said.get("init", "wizer-initialize"),
            calls_of(said.get("calls", "")),
            said.get("state") != "no",
            said.get("edged", ""),
            said.get("wizer", ""),
        )
    return found
