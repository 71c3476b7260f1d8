"""The links document: what a cluster's nodes do to what they send each other, in one file.

Nodes read it at their start and get a newer one through the control API; who runs a cluster, and
who breaks one, writes it. A direction between two ends begins as the topology has it, or clear
without one; then each rule that is about it counts, later ones over earlier ones, key by key.

The pure helpers give a document back and change none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from protocol.shaping import Cut, Link

from .config import parse_address
from .errors import ConfigError
from .topology import (
    ANY,
    NODE,
    NOT,
    RULES_MAX,
    End,
    File,
    LinkRow,
    Region,
    Rule,
    Topology,
    applies,
    link_of,
    load_file,
    over,
    regions_named,
    row_of,
    topology_of,
)
from .validation import explain

DOCUMENT_BYTES_MAX: Final = 1024 * 1024
NODES_MAX: Final = 1024
WAYS_MAX: Final = 65_536
"""Directions remembered; more are worked out anew."""


NodeName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")]


class NodeAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    region: Region
    address: Annotated[str, Meta(max_length=300)] = ""
    """host:port that peers dial."""


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    topology: File | None = None
    nodes: Annotated[dict[NodeName, NodeAt], Meta(max_length=NODES_MAX)] = {}
    """By name. Gossip tells the same, but not to a node that is about to join: one that starts
    within a partition would join across it."""
    rules: Annotated[tuple[Rule, ...], Meta(max_length=RULES_MAX)] = ()


EMPTY: Final = Document()


class Way(NamedTuple):
    """From one node to another."""

    link: Link
    own: bool
    """Something was said of that very target: it shares its bandwidth with no other node."""


class Links:
    """A document's answers."""

    def __init__(self, document: Document) -> None:
        self.document: Final = document
        self._ways: dict[tuple[End, End], Way] = {}

    def way(self, source: End, target: End) -> Way:
        """A region that the topology does not have is clear but for the rules."""
        key = (source, target)
        found = self._ways.get(key)
        if found is None:
            found = self._work_out(source, target)
            if len(self._ways) >= WAYS_MAX:
                self._ways.clear()
            self._ways[key] = found
        return found

    def link(self, source: End, target: End) -> Link:
        return self.way(source, target).link

    def _work_out(self, source: End, target: End) -> Way:
        file, rules = self.document.topology, self.document.rules
        row = LinkRow()
        if file is not None and {source.region, target.region} <= file.regions.keys():
            row = row_of(file, source, target)
            rules = (*file.links, *rules)
        row = over(row, self.document.rules, source, target)
        named = (applies(rule, source, target) or () for rule in rules)
        own = any(selector.startswith(NODE) for selectors in named for selector in selectors)
        return Way(link_of(row), own)


# ---------------------------------------------------------------- reading and writing
def parse_document(data: bytes, *, where: str = "links", beside: Sequence[str] = ()) -> Document:
    """`beside`: keys that are somebody else's. Raises ConfigError naming the key, the value and the
    rule."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ConfigError(f"{where}: {len(data)} bytes, {DOCUMENT_BYTES_MAX} are allowed")
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if isinstance(plain, dict):
        plain = {key: value for key, value in plain.items() if key not in beside}
    try:
        document = msgspec.convert(plain, Document)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, plain, Document)}") from error
    check_document(document, where=where)
    return document


def check_document(document: Document, *, where: str = "links") -> None:
    """What the types do not say. Raises ConfigError."""
    for name, at in document.nodes.items():
        if at.address:
            parse_address(at.address, key=f"{where}: nodes.{name}.address")
    if document.topology is None:
        return
    regions = topology_of(document.topology, name="", where=f"{where}: topology").regions
    known = {*regions, *(node.region for node in document.nodes.values())}
    for key, region in regions_named(document.rules, "rules"):
        if region not in known:
            raise ConfigError(
                f"{where}: {key}: {region!r} is no region of the topology; "
                f"there are {', '.join(regions)}"
            )


def load_document(path: Path) -> Document:
    """Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read links {path}: {error.strerror}") from error
    return parse_document(data, where=str(path))


def as_topology(document: Document, *, name: str) -> Topology:
    """What holds between the regions now, single nodes aside. Raises ConfigError: there are no
    regions."""
    file, links = document.topology, Links(document)
    shares = dict(file.regions) if file is not None else {}
    for at in document.nodes.values():
        shares.setdefault(at.region, 1.0)
    if not shares:
        raise ConfigError(f"{name}: neither a topology nor nodes: there are no regions to show")
    total = sum(shares.values())
    return Topology(
        name=name,
        regions=tuple(shares),
        shares=tuple(share / total for share in shares.values()),
        links={(a, b): links.link(End("", a), End("", b)) for a in shares for b in shares},
        about=file.about if file is not None else "",
        source=file.source if file is not None else "",
        date=file.date if file is not None else "",
    )


def encode_document(document: Document) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def document_of(topology: Path | None, nodes: Mapping[str, NodeAt] | None = None) -> Document:
    """A cluster's first: nothing but its topology file. Raises ConfigError."""
    file = None if topology is None else load_file(topology)
    return Document(topology=file, nodes=dict(nodes or {}))


# ---------------------------------------------------------------- changes
def partition(
    document: Document,
    groups: Sequence[Sequence[str]],
    *,
    cut: Cut = "drop",
    both: bool = True,
    label: str = "partition",
) -> Document:
    """Nothing passes from one group to another; a group is regions and "node:NAME"s. Not `both`:
    nothing from the first to the others, while the ways back stay open."""
    froms = groups if both else groups[:1]
    pairs = [(one, other) for at, one in enumerate(froms) for other in groups[at + 1 :]]
    rules = [
        Rule(sources=tuple(one), targets=tuple(other), both=both, cut=cut, label=label)
        for one, other in pairs
    ]
    return with_rules(document, rules)


def slow(
    document: Document,
    nodes: Sequence[str],
    *,
    to: Sequence[str] = (ANY,),
    extra_ms: float | UnsetType = UNSET,
    jitter_ms: float | UnsetType = UNSET,
    loss: float | UnsetType = UNSET,
    bandwidth_mbit: float | UnsetType | None = UNSET,
    label: str = "slow",
) -> Document:
    """All ways between these nodes and those (names or regions as in `partition`)."""
    rule = Rule(
        sources=tuple(nodes),
        targets=tuple(to),
        both=True,
        extra_ms=extra_ms,
        jitter_ms=jitter_ms,
        loss=loss,
        bandwidth_mbit=bandwidth_mbit,
        label=label,
    )
    return with_rules(document, [rule])


def with_rules(document: Document, rules: Iterable[Rule]) -> Document:
    return msgspec.structs.replace(document, rules=(*document.rules, *rules))


def without(document: Document, label: str) -> Document:
    """Takes back all rules of that label."""
    kept = tuple(rule for rule in document.rules if rule.label != label)
    return msgspec.structs.replace(document, rules=kept)


def heal(document: Document) -> Document:
    """No rule cuts anything; what else they say stays."""
    mended = [msgspec.structs.replace(rule, cut=UNSET) for rule in document.rules]
    kept = [
        rule
        for rule in mended
        if any(getattr(rule, name) is not UNSET for name in LinkRow.__struct_fields__)
    ]
    return msgspec.structs.replace(document, rules=tuple(kept))


def others(selectors: Iterable[str]) -> tuple[str, ...]:
    """All who are in none of these, now or later."""
    return tuple(NOT + selector for selector in selectors)


def node(name: str) -> str:
    """The selector of one node."""
    return NODE + name
