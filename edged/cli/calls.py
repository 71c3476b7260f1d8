"""Calls of exports as people write them: NAME, or NAME(1, 2.5, "text", ["a", "b"])."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from edged.errors import ConfigError


def parse_call(text: str, *, option: str, exports: Container[str] = ()) -> tuple[str, list[Any]]:
    """Name and arguments, which are as in JSON. Names may hold parentheses: what is one of
    `exports` is a name, else the first reading whose arguments are JSON counts.

    Raises ConfigError."""
    if text in exports:
        return text, []
    at = text.find("(")
    while at > 0 and text.endswith(")"):
        try:
            return text[:at], json.loads(f"[{text[at + 1 : -1]}]")
        except (ValueError, RecursionError):
            at = text.find("(", at + 1)
    if text and not text.endswith(")"):
        return text, []
    raise ConfigError(
        f"{option} {text!r}: neither an export's NAME nor NAME(ARG,…) with numbers, texts or lists"
        " of texts"
    )
