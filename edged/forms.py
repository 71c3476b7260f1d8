"""Which forms of a function's code this node has, and what they cost when they were made here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, Literal

from protocol.ids import Digest
from protocol.messages import Form

from .activation import Activation
from .artifacts import Artifacts
from .choices import codes_of
from .interfaces import Code, FormView, FunctionView, Store, Tier

TIERS: Final[tuple[Tier, ...]] = ("optimised", "fast")


def held_form(module: Digest, *, store: Store, artifacts: Artifacts) -> Form | None:
    """In which form this node tells others that it has `module` (SPEC §7.1)."""
    info = store.info(module)
    here = info is not None and info.kind == "module"
    if artifacts.accepted(module):
        return "ready" if here else "artifact"
    if not here:
        return None
    if artifacts.building(module):
        return "building"
    return "running" if artifacts.row(module, "fast") is not None else "module"


def forms_of(
    function: FunctionView,
    *,
    store: Store,
    artifacts: Artifacts,
    activation: Activation,
) -> tuple[FormView, ...]:
    """From the portable to the nearest, of the module and then of the snapshot. An artifact of fast
    code does not last: it is listed only if there is one."""
    return tuple(
        form
        for code in reversed(codes_of(function))
        for form in _of_code(code, function.spec.module, store, artifacts, activation)
    )


def _of_code(
    code: Code, module: Digest, store: Store, artifacts: Artifacts, activation: Activation
) -> Iterator[FormView]:
    digest = code.digest
    whose: Literal["module", "snapshot"] = "module" if digest == module else "snapshot"
    info = store.info(digest)
    form = partial(FormView, code=whose)
    yield form(
        "module", held=info is not None, size_bytes=code.size_bytes, digest=digest, measured={}
    )
    yield form(
        "wire",
        held=info is not None and info.wire_bytes is not None,
        size_bytes=info.wire_bytes if info is not None else None,
        digest=info.manifest if info is not None else None,
        measured=artifacts.cost(digest, "fetch_s"),
    )
    for tier in TIERS:
        row = artifacts.row(digest, tier)
        if row is None and tier == "fast":
            continue
        measured = artifacts.cost(
            digest, "compile_cpu_s", "compile_s", "compile_peak_bytes", tier=tier
        )
        if row is not None:
            measured.setdefault("compile_cpu_s", row.compile_s)
        yield form(
            "artifact",
            held=row is not None,
            size_bytes=row.size_bytes if row is not None else None,
            digest=row.digest if row is not None else None,
            measured=measured,
            tier=tier,
        )
    yield form(
        "mapped",
        held=activation.is_mapped(digest),
        size_bytes=activation.mapped_bytes(digest),
        digest=None,
        measured=artifacts.cost(digest, "load_s"),
        tier=activation.tier(digest),
    )
