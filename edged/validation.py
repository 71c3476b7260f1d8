"""What is wrong with a value that msgspec refused, in an operator's words.

`explain` names the key (or flag), the value, and the rule it breaks with both of its ends. It
walks the value beside its type and stops at the first thing that does not hold, so it depends on
no wording of msgspec's; where it finds nothing, msgspec's own text is what is left.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

VALUE_CHARACTERS_MAX: Final = 60
"""Of a wrong value that are shown."""

PATTERNS: Final[Mapping[str, str]] = {
    r"^[a-z0-9][a-z0-9-]{0,31}": (
        "1 to 32 of a-z 0-9 -, the first a letter or digit, e.g. eu-west"
    ),
    r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?": (
        "the name of a node: 1 to 63 of a-z 0-9 . - _, first and last a letter or digit"
    ),
    r"^(\*|!?([a-z0-9][a-z0-9-]{0,31}|node:[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?))": (
        'a region, "node:NAME", "*" for all, or one after "!": not it'
    ),
    r"^(https?://[\x21-\x7e]+)?": "an http:// or https:// URL without spaces",
    r"^[A-Z]{1,16}": "an HTTP method, 1 to 16 of A-Z, e.g. GET",
    r"^[A-Za-z_][A-Za-z0-9_.-]*": (
        "a variable's name: of A-Z a-z 0-9 _ . -, the first a letter or _, e.g. GREETING"
    ),
    r"^/[A-Za-z0-9._/-]*": "a path of the guest: / and then of A-Z a-z 0-9 . _ / -, e.g. /assets",
    r"^[a-z0-9][a-z0-9_-]{0,62}": (
        "a name of the node's [mounts]: 1 to 63 of a-z 0-9 _ -, the first a letter or digit"
    ),
    r"^(none|signed|quorum=([2-9]|1[0-6]))": (
        '"none" (compile all here), "signed" (by any builder of the cluster), or "quorum=K", K of 2'
        " to 16 builders"
    ),
}
"""Rules in words, by the pattern without its end; one that has no words here is shown as it is."""


class _Wrong(NamedTuple):
    path: str
    value: Any
    """_ABSENT where it is the key that is wrong."""
    rule: str


_ABSENT: Final = object()


def explain(
    error: msgspec.ValidationError,
    data: Any,
    kind: Any,
    *,
    name: Callable[[str], str] = str,
) -> str:
    """`region = 'EU': 1 to 32 of …` for what `msgspec.convert(data, kind)` raised as `error`.

    `name` may put another name, such as a flag's, in place of a key like "policy.memory_bytes";
    an index is left out of it ("methods" of methods[0])."""
    found = next(_walk(data, inspect.type_info(kind), ""), None)
    if found is None:
        return str(error)
    head = name(found.path)
    if found.value is _ABSENT:
        return f"{head}: {found.rule}" if head else found.rule
    return f"{head} = {shown(found.value)}: {found.rule}" if head else found.rule


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "…"


def in_binary_units(count: int) -> str:
    """65536 as "64 KiB"; what no unit divides stays bytes."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count and count % size == 0:
            return f"{count // size} {unit}"
    return str(count)


def pattern_words(pattern: str) -> str:
    bare = pattern.removesuffix("$").removesuffix(r"\Z")
    return PATTERNS.get(bare, f"text that matches {pattern}")


# ---------------------------------------------------------------- the walk
def _walk(value: Any, kind: inspect.Type, path: str) -> Iterator[_Wrong]:
    match kind:
        case inspect.Metadata():
            yield from _walk(value, kind.type, path)
        case inspect.StructType():
            yield from _walk_struct(value, kind, path)
        case inspect.DictType():
            yield from _walk_dict(value, kind, path)
        case inspect.VarTupleType() | inspect.ListType():
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                yield _Wrong(path, value, "write a list, [ … ]")
                return
            yield from _check_length(value, kind, path, "entries")
            for item in value:
                yield from _walk(item, kind.item_type, path)
        case inspect.UnionType():
            others = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
            if value is not None and len(others) == 1:
                yield from _walk(value, others[0], path)
        case inspect.LiteralType():
            if value not in kind.values:
                yield _Wrong(path, value, _one_of(value, kind.values))
        case _:
            yield from _check_scalar(value, kind, path)


