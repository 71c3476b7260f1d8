"""Regions and the links between them: what `configs/topologies/*.toml` says, as a frozen value.

Read by the simulator, by clients that act from a region, and by nodes that shape what they send
(links.py). edged/docs/TOPOLOGIES.md has the format. Of one direction between two ends, later words
win over earlier ones, key by key: [link], [rtt_ms], then each of [[links]].
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from protocol.shaping import Cut, Jitter, Link

from .errors import ConfigError
from .validation import explain

__all__ = ["End", "Link", "Topology", "find_topology", "load_topology", "parse_topology"]

T = TypeVar("T")

REGIONS_MAX: Final = 64
RULES_MAX: Final = 4096
SHIPPED: Final = "configs/topologies"
ANY: Final = "*"
NODE: Final = "node:"
NOT: Final = "!"
Region = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Selector = Annotated[
    str,
    Meta(
        pattern=r"^(\*|!?([a-z0-9][a-z0-9-]{0,31}|node:[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?))\Z",
        max_length=80,
    ),
]
"""A region, "node:NAME", or "*": all. With "!" before it: not who is in it. A list of such
alone means everybody else, also who comes later."""
_Ms = Annotated[float, Meta(ge=0, le=60_000)]
_Share = Annotated[float, Meta(gt=0, le=1_000_000)]
_Chance = Annotated[float, Meta(ge=0, le=1)]
_Correlation = Annotated[float, Meta(ge=0, le=0.999)]
_Mbit = Annotated[float, Meta(ge=0.001, le=1_000_000)]


class End(NamedTuple):
    """Of a link: a node, or with an empty name any client or node of the region."""

    name: str
    region: str

    def is_in(self, selector: str) -> bool:
        return selector in (ANY, self.region) or (
            selector.startswith(NODE) and selector[len(NODE) :] == self.name
        )

    def fits(self, selectors: Sequence[str]) -> list[str]:
        """Those of a list by which it is meant; none: it is not.

        One without a name is on the side of its region; a list that excludes nothing but nodes has
        nothing to say of it: around them there are nodes only."""
        barred = [each[len(NOT) :] for each in selectors if each.startswith(NOT)]
        if any(map(self.is_in, barred)):
            return []
        if not self.name and all(each.startswith(NODE) for each in barred):
            barred = []
        wanted = [each for each in selectors if not each.startswith(NOT)]
        if wanted:
            return [each for each in wanted if self.is_in(each)]
        return [NOT + each for each in barred]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class LinkRow(_Row, frozen=True, kw_only=True):
    """What is not given is left as it was."""

    latency_ms: _Ms | UnsetType = UNSET
    """One way."""
    extra_ms: _Ms | UnsetType = UNSET
    """On top of the latency, whatever that is."""
    jitter_ms: _Ms | UnsetType = UNSET
    jitter: Jitter | UnsetType = UNSET
    correlation: _Correlation | UnsetType = UNSET
    loss: _Chance | UnsetType = UNSET
    """Of datagrams; streams pay for it in time."""
    duplicate: _Chance | UnsetType = UNSET
    reorder: _Chance | UnsetType = UNSET
    bandwidth_mbit: _Mbit | UnsetType | None = UNSET
    """Of all flows of the link together; null, or never given: unlimited."""
    cut: Cut | UnsetType | None = UNSET
    """null: not cut, whatever was said before."""


class Rule(LinkRow, frozen=True, kw_only=True):
    """What holds of some links."""

    sources: Annotated[tuple[Selector, ...], Meta(min_length=1, max_length=256)] = msgspec.field(
        name="from"
    )
    targets: Annotated[tuple[Selector, ...], Meta(min_length=1, max_length=256)] = msgspec.field(
        name="to"
    )
    both: bool = False
    """And the way back."""
    label: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET
    """By which it may be found and taken back."""


class File(_Row, frozen=True, kw_only=True):
    regions: Annotated[dict[Region, _Share], Meta(min_length=1, max_length=REGIONS_MAX)]
    name: Annotated[str, Meta(max_length=64)] = ""
    """Of the topology, where it does not follow from the file's."""
    about: str = ""
    source: str = ""
    date: str = ""
    link: LinkRow = LinkRow()
    rtt_ms: Annotated[dict[Region, dict[Region, _Ms]], Meta(max_length=REGIONS_MAX)] = {}
    links: Annotated[tuple[Rule, ...], Meta(max_length=RULES_MAX)] = ()


class Topology(msgspec.Struct, frozen=True):
    name: str
    """Of the file, without its suffix."""
    regions: tuple[str, ...]
    shares: tuple[float, ...]
    """Weights of `regions`, adding up to 1."""
    links: dict[tuple[str, str], Link]
    """Every ordered pair, a region with itself included; nothing that is said of single nodes."""
    about: str = ""
    source: str = ""
    date: str = ""

    def link(self, source: str, target: str) -> Link:
        """Raises ConfigError for a region that is not in the file."""
        found = self.links.get((source, target))
        if found is None:
            strange = source if source not in self.regions else target
            raise ConfigError(
                f"region {strange!r} is not in topology {self.name}; "
                f"there are {', '.join(self.regions)}"
            )
        return found

    def deal(self, count: int) -> list[str]:
        """Regions of `count` nodes in the proportion of the shares, interleaved: each next node
        goes where most is missing, ties by the order of the file."""
        given = [0] * len(self.regions)
        dealt: list[str] = []
        for number in range(1, count + 1):
            missing = [
                share * number - have for share, have in zip(self.shares, given, strict=True)
            ]
            place = missing.index(max(missing))
            given[place] += 1
            dealt.append(self.regions[place])
        return dealt


