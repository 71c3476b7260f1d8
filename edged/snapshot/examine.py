"""What can be told of a module without running it, and what a plan means for it."""

from __future__ import annotations

from typing import Final, NamedTuple

from edged.errors import CannotSnapshot
from edged.interfaces import (
    INITIALIZERS,
    RESEED,
    Examination,
    InitCall,
    InitPlan,
    Refusal,
)
from edged.runtime.initialising import INITIALIZE, RESUME, START
from edged.runtime.stubs import is_foreign

from .errors import refuse
from .parse import Module, Signature, parse

_NOTHING: Final = Signature((), ())


class Resolved(NamedTuple):
    """A plan, for one module."""

    calls: tuple[InitCall, ...]
    """All of them, in order; the start function is not among them."""
    dropped: frozenset[str]
    renamed: dict[str, str]
    """Old name to new."""


def examine(data: bytes | memoryview) -> Examination:
    """Milliseconds, a second or two of what is made to be slow. Never raises for what is in the
    module."""
    module, refusal = None, None
    try:
        module = parse(memoryview(data))
        check(module)
    except CannotSnapshot as error:
        refusal = Refusal(reason=error.reason, detail=str(error), thing=error.thing)
    module = module or Module(memoryview(b""))
    return Examination(
        initializer=find_initializer(module),
        reactor=module.exported_signature(INITIALIZE) == _NOTHING,
        command=module.exported_signature(START) == _NOTHING,
        start=module.start is not None,
        reseed=module.exported_signature(RESEED) == _NOTHING,
        foreign_imports=tuple(
            f"{each.module}.{each.name}"
            for each in module.imports
            if each.kind == "func" and is_foreign(each.module, each.name)
        ),
        memories=len(module.memories),
        memory_bytes_min=sum(each.minimum << each.page_bits for each in module.memories),
        tables=len(module.tables),
        globals_mutable=sum(each.mutable for each in module.globals),
        data_segments=len(module.segments),
        refusal=refusal,
    )


def exported_functions(data: bytes | memoryview) -> list[str]:
    """Raises CannotSnapshot."""
    module = parse(memoryview(data))
    return [name for name, export in module.exports.items() if export.kind == "func"]


def check(module: Module) -> None:
    """Raises CannotSnapshot for what no initialiser can change."""
    for each in module.imports:
        name = f"import {each.module}.{each.name}"
        if each.kind == "memory":
            raise refuse("imported-memory", name, "a memory that is not the module's own")
        if each.kind == "table":
            raise refuse("imported-table", name, "a table that is not the module's own")
        if each.kind == "global":
            raise refuse("imported-global", name, "a global that is not the module's own")
        if each.kind == "tag":
            raise refuse("imported-tag", name, "a tag that is not the module's own")
    for index, memory in enumerate(module.memories):
        if memory.shared:
            raise refuse("shared-memory", f"memory {index}", "is shared between threads")


def find_initializer(module: Module) -> str:
    """The first of the usual names with the right type, or ""."""
    return next((name for name in INITIALIZERS if module.exported_signature(name) == _NOTHING), "")


def resolve(module: Module, plan: InitPlan) -> Resolved:
    """Raises CannotSnapshot: "no-initializer", "initializer-type", "missing-export"."""
    init = plan.init
    if not init and not plan.calls:
        init = find_initializer(module)
        if not init:
            # One of the wrong type is told as that, below.
            init = next(filter(module.exported_signature, INITIALIZERS), "")
        if not init:
            usual = ", ".join(INITIALIZERS)
            raise refuse("no-initializer", "", f"exports none of {usual}, and none was named")
    if init:
        signature = _exported(module, init)
        if signature != _NOTHING:
            raise refuse("initializer-type", f"export {init}", "takes parameters or gives results")
    calls = (*([InitCall(init)] if init else []), *plan.calls)
    named = {call.export for call in calls}
    reactor = module.exported_signature(INITIALIZE) == _NOTHING
    if reactor and INITIALIZE not in named:
        calls = (InitCall(INITIALIZE), *calls)
    for call in plan.calls:
        _exported(module, call.export)
    dropped = {call.export for call in plan.calls if call.drop_export}
    if not plan.keep_init_export:
        dropped |= {init, INITIALIZE} if reactor else {init}
    return Resolved(calls, frozenset(dropped & module.exports.keys()), _renamed(module, plan))


def _exported(module: Module, name: str) -> Signature:
    signature = module.exported_signature(name)
    if signature is None:
        raise refuse("missing-export", f"export {name}", "no such function")
    return signature


def _renamed(module: Module, plan: InitPlan) -> dict[str, str]:
    if plan.rename is None:
        both = START in module.exports and RESUME in module.exports
        return {RESUME: START} if both else {}
    renamed = {old: new for new, old in plan.rename}
    if len(renamed) < len(plan.rename) or len(set(renamed.values())) < len(renamed):
        raise refuse("bad-arguments", "", "a name is given, or taken, twice by renamings")
    for old in renamed:
        _exported(module, old)
    return renamed
