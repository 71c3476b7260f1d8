"""Native code in memory is such as the node's policy allows, and the same for everyone.

Compiling is deterministic: two nodes that run different code of one module under one artifact key
show that somebody vouched for code which is not that module's, whatever a policy allows. What a
poisoned builder itself runs is not asked for: it is the others that must not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from edged.lab.history import Artifact, Finding, History, Node

from .base import Invariant, liars, named

ALLOWED: Final = "code-allowed"
SAME: Final = "code-same"


def _in_use(history: History) -> Iterator[tuple[float, str, Artifact]]:
    for sample in history.samples:
        for artifact in sample.artifacts:
            yield sample.t_s, sample.node, artifact


def needed(accept: str) -> float:
    """How many others must vouch for code that a node has not compiled itself."""
    if accept == "none":
        return float("inf")
    return 1 if accept == "signed" else int(accept.removeprefix("quorum="))


def check_allowed(history: History) -> list[Finding]:
    nodes: dict[str, Node] = {node.name: node for node in history.run.nodes}
    builders = {node.name for node in history.run.nodes if "build" in node.roles}
    found: dict[tuple[str, str], Finding] = {}
    for t_s, name, artifact in _in_use(history):
        node = nodes.get(name)
        accept = "signed" if node is None else node.accept
        words = builders.intersection(artifact.builders)
        if artifact.own or len(words) >= needed(accept) or (name, artifact.digest) in found:
            continue
        found[name, artifact.digest] = Finding(
            t_s=t_s,
            invariant=ALLOWED,
            subject=name,
            detail=f"runs code {artifact.digest[:12]} of module {artifact.module[:12]} on the word"
            f" of {named(words) or 'nobody'}; its policy is {accept}",
        )
    return list(found.values())


def check_same(history: History) -> list[Finding]:
    users: dict[tuple[str, str], dict[str, dict[str, Artifact]]] = defaultdict(dict)
    first_s: dict[tuple[str, str], float] = {}
    untrue = liars(history)
    for t_s, name, artifact in _in_use(history):
        if name in untrue:
            continue
        kind = (artifact.module, artifact.key)
        nodes = users[kind].setdefault(artifact.digest, {})
        if len(users[kind]) > 1:
            first_s.setdefault(kind, t_s)
        nodes[name] = artifact
    return [
        Finding(
            t_s=first_s[kind],
            invariant=SAME,
            subject=f"module {kind[0][:12]}",
            detail="its code is not the same everywhere: "
            + "; ".join(_side(digest, nodes) for digest, nodes in sides.items()),
        )
        for kind, sides in users.items()
        if len(sides) > 1
    ]


def _side(digest: str, nodes: dict[str, Artifact]) -> str:
    words = {builder for artifact in nodes.values() for builder in artifact.builders}
    words |= {name for name, artifact in nodes.items() if artifact.own}
    return f"{digest[:12]} on {named(nodes)}, by the word of {named(words) or 'nobody'}"


def doubts(history: History) -> list[str]:
    return [] if any(_in_use(history)) else ["no node told which code it runs"]


CODE_ALLOWED: Final = Invariant(
    ALLOWED, "no node runs native code that its policy forbids", check_allowed, doubts
)
CODE_SAME: Final = Invariant(
    SAME, "one module has one native code for one artifact key", check_same
)
