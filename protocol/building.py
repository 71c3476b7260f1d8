"""Who compiles a module when several nodes want its artifact: as few as must. SPEC §9.3.

Pure. Nodes of one artifact key that have the module are ranked by rendezvous hashing, the same
for all who see the same members. As many as must attest begin at once; the others wait while these
show that they are at work, take the artifact when it is there, and go on by themselves when
waiting has cost more time than compiling would: a builder that dies, or that is slow, holds nobody
up for long. Where nobody waits for the code, several that began before they knew of each other find
out in time, and are patient: a background compile takes what the machine has left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from .ids import ArtifactKey, Digest, NodeId, digest_of
from .replicas import score

SMALL_S: Final = 0.3
"""A compile expected to take less is nobody's wait, and is not announced: news of it spread no
faster (SPEC §5.6)."""
GRACE_S: Final = 1.0
"""Per rank: so long a better ranked node has to show that it builds; twice the time in which news
reaches all of 50 members on a LAN."""
PATIENCE: Final = 1.5
"""Times the expected compile: what is waited for somebody else's, its transfer included."""
LEISURE: Final = 10.0
"""In its place where no request waits, as fast code answers or nobody has asked."""
CLAIM_S: Final = 0.5
"""Who compiles while no request waits shows it for so long before it begins: until all know."""
YIELD_S: Final = 1.0
"""Where a request waits, a compile begins at once, and is given up after CLAIM_S for a better
ranked node's if it is expected to take so long: of less there would be little left to save."""


class Scene(msgspec.Struct, frozen=True):
    """What this node sees of one module under its artifact key."""

    rank: int
    """Of this node among those that could compile it, from 0."""
    ready: int
    """Peers that show the artifact and have not been asked in vain."""
    building: int
    """Peers that show that they compile it."""


def rank_of(own: NodeId, module: Digest, key: ArtifactKey, candidates: Iterable[NodeId]) -> int:
    """Of `own`, which need not be among the candidates, by rendezvous hashing."""
    about = digest_of(f"{module} {key}".encode())
    mine = (score(about, own), own)
    return sum((score(about, other), other) > mine for other in set(candidates) - {own})


def next_step(
    scene: Scene, *, builders: int, estimate_s: float, waited_s: float, urgent: bool
) -> Literal["fetch", "wait", "build"]:
    """`builders`: how many must attest before others accept; 0: nobody's word is accepted here;
    `urgent`: a request waits for it."""
    if not builders:
        return "build"
    if scene.ready:
        return "fetch"
    if estimate_s < SMALL_S:
        return "build"
    patience_s = (PATIENCE if urgent else LEISURE) * estimate_s
    if scene.building < builders:
        if scene.rank < builders:
            return "build"
        patience_s = min(patience_s, GRACE_S * (scene.rank - builders + 1))
    return "wait" if waited_s < patience_s else "build"


def goes_on(
    own: NodeId, module: Digest, key: ArtifactKey, rivals: Iterable[NodeId], *, builders: int
) -> bool:
    """Whether `own`, which has shown `building` for CLAIM_S, begins, as `rivals` show it too."""
    return not builders or rank_of(own, module, key, rivals) < builders
