"""Acting from a region: a local cluster's gateways, and the time that lies between.

Clients impose their own share of the links document (edged.lab.load.around); nodes do nothing for
them. What is waited for here has the links' jitter, loss and bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from edged.errors import ConfigError, Unreachable

from .target import newest_running, supervisor

if TYPE_CHECKING:
    from edged.lab.load.around import Target, Way
    from edged.links import Document


class Distance:
    def __init__(
        self,
        way: Way,
        *,
        between: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._way = way
        self._between = between
        self._clock = clock
        self._sleep = sleep

    def go(self, size_bytes: int) -> None:
        """A handshake, and the request's way. Raises Unreachable: there is none."""
        from edged.lab.load.around import SYN_BYTES

        if self._way.cut is not None:
            raise Unreachable(f"the link between {self._between} is cut ({self._way.cut})")
        now = self._clock()
        open_at = self._way.back_at(SYN_BYTES, self._way.there_at(SYN_BYTES, now))
        self._sleep(max(0.0, self._way.there_at(size_bytes, open_at) - now))

    def come(self, size_bytes: int) -> None:
        """The answer's way, until it is there whole."""
        now = self._clock()
        self._sleep(max(0.0, self._way.back_at(size_bytes, now) - now))


def local_gateways(cluster: str | None) -> tuple[list[Target], Path]:
    """Gateways of a local cluster's running nodes, and where its links are. Raises ClusterNotFound,
    ConfigError."""
    from edged.lab.load.around import Target

    boss = supervisor()
    state = boss.load(cluster) if cluster else newest_running(boss)
    targets = []
    for node in boss.running_nodes(state):
        host, _, port = node.gateway.rpartition(":")
        targets.append(Target(node.name, node.region, host, int(port)))
    if not targets:
        raise ConfigError(f"no node of cluster {state.name!r} is running")
    return targets, boss.home.links_file(state.name)


def document_at(path: Path | None) -> Document:
    """The empty one where there is none. Raises ConfigError."""
    from edged.links import EMPTY, load_document

    return load_document(path) if path is not None and path.exists() else EMPTY


def seen_from(region: str, *, cluster: str | None, node: str | None) -> tuple[Target, Distance]:
    """The nearest gateway of a local cluster, or the named one, and how far it is.

    Raises ClusterNotFound, ConfigError."""
    from edged.lab.load.around import Around

    targets, links = local_gateways(cluster)
    around = Around(targets, document_at(links), Random())  # noqa: S311 - of jitter
    around.check_clients([region])
    near = around.nearest(region) if node is None else targets
    found = next((target for target in near if node in (None, target.name)), None)
    if found is None:
        raise ConfigError(f"no running node {node!r}; there are {', '.join(t.name for t in near)}")
    way = around.way(region, found)
    return found, Distance(way, between=f"{region} and {found.name}")