def _walk_struct(value: Any, kind: inspect.StructType, path: str) -> Iterator[_Wrong]:
    if not isinstance(value, Mapping):
        yield _Wrong(path, value, _section_rule(path))
        return
    known = {field.encode_name: field for field in kind.fields}
    if kind.forbid_unknown_fields:
        for key in value:
            if key not in known:
                yield _Wrong(_join(path, key), _ABSENT, _unknown(str(key), known))
    for key, field in known.items():
        if key in value:
            yield from _walk(value[key], field.type, _join(path, key))
        elif field.required:
            yield _Wrong(_join(path, key), _ABSENT, _missing(key, field, path))


def _walk_dict(value: Any, kind: inspect.DictType, path: str) -> Iterator[_Wrong]:
    if not isinstance(value, Mapping):
        yield _Wrong(path, value, _section_rule(path))
        return
    yield from _check_length(value, kind, path, "entries")
    for key, item in value.items():
        yield from _walk(key, kind.key_type, path)
        yield from _walk(item, kind.value_type, _join(path, key))


def _check_scalar(value: Any, kind: inspect.Type, path: str) -> Iterator[_Wrong]:
    match kind:
        case inspect.BoolType() if not isinstance(value, bool):
            yield _Wrong(path, value, "write true or false")
        case inspect.IntType() if type(value) is not int or not _within(value, kind):
            yield _Wrong(path, value, f"write a whole number{_range(kind, path)}")
        case inspect.FloatType() if type(value) not in (int, float) or not _within(value, kind):
            yield _Wrong(path, value, f"write a number{_range(kind, path)}")
        case inspect.StrType() if not isinstance(value, str):
            yield _Wrong(path, value, "write text")
        case inspect.StrType():
            if kind.pattern is not None and re.search(kind.pattern, value) is None:
                yield _Wrong(path, value, pattern_words(kind.pattern))
            yield from _check_length(value, kind, path, "characters")


def _check_length(value: Any, kind: Any, path: str, unit: str) -> Iterator[_Wrong]:
    low, high = kind.min_length or 0, kind.max_length
    if len(value) < low or (high is not None and len(value) > high):
        span = f"at least {low}" if high is None else f"{low} to {high}"
        yield _Wrong(path, value, f"{len(value)} {unit}; {span} are allowed")


# ---------------------------------------------------------------- words
def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return not (
        math.isnan(value)
        or (kind.ge is not None and value < kind.ge)
        or (kind.le is not None and value > kind.le)
        or (kind.gt is not None and value <= kind.gt)
        or (kind.lt is not None and value >= kind.lt)
    )


def _range(kind: Any, path: str) -> str:
    """The bounds of a number, sizes in binary units."""
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    size = path.endswith(("_bytes", "_bytes_max"))
    unit = " of bytes" if size else ""
    low, high = (
        in_binary_units(int(bound)) if size and bound is not None else bound
        for bound in (kind.ge, kind.le)
    )
    if kind.gt is not None:
        return f"{unit} above {kind.gt}"
    if low is not None and high is not None:
        return f"{unit} from {low} to {high}"
    if low is not None:
        return f"{unit}, {low} or more"
    return unit if high is None else f"{unit}, {high} or less"


def _one_of(value: Any, values: Sequence[Any]) -> str:
    words = [str(item) for item in values]
    return f"write {', '.join(words[:-1])} or {words[-1]}" + meant(str(value), words)


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    return "there is no such key" + (meant(key, known) or f"; there are {', '.join(known)}")


def meant(word: str, words: Mapping[str, Any] | Sequence[str]) -> str:
    """`; x is meant?`, or nothing."""
    close = difflib.get_close_matches(word, list(words), 1)
    return f"; {close[0]} is meant?" if close else ""


def _missing(key: str, field: inspect.Field, path: str) -> str:
    if isinstance(field.type, inspect.StructType):
        required = [f.encode_name for f in field.type.fields if f.required]
        inside = f" with {', '.join(required)} = …" if required else ""
        return f"missing: write a section [{_join(path, key)}]{inside}"
    if isinstance(field.type, inspect.VarTupleType) and not path:
        return f"missing: write at least one [[{key}]]"
    return f"missing: write {key} = …"


def _section_rule(path: str) -> str:
    return f"write a section [{path}] or {{ … }}" if path else "write sections and keys"


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
