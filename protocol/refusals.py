"""Refused items inside accepted input: counted, and the rest goes on. SPEC §1.4."""

from __future__ import annotations

from collections import Counter

from .errors import RemoteProtocolError


class Counting:
    """Counts a refused item and goes on."""

    def __init__(self, refused: Counter[str]) -> None:
        self._refused = refused

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, RemoteProtocolError):
            self._refused[error.code] += 1
            return True
        return False
