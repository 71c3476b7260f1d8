"""The words for refused values: key, value, rule, whatever type it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, inspect

from edged.cli.function_file import FunctionFile
from edged.cluster.spec import ClusterSpec
from edged.config import Config
from edged.topology import File
from edged.validation import explain, pattern_words
from protocol.function import FunctionSpec, Policy


def refusal(data: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return explain(error, data, kind)
    return None


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        ({}, Config, "node: missing: write a section [node] with name = …"),
        ({"node": {}}, Config, "node.name: missing: write name = …"),
        ({"node": 3}, Config, "node = 3: write a section [node] or { … }"),
        (
            {"node": {"name": "a", "nmae": 1}},
            Config,
            "node.nmae: there is no such key; name is meant?",
        ),
        (
            {"node": {"name": "a", "region": "EU"}},
            Config,
            "node.region = 'EU': 1 to 32 of a-z 0-9 -, the first a letter or digit, e.g. eu-west",
        ),
        (
            {"node": {"name": "a"}, "gossip": {"preset": "mars"}},
            Config,
            "gossip.preset = 'mars': write lan, local or wan",
        ),
        (
            {"node": {"name": "a"}, "gateway": {"drain_timeout_s": "soon"}},
            Config,
            "gateway.drain_timeout_s = 'soon': write a number above 0",
        ),
        (
            {"memory_bytes": True},
            Policy,
            "memory_bytes = True: write a whole number of bytes from 64 KiB to 4 GiB",
        ),
        ({"env": {"A": 1}}, Policy, "env.A = 1: write text"),
        ({"mounts": "a"}, Policy, "mounts = 'a': write a list, [ … ]"),
        (
            {"regions": {}},
            File,
            "regions = {}: 0 entries; 1 to 64 are allowed",
        ),
        ({"x": 1}, Annotated[dict[str, int], Meta(max_length=0)], "0 to 0 are allowed"),
    ],
)
def test_words(data: Any, kind: Any, said: str) -> None:
    words = refusal(data, kind)
    assert words is not None
    assert said in words


def test_another_name_for_a_key_and_no_long_values() -> None:
    data = {"env": {"A" * 1000: ""}}
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(data, Policy)
    words = explain(caught.value, data, Policy, name={"env": "--env"}.__getitem__)
    assert words.startswith("--env = 'AAA")
    assert len(words) < 200


def patterns(kind: Any) -> Iterator[str]:
    if isinstance(kind, inspect.StrType) and kind.pattern:
        yield kind.pattern
    for field in getattr(kind, "fields", ()):
        yield from patterns(field.type)
    for part in ("item_type", "key_type", "value_type"):
        if hasattr(kind, part):
            yield from patterns(getattr(kind, part))


@pytest.mark.parametrize("kind", [Config, FunctionSpec, FunctionFile, ClusterSpec])
def test_every_pattern_has_words(kind: type) -> None:
    assert [p for p in patterns(inspect.type_info(kind)) if p in pattern_words(p)] == []


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flag: bool
    kind: Literal["a", "b"] = "a"
    count: Annotated[int, Meta(ge=1, le=3)] = 1
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    name: Annotated[str, Meta(min_length=1, max_length=3)] = "x"
    names: Annotated[tuple[str, ...], Meta(max_length=2)] = ()
    table: dict[str, list[int]] = {}


SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["a", "b", 1, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Sample.__struct_fields__, "other"]), VALUES, max_size=4))
def test_whatever_is_refused_is_named(data: dict[str, Any]) -> None:
    words = refusal(data, Sample)
    assert words is None or any(
        words.startswith(key) for key in (*Sample.__struct_fields__, "other")
    ), words