def find_topology(text: str) -> Path:
    """A file, or the name of one that is shipped. Raises ConfigError."""
    path = Path(text)
    if path.suffix or path.exists():
        return path
    for directory in (Path(SHIPPED), Path(__file__).resolve().parents[1] / SHIPPED):
        if (named := directory / f"{text}.toml").is_file():
            return named
    raise ConfigError(f"cannot read topology {text}: neither a file nor one of {SHIPPED}")


def load_topology(path: Path) -> Topology:
    """Raises ConfigError naming file, key, value and rule."""
    return topology_of(load_file(path), name=path.stem, where=str(path))


def load_file(path: Path) -> File:
    """With its name. Raises ConfigError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read topology {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    file = _file_of(data, str(path))
    named = file if file.name else msgspec.structs.replace(file, name=path.stem)
    topology_of(named, name=path.stem, where=str(path))
    return named


def parse_topology(data: dict[str, Any], *, name: str, where: str = "topology") -> Topology:
    """Raises ConfigError."""
    return topology_of(_file_of(data, where), name=name, where=where)


def _file_of(data: dict[str, Any], where: str) -> File:
    """Raises ConfigError."""
    try:
        return msgspec.convert(data, File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, data, File)}") from error


def topology_of(file: File, *, name: str, where: str = "topology") -> Topology:
    """Raises ConfigError: what the types do not say."""
    _check_regions(file, where)
    total = sum(file.regions.values())
    regions = tuple(file.regions)
    rows = {(a, b): row_of(file, End("", a), End("", b)) for a in regions for b in regions}
    missing = [f"{a} → {b}" for (a, b), row in rows.items() if row.latency_ms is UNSET]
    if missing:
        raise ConfigError(
            f"{where}: no latency from {missing[0]} ({len(missing)} links lack one): give it in "
            f"[rtt_ms], in [[links]], or link.latency_ms for all"
        )
    return Topology(
        name=file.name or name,
        regions=regions,
        shares=tuple(share / total for share in file.regions.values()),
        links={ends: link_of(row) for ends, row in rows.items()},
        about=file.about,
        source=file.source,
        date=file.date,
    )


def row_of(file: File, source: End, target: End) -> LinkRow:
    """What the file says of that direction."""
    row = file.link
    rtt_ms = file.rtt_ms.get(source.region, {}).get(target.region)
    if rtt_ms is None:
        rtt_ms = file.rtt_ms.get(target.region, {}).get(source.region)
    if rtt_ms is not None:
        row = msgspec.structs.replace(row, latency_ms=rtt_ms / 2)
    return over(row, file.links, source, target)


def over(row: LinkRow, rules: Iterable[Rule], source: End, target: End) -> LinkRow:
    """`row` with what the rules say of that direction, the last word of each key."""
    given: dict[str, Any] = {}
    for rule in rules:
        if applies(rule, source, target) is not None:
            given |= _given(rule)
    return msgspec.structs.replace(row, **given) if given else row


def applies(rule: Rule, source: End, target: End) -> Sequence[str] | None:
    """The selectors that the target fits, if the rule is about that direction."""
    ways = [(rule.sources, rule.targets)]
    if rule.both:
        ways.append((rule.targets, rule.sources))
    found = [selector for froms, tos in ways if source.fits(froms) for selector in target.fits(tos)]
    return found or None


def link_of(row: LinkRow) -> Link:
    mbit = _or(row.bandwidth_mbit, None)
    return Link(
        latency_s=(_or(row.latency_ms, 0.0) + _or(row.extra_ms, 0.0)) / 1000,
        jitter_s=_or(row.jitter_ms, 0.0) / 1000,
        loss=_or(row.loss, 0.0),
        bandwidth_bytes_s=None if mbit is None else mbit * 125_000,
        jitter=_or(row.jitter, "uniform"),
        correlation=_or(row.correlation, 0.0),
        duplicate=_or(row.duplicate, 0.0),
        reorder=_or(row.reorder, 0.0),
        cut=_or(row.cut, None),
    )


def _given(row: LinkRow) -> dict[str, Any]:
    return {
        name: value
        for name in LinkRow.__struct_fields__
        if (value := getattr(row, name)) is not UNSET
    }


def _or(value: T | UnsetType, default: T) -> T:
    return default if isinstance(value, UnsetType) else value


def _check_regions(file: File, where: str) -> None:
    named = [(f"rtt_ms.{source}", source) for source in file.rtt_ms]
    named += [
        (f"rtt_ms.{source}.{target}", target)
        for source, row in file.rtt_ms.items()
        for target in row
    ]
    for key, region in (*named, *regions_named(file.links, "links")):
        if region not in file.regions:
            raise ConfigError(
                f"{where}: {key}: {region!r} is not a key of [regions]; "
                f"there are {', '.join(file.regions)}"
            )


def regions_named(rules: Sequence[Rule], key: str) -> Iterator[tuple[str, str]]:
    """(where, region) of all that rules name."""
    for at, rule in enumerate(rules):
        for end, selectors in (("from", rule.sources), ("to", rule.targets)):
            for selector in selectors:
                name = selector.removeprefix(NOT)
                if name != ANY and not name.startswith(NODE):
                    yield f"{key}[{at}].{end}", name
