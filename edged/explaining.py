"""What a node tells of one function: which form it has chosen and why, what is here, who has it.

Implements interfaces.Explainer for the control API. Reads only; nothing is decided by asking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from protocol.ids import Digest

from .activation import Activation
from .artifacts import Artifacts
from .choices import codes_of
from .forms import forms_of
from .interfaces import ExplainView, FunctionView, HolderView, Planner, Runtime, Store

REACHABLE = ("alive", "suspect")


class Served(Protocol):
    def lookup(self, name: str) -> FunctionView:
        """Raises FunctionNotFound."""
        ...

    def is_near(self, function: FunctionView) -> bool:
        """Whether requests are served here at once; others go to a peer that can."""
        ...


class Explaining:
    def __init__(
        self,
        planner: Planner,
        *,
        node: str,
        store: Store,
        runtime: Runtime,
        artifacts: Artifacts,
        activation: Activation,
        functions: Served,
        holders: Callable[[Digest], tuple[HolderView, ...]],
    ) -> None:
        self._planner = planner
        self._node = node
        self._store = store
        self._runtime = runtime
        self._artifacts = artifacts
        self._activation = activation
        self._functions = functions
        self._holders = holders

    def explain(self, name: str, what_if: Mapping[str, float]) -> ExplainView:
        function = self._functions.lookup(name)
        stated, module = function.snapshot, function.spec.module
        serving = codes_of(function)[0].digest if stated is not None else module
        plan = self._planner.explain(function.name, what_if)
        forwards = any(row.form == "forward" and row.lacks is None for row in plan.rows)
        forwarded = forwards and not self._functions.is_near(function)
        return ExplainView(
            name=function.name,
            version=function.version,
            node=self._node,
            target=self._runtime.target,
            artifact_key=self._runtime.artifact_key,
            next_start="forwarded" if forwarded else self._next_start(function),
            forms=forms_of(
                function,
                store=self._store,
                artifacts=self._artifacts,
                activation=self._activation,
            ),
            holders=self._holders(module),
            snapshot_holders=() if stated is None else self._holders(stated.snapshot),
            optimising=self._activation.optimising(serving),
            plan=plan,
        )

    def _next_start(self, function: FunctionView) -> str:
        codes = [code.digest for code in codes_of(function)]
        active = self._activation
        if any(map(active.is_mapped, codes)):
            return "warm"
        if any(self._artifacts.best(code) is not None for code in codes):
            return "loaded"
        if any(map(active.offered, codes)):
            return "artifact"
        if all(active.failing(code) is not None for code in codes):
            return "compile-failed"
        if any(self._store.info(code) is not None for code in codes):
            return "compiled"
        if any(map(self._is_held, codes)):
            return "fetch+compiled"
        return "no-holder"

    def _is_held(self, code: Digest) -> bool:
        """By a peer that can be reached, as bytes."""
        return any(
            holder.state in REACHABLE and not holder.is_self and holder.form != "artifact"
            for holder in self._holders(code)
        )
