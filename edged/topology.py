"""Regions and the links between them: what `configs/topologies/*.toml` says, as a frozen value.

Read by the simulator and by whoever delays a real node's own traffic. A file has
  about, source, date    text: what it models, where the numbers are from, and as of when
  [link]                 what holds of every link unless said otherwise (keys of LinkRow)
  [rtt_ms.A]             B = round trip in ms from A to B. Half of it is the latency A → B. Where
                         only one of A → B and B → A is given, it holds both ways; A to A too may
                         be given. Not to be derived from geography: measured ones break the
                         triangle inequality.
  [[links]]              from = [A, …], to = [B, …] and any keys of LinkRow, for this direction;
                         both = true: and the way back. Later ones win; all win over rtt_ms.
  [regions]              NAME = share: weight when nodes are dealt out; it lists all regions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from .errors import ConfigError
from .validation import explain

REGIONS_MAX: Final = 64
Region = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
_Ms = Annotated[float, Meta(ge=0, le=60_000)]
_Share = Annotated[float, Meta(gt=0, le=1_000_000)]
_Loss = Annotated[float, Meta(ge=0, le=1)]
_Mbit = Annotated[float, Meta(gt=0, le=1_000_000)]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class LinkRow(_Row, frozen=True, kw_only=True):
    latency_ms: _Ms | None = None
    """One way."""
    jitter_ms: _Ms | None = None
    """Uniform on top of the latency."""
    loss: _Loss | None = None
    """Of datagrams; streams pay for it in time."""
    bandwidth_mbit: _Mbit | None = None
    """Of all flows of the link together; unlimited if never given."""


class DirectedRow(LinkRow, frozen=True, kw_only=True):
    sources: Annotated[tuple[Region, ...], Meta(min_length=1, max_length=REGIONS_MAX)] = (
        msgspec.field(name="from")
    )
    targets: Annotated[tuple[Region, ...], Meta(min_length=1, max_length=REGIONS_MAX)] = (
        msgspec.field(name="to")
    )
    both: bool = False


class File(_Row, frozen=True, kw_only=True):
    regions: Annotated[dict[Region, _Share], Meta(min_length=1, max_length=REGIONS_MAX)]
    about: str = ""
    source: str = ""
    date: str = ""
    link: LinkRow = LinkRow()
    rtt_ms: Annotated[dict[Region, dict[Region, _Ms]], Meta(max_length=REGIONS_MAX)] = {}
    links: Annotated[tuple[DirectedRow, ...], Meta(max_length=REGIONS_MAX**2)] = ()


class Link(msgspec.Struct, frozen=True):
    """One direction between two regions, or within one."""

    latency_s: float
    jitter_s: float
    loss: float
    bandwidth_bytes_s: float | None
    """None: unlimited."""


class Topology(msgspec.Struct, frozen=True):
    name: str
    """Of the file, without its suffix."""
    regions: tuple[str, ...]
    shares: tuple[float, ...]
    """Weights of `regions`, adding up to 1."""
    links: dict[tuple[str, str], Link]
    """Every ordered pair, a region with itself included."""
    about: str = ""

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


def load_topology(path: Path) -> Topology:
    """Raises ConfigError naming file, key, value and rule."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read topology {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return parse_topology(data, name=path.stem, where=str(path))


def parse_topology(data: dict[str, Any], *, name: str, where: str = "topology") -> Topology:
    """Raises ConfigError."""
    try:
        file = msgspec.convert(data, File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, data, File)}") from error
    _check_regions(file, where)
    total = sum(file.regions.values())
    regions = tuple(file.regions)
    rows = {(a, b): _base(file, a, b) for a in regions for b in regions}
    for directed in file.links:
        for ends in _ends(directed):
            rows[ends] = _over(rows[ends], directed)
    missing = [f"{a} → {b}" for (a, b), row in rows.items() if row.latency_ms is None]
    if missing:
        raise ConfigError(
            f"{where}: no latency from {missing[0]} ({len(missing)} links lack one): give it in "
            f"[rtt_ms], in [[links]], or link.latency_ms for all"
        )
    return Topology(
        name=name,
        regions=regions,
        shares=tuple(share / total for share in file.regions.values()),
        links={ends: _link(row) for ends, row in rows.items()},
        about=file.about,
    )


def _check_regions(file: File, where: str) -> None:
    named: list[tuple[str, str]] = []
    for source, row in file.rtt_ms.items():
        named.append((f"rtt_ms.{source}", source))
        named.extend((f"rtt_ms.{source}.{target}", target) for target in row)
    for at, directed in enumerate(file.links):
        named.extend((f"links[{at}].from", region) for region in directed.sources)
        named.extend((f"links[{at}].to", region) for region in directed.targets)
    for key, region in named:
        if region not in file.regions:
            raise ConfigError(
                f"{where}: {key}: {region!r} is not a key of [regions]; "
                f"there are {', '.join(file.regions)}"
            )


def _base(file: File, source: str, target: str) -> LinkRow:
    rtt_ms = file.rtt_ms.get(source, {}).get(target)
    if rtt_ms is None:
        rtt_ms = file.rtt_ms.get(target, {}).get(source)
    if rtt_ms is None:
        return file.link
    return msgspec.structs.replace(file.link, latency_ms=rtt_ms / 2)


def _ends(directed: DirectedRow) -> Iterator[tuple[str, str]]:
    for source in directed.sources:
        for target in directed.targets:
            yield source, target
            if directed.both:
                yield target, source


def _over(row: LinkRow, directed: DirectedRow) -> LinkRow:
    given = {
        name: value
        for name in LinkRow.__struct_fields__
        if (value := getattr(directed, name)) is not None
    }
    return msgspec.structs.replace(row, **given)


def _link(row: LinkRow) -> Link:
    assert row.latency_ms is not None
    return Link(
        latency_s=row.latency_ms / 1000,
        jitter_s=(row.jitter_ms or 0.0) / 1000,
        loss=row.loss or 0.0,
        bandwidth_bytes_s=None if row.bandwidth_mbit is None else row.bandwidth_mbit * 125_000,
    )
