"""Which forms of a function's code this node has, and what they cost when they were made here."""

from __future__ import annotations

from protocol.function import FunctionSpec
from protocol.ids import Digest
from protocol.messages import Form

from .activation import Activation
from .artifacts import Artifacts
from .interfaces import BlobInfo, FormView, Store, Tier


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
    spec: FunctionSpec,
    *,
    store: Store,
    artifacts: Artifacts,
    activation: Activation,
) -> tuple[FormView, ...]:
    """From the portable to the nearest. An artifact of fast code does not last: it is listed only
    if there is one."""
    module = spec.module
    info = store.info(module)
    return (
        FormView("module", info is not None, spec.module_bytes, module, {}),
        _wire(info, artifacts.cost(module, "fetch_s")),
        _artifact(artifacts, spec, "optimised"),
        *([_artifact(artifacts, spec, "fast")] if artifacts.row(module, "fast") else []),
        _mapped(artifacts, activation, spec),
    )


def _wire(info: BlobInfo | None, measured: dict[str, float]) -> FormView:
    held = info is not None and info.wire_bytes is not None
    return FormView(
        "wire",
        held,
        info.wire_bytes if info is not None else None,
        info.manifest if info is not None else None,
        measured,
    )


def _artifact(artifacts: Artifacts, spec: FunctionSpec, tier: Tier) -> FormView:
    row = artifacts.row(spec.module, tier)
    measured = artifacts.cost(
        spec.module, "compile_cpu_s", "compile_s", "compile_peak_bytes", tier=tier
    )
    if row is not None:
        measured.setdefault("compile_cpu_s", row.compile_s)
    return FormView(
        "artifact",
        row is not None,
        row.size_bytes if row is not None else None,
        row.digest if row is not None else None,
        measured,
        tier,
    )


def _mapped(artifacts: Artifacts, activation: Activation, spec: FunctionSpec) -> FormView:
    return FormView(
        "mapped",
        activation.is_mapped(spec.module),
        activation.mapped_bytes(spec.module),
        None,
        artifacts.cost(spec.module, "load_s"),
        activation.tier(spec.module),
    )
