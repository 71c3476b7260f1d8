"""What load shall be put on a cluster: frozen values, from TOML or from flags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edged.errors import ConfigError
from edged.topology import Region
from edged.validation import explain, shown

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Weight = Annotated[float, Meta(gt=0, le=1_000_000)]
Rate = Annotated[float, Meta(ge=0, le=100_000)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
DURATION_S_MAX: Final = 7 * 86_400
NODE: Final = "node:"

_STAGE: Final = re.compile(
    r"(?P<rate>[0-9.]+)(-(?P<to>[0-9.]+))?:(?P<count>[0-9.]+)(?P<unit>ms|s|m|h)\Z"
)
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TARGET: Final = re.compile(r"(?:[/?][!-~]*)?\Z")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Stage(Part, frozen=True, kw_only=True):
    rate: Rate
    """Requests per second, of all regions and functions together."""
    to: Rate | None = None
    """Rate at its end, reached in a straight line; None: constant."""
    seconds: Annotated[float, Meta(gt=0, le=DURATION_S_MAX)]
    name: str = ""

    @property
    def end_rate(self) -> float:
        return self.rate if self.to is None else self.to

    @property
    def requests(self) -> float:
        """Expected."""
        return (self.rate + self.end_rate) / 2 * self.seconds


class FunctionLoad(Part, frozen=True, kw_only=True):
    name: Name
    path: Annotated[str, Meta(max_length=4096)] = ""
    """Behind the name, escaped, with the query: "/a/b?x=1"."""
    method: Annotated[str, Meta(pattern=r"^[A-Z]{1,16}\Z")] = "GET"
    body: Annotated[str, Meta(max_length=BODY_BYTES_MAX)] = ""
    headers: Annotated[dict[str, str], Meta(max_length=64)] = {}
    weight: Weight | None = None
    """Of this function among all; None: by `zipf` and its place in the list."""
    expect: Annotated[dict[str, Digest], Meta(max_length=1024)] = {}
    """X-Edged-Version, or "*" for any other -> BLAKE3 of the only right body."""


class LoadSpec(Part, frozen=True, kw_only=True):
    functions: Annotated[tuple[FunctionLoad, ...], Meta(min_length=1, max_length=10_000)]
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=1000)]
    arrivals: Literal["constant", "poisson"] = "poisson"
    """poisson: as many independent clients; constant: equal distances."""
    zipf: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Exponent s: the n-th function is asked for in proportion to n^-s. 0: all alike."""
    regions: Annotated[dict[Region, Weight], Meta(max_length=64)] = {}
    """Where the clients are, and how many of them; empty: at every node's region alike."""
    routing: Annotated[str, Meta(max_length=256)] = "nearest"
    """nearest (by RTT), random, or "node:NAME"."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0
    """Of one request, from when it is sent."""
    in_flight_max: Annotated[int, Meta(ge=1, le=65_536)] = 2048
    """Requests under way at once; those beyond it are late."""

    @property
    def duration_s(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def parse_load(
    data: Mapping[str, Any],
    *,
    where: str = "load",
    functions: Sequence[FunctionLoad] = (),
    seconds: float | None = None,
) -> LoadSpec:
    """Raises ConfigError naming the key, the value and the rule.

    Beside the keys of LoadSpec `rate` is understood in place of `stages`: a number for `seconds`,
    or the text of `parse_stages`. `functions`: where `data` has none."""
    plain = {key: value for key, value in data.items() if key != "rate"}
    plain.setdefault("functions", msgspec.to_builtins(functions))
    if "rate" in data:
        if "stages" in data:
            raise ConfigError(f"{where}: rate and stages say the same: leave one out")
        plain["stages"] = msgspec.to_builtins(_stages_of(data["rate"], seconds, where))
    try:
        spec = msgspec.convert(plain, LoadSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, plain, LoadSpec)}") from error
    check_load(spec, where=where)
    return spec


def _stages_of(rate: object, seconds: float | None, where: str) -> tuple[Stage, ...]:
    if isinstance(rate, str):
        return parse_stages(rate)
    if seconds is None or isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"{where}: rate = {shown(rate)}: write it as in 50:30s,200:10s")
    return (Stage(rate=float(rate), seconds=seconds),)


def check_load(spec: LoadSpec, *, where: str = "load") -> None:
    """What the types do not say. Raises ConfigError."""
    if spec.routing not in ("nearest", "random") and not spec.routing.startswith(NODE):
        raise ConfigError(
            f"{where}: routing = {shown(spec.routing)}: write nearest, random or {NODE}NAME"
        )
    if not any(stage.requests for stage in spec.stages):
        raise ConfigError(f"{where}: stages: no rate is above 0: nothing would be asked")
    names = [function.name for function in spec.functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{where}: functions: {shown(twice)} is there twice")
    for function in spec.functions:
        key = f"{where}: functions.{function.name}"
        if _TARGET.match(function.path) is None:
            raise ConfigError(
                f"{key}.path = {shown(function.path)}: begin with / or ?, escape what is not"
                " printable ASCII"
            )
        for name, value in function.headers.items():
            if not _is_header(name, value):
                raise ConfigError(f"{key}.headers: {shown(name)}: not an HTTP field that is sent")


_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_FRAMING: Final = ("connection", "content-length", "host", "te", "transfer-encoding", "upgrade")


def _is_header(name: str, value: str) -> bool:
    """Those that say where a message ends, and to whom it goes, are the client's own."""
    fine = _TOKEN.match(name) is not None and name.lower() not in _FRAMING
    return fine and value.isascii() and value.isprintable() and value == value.strip()


def parse_stages(text: str) -> tuple[Stage, ...]:
    """50:30s,50-200:10s is 50 a second for 30 s, then up to 200 within 10 s. Raises ConfigError."""
    stages: list[Stage] = []
    for word in text.split(","):
        plain = _stage(word.strip())
        if plain is None:
            raise ConfigError(
                f"rate {shown(word)}: write RATE:DURATION or RATE-RATE:DURATION, such as"
                " 50:30s or 50-200:10s"
            )
        try:
            stages.append(msgspec.convert(plain, Stage))
        except msgspec.ValidationError as error:
            raise ConfigError(f"rate {shown(word)}: {explain(error, plain, Stage)}") from error
    return tuple(stages)


def _stage(word: str) -> dict[str, float | None] | None:
    found = _STAGE.match(word)
    if found is None:
        return None
    try:
        return {
            "rate": float(found["rate"]),
            "to": float(found["to"]) if found["to"] else None,
            "seconds": float(found["count"]) * _UNIT_S[found["unit"]],
        }
    except ValueError:  # 1.2.3
        return None
