"""What the guest `useragent` is to answer, by Python's `re` from the same list: its regular
expressions, its automaton and its snapshot are all home-made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from _packages import fetch
from _snapshot_guests import FIREFOX, PATTERNS, matchers

FIELDS = {
    "browser": ("family", "major", "minor", "patch"),
    "os": ("family", "major", "minor", "patch", "build"),
    "device": ("family", "brand", "model"),
}
EVERY = 9
"""Of the patterns, one text each is made."""
TEXTS = f"""{FIREFOX.decode()}
Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/129.0.0.0 Safari/537.36
Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Version/17.5 Mobile/15E148 Safari/604.1
Mozilla/5.0 (Linux; Android 14; SM-S918B) Chrome/129.0.6668.70 Mobile Safari/537.36
Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)
curl/8.5.0
""".split("\n")
"""The last is empty."""
AROUND = (
    "Mozilla/5.0 (Linux; Android 14; {} Build/ABC) AppleWebKit/537.36 Chrome/99.0.1 Mobile",
    "{}",
    "Mozilla/5.0 (compatible; {}; +http://x)",
)


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    fields: list[str | None]


def differing(detect: Callable[[str], bytes]) -> tuple[int, list[str]]:
    """(texts tried, those of them that `detect` answers otherwise)."""
    rules = _rules()
    texts = [*TEXTS, *_made(rules)]
    return len(texts), [
        text for text in texts if json.loads(detect(text)) != _expected(rules, text)
    ]


def _rules() -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {kind: [] for kind in FIELDS}
    for kind, pattern, fold, fields in matchers(fetch(PATTERNS).read_text("utf-8")):
        flags = re.ASCII | (re.IGNORECASE if fold else 0)
        found[kind].append(Rule(re.compile(pattern, flags), fields))
    return found


def _made(rules: dict[str, list[Rule]]) -> list[str]:
    """Texts near what patterns ask for: their own, with the syntax taken out."""
    texts = []
    patterns = [rule.pattern.pattern for each in rules.values() for rule in each]
    for index, pattern in enumerate(patterns[::EVERY]):
        plain = re.sub(r"\\d\+?", "7", pattern)
        plain = re.sub(r"\(\?:|[()^$|?]", "", plain)
        plain = re.sub(r"\[[^\]]*\][*+?]?|\{[^}]*\}|\.[*+?]+", "x", plain).replace("\\", "")
        texts.append(AROUND[index % len(AROUND)].format(plain))
    return texts


def _expected(rules: dict[str, list[Rule]], text: str) -> dict[str, dict[str, str]]:
    return {kind: _of_kind(kind, each, text) for kind, each in rules.items()}


def _of_kind(kind: str, rules: list[Rule], text: str) -> dict[str, str]:
    for rule in rules:
        match = rule.pattern.search(text)
        if match is None:
            continue
        groups = ("", *[group or "" for group in match.groups()], *[""] * 9)
        named = zip(FIELDS[kind], map(partial(_filled, groups), _forms(kind, rule)), strict=True)
        return {name: value for name, value in named if value}
    return {"family": "Other"}


def _forms(kind: str, rule: Rule) -> list[str]:
    """Of each field: what was said, else the group of its number; of a device's brand nothing, of
    its model the first."""
    found = []
    for number, name in enumerate(FIELDS[kind], start=1):
        default = {"brand": "", "model": "$1"}.get(name, f"${number}")
        said = rule.fields[number - 1]
        found.append(default if said is None else said)
    return found


def _filled(groups: tuple[str, ...], form: str) -> str:
    return re.sub(r"\$([1-9])", lambda found: groups[int(found[1])], form).strip(" ")
