"""Counters, gauges and histograms in Prometheus' text format 0.0.4. One registry per node.

An own implementation: the client library loads an HTTP server and WSGI with it, 3 MB in each of a
machine's many nodes. Owned by the node's event loop. Names and help texts are ours, label values
may be anything. Children of a family live as long as it, unless removed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Sample(NamedTuple):
    name: str
    labels: Labels
    value: float


class Family(NamedTuple):
    """What is rendered under one heading."""

    name: str
    kind: Kind
    text: str
    samples: Iterable[Sample]


class Value:
    """A counter's or gauge's; counters only grow."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Buckets:
    """A histogram's, by upper bound; the last one has none."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str) -> Iterator[Sample]:
        counts = accumulate(self._counts)
        for bound, count in zip((*map(_number, self._bounds), "+Inf"), counts, strict=True):
            yield Sample(f"{name}_bucket", (("le", bound),), count)
        yield Sample(f"{name}_count", (), sum(self._counts))
        yield Sample(f"{name}_sum", (), self._sum)


class Metric:
    """A family with its children by label values; without labels it has one child."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._children: dict[tuple[str, ...], Value] = {}

    def labels(self, *values: str) -> Value:
        """In the order of the family's label names."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self._labels)
            child = self._children[values] = Value()
        return child

    def remove(self, *values: str) -> None:
        self._children.pop(values, None)

    def children(self) -> Iterator[tuple[Labels, Value]]:
        for values, child in self._children.items():
            yield tuple(zip(self._labels, values, strict=True)), child


class Registry:
    """The families of one node, in the order of their making."""

    def __init__(self) -> None:
        self._families: list[Callable[[], Iterable[Family]]] = []

    def values(self, name: str, kind: Kind, text: str, *labels: str) -> Metric:
        metric = Metric(labels)

        def family() -> Family:
            samples = [Sample(name, own, child.value) for own, child in metric.children()]
            return Family(name, kind, text, samples)

        if not labels:
            metric.labels()
        self._families.append(lambda: [family()])
        return metric

    def histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Buckets:
        child = Buckets(bounds)
        self._families.append(lambda: [Family(name, "histogram", text, child.samples(name))])
        return child

    def collect(self, families: Callable[[], Iterable[Family]]) -> None:
        """`families` is asked at each rendering: for what others count already."""
        self._families.append(families)

    def render(self) -> bytes:
        lines: list[str] = []
        for families in self._families:
            for name, kind, text, samples in families():
                lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
                lines += map(_line, samples)
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def family(
    name: str, kind: Kind, text: str, label: str = "", values: Mapping[str, float] | float = 0.0
) -> Family:
    """Of one value, or of one per value of one label."""
    if isinstance(values, Mapping):
        rows = [Sample(name, ((label, key),), value) for key, value in values.items()]
    else:
        rows = [Sample(name, (), values)]
    return Family(name, kind, text, rows)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sample.labels)
    return (
        f"{sample.name}{{{labels}}} {_number(sample.value)}"
        if labels
        else (f"{sample.name} {_number(sample.value)}")
    )


def _number(value: float) -> str:
    """As the client library writes it: 5.0, 1e+16."""
    return repr(float(value))
