"""Which code each function's invocations run in on this node, and getting it ready.

What a function can run in is a set of digests (`Lookup.codes`): its module, whose init then runs at
the start of each invocation, and the snapshot that init gives. Any of them will do for a request,
here and at peers. Which one this node gets, and how, planning.py decides; one task per version
pursues it, by the next best way if one fails, while requests go on in what serves them now.
Owned by the node's event loop. Bounded by SERVING_MAX versions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import trio

from protocol.costs import INIT_FORMS, PlanForm
from protocol.ids import Digest, VersionId

from .activation import Activation
from .errors import EdgedError, NotReady
from .interfaces import Code, FunctionView, Way, module_code, snapshot_code
from .mapped import Mapped
from .telemetry import Log

SERVING_MAX: Final = 4096


class Plans(Protocol):
    """Who decides."""

    def asked(self, function: FunctionView) -> tuple[PlanForm, ...]: ...

    def count(self, function: FunctionView) -> None: ...

    def wanted(
        self, function: FunctionView, trigger: str, *, may_forward: bool = True
    ) -> tuple[PlanForm, ...]: ...

    def chosen(self, version: VersionId) -> PlanForm | None: ...

    def forwards(self, function: FunctionView, code: Digest) -> bool: ...

    def failed(self, function: FunctionView, form: PlanForm, why: str) -> None: ...

    def got(self, function: FunctionView, form: PlanForm) -> None: ...


class _Pursuit:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EdgedError | None = None
        self.waiting = 0
        self.code: Digest | None = None
        self.form: PlanForm | None = None
        """Being got now, of that code."""
        self.instead: tuple[PlanForm, ...] | None = None
        """What is to be got from now on."""


class Choices:
    """Implements functions.Codes."""

    def __init__(self, activation: Activation, *, forwards: bool, log: Log) -> None:
        """`forwards`: whether requests that find no code are passed on, and come to `start` then;
        else they come to `ready` only."""
        self._forwards = forwards
        self._activation = activation
        self._log = log
        self._plans: Plans | None = None
        self._serving: OrderedDict[VersionId, Digest] = OrderedDict()
        """Of versions with an init: what their invocations run in."""
        self.use: Callable[[FunctionView], Mapped | None] = _user(
            activation.table.mapped, self._serving
        )
        """Its code, if that is in memory now, for one more use; the hot path."""
        self._pursuits: dict[VersionId, _Pursuit] = {}
        self._nursery: trio.Nursery | None = None

    def follow(self, plans: Plans) -> None:
        """Before `run`: who decides knows this one too."""
        self._plans = plans

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def plans(self) -> Plans:
        assert self._plans is not None, "follow() comes first"
        return self._plans

    # ------------------------------------------------------------ for requests
    def is_near(self, function: FunctionView) -> bool:
        """Whether its code is in memory, or will be as soon as an artifact on disk is mapped; and
        its requests are not better off at a peer."""
        if function.spec.init is None:
            return self._activation.is_near(function.spec.module)
        near = self._near(function)
        return near is not None and not self.plans.forwards(function, near.digest)

    def has_code(self, function: FunctionView) -> bool:
        """Whether requests can be served by what is here, be it not the best."""
        return self._near(function) is not None

    def start(self, function: FunctionView) -> None:
        """A request came that finds no code here, or is better off at a peer: begins to get what is
        to be had."""
        forms = self.plans.asked(function)
        if forms[0] in INIT_FORMS and self._activation.is_near(function.spec.module):
            return  # it is here, and a peer's is quicker
        if forms[0] != "forward":
            self.change(function, forms)

    def deployed(self, function: FunctionView) -> None:
        """Here: its code is at hand, and wanted."""
        self.change(function, self.plans.wanted(function, "deploy", may_forward=False))

    async def ready(self, function: FunctionView, *, timeout_s: float) -> Mapped:
        """Raises as Activation.ready."""
        near = self._near(function)
        if near is not None:
            self._improve(function, near)
            mapped = await self._activation.ready(near, timeout_s=timeout_s)
            if near == self._near(function):  # else what was chosen has come meanwhile
                self._serve(function, near)
            return mapped
        if not self._forwards:
            self.plans.count(function)
        if function.spec.init is not None:
            return await self._pursued(function, timeout_s)
        forms = self.plans.wanted(function, "request", may_forward=False)
        code = module_code(function.spec)
        return await self._activation.ready(code, way=_way(forms[0]), timeout_s=timeout_s)

    async def _pursued(self, function: FunctionView, timeout_s: float) -> Mapped:
        with trio.move_on_after(timeout_s):
            while True:
                pursuit = self._pursuits.get(function.version)
                if pursuit is None:
                    forms = self.plans.wanted(function, "request", may_forward=False)
                    pursuit = self._pursue(function, forms)
                pursuit.waiting += 1
                try:
                    await pursuit.done.wait()
                finally:
                    pursuit.waiting -= 1
                if pursuit.error is not None:
                    raise pursuit.error.with_traceback(None)
                mapped = self.use(function)
                if mapped is not None:  # else unmapped again before this waiter ran
                    return mapped
        raise NotReady(f"{function.name} is still being made ready; try again")

    def serving(self, function: FunctionView) -> Digest | None:
        """What its invocations run in now; None: nothing is here."""
        near = self._near(function)
        return None if near is None else near.digest

    def waiting(self, function: FunctionView) -> int:
        """Requests that wait for its code."""
        pursuit = self._pursuits.get(function.version)
        waiting = 0 if pursuit is None else pursuit.waiting
        return waiting + self._activation.waiting(function.spec.module)

    def _near(self, function: FunctionView) -> Code | None:
        """What is in memory or on disk: of the chosen form, else the snapshot before the module."""
        codes = codes_of(function)
        if len(codes) > 1 and self.plans.chosen(function.version) in INIT_FORMS:
            codes = codes[::-1]
        for code in codes:
            if self._activation.is_near(code.digest):
                return code
        return None

    def _improve(self, function: FunctionView, near: Code) -> None:
        """Where the module is here, which runs its init for each request, and nobody has decided
        that it shall be so: what is chosen is got while it serves."""
        if function.snapshot is None or near.digest != function.spec.module:
            return
        version = function.version
        if version not in self._pursuits and self.plans.chosen(version) not in INIT_FORMS:
            forms = self.plans.wanted(function, "request")
            if forms[0] != "forward" and forms[0] not in INIT_FORMS:
                self.change(function, forms)

    def _serve(self, function: FunctionView, code: Code) -> None:
        if function.spec.init is None:
            return
        self._serving[function.version] = code.digest
        self._serving.move_to_end(function.version)
        if len(self._serving) > SERVING_MAX:
            self._serving.popitem(last=False)

    # ------------------------------------------------------------ getting a form
    def change(self, function: FunctionView, forms: tuple[PlanForm, ...]) -> None:
        """In the background; the best first. What serves goes on until another is ready, and what
        was being got meanwhile is left where it is."""
        if function.spec.init is None:
            self._activation.start(module_code(function.spec), way=_way(forms[0]))
            return
        pursuit = self._pursuits.get(function.version)
        if pursuit is not None and pursuit.form not in (None, forms[0]):
            pursuit.instead = forms
            if pursuit.code is not None:
                self._activation.abandon(pursuit.code)
        elif self._nursery is not None:
            self._pursue(function, forms)

    def _pursue(self, function: FunctionView, forms: tuple[PlanForm, ...]) -> _Pursuit:
        pursuit = self._pursuits.get(function.version)
        if pursuit is None:
            if self._nursery is None:
                raise NotReady("the node is starting or stopping")
            pursuit = self._pursuits[function.version] = _Pursuit()
            self._nursery.start_soon(self._run, function, forms, pursuit)
        return pursuit

    async def _run(
        self, function: FunctionView, forms: Sequence[PlanForm], pursuit: _Pursuit
    ) -> None:
        try:
            while not await self._try(function, forms, pursuit) and pursuit.instead is not None:
                forms, pursuit.instead = pursuit.instead, None
        except trio.Cancelled:
            pursuit.error = NotReady("the node is stopping")
            raise
        finally:
            del self._pursuits[function.version]
            pursuit.done.set()

    async def _try(
        self, function: FunctionView, forms: Sequence[PlanForm], pursuit: _Pursuit
    ) -> bool:
        """One after the other; whether one is here."""
        for form in forms:
            if form == "forward":
                continue
            pursuit.form = form
            try:
                await self._get(function, form, pursuit)
            except EdgedError as error:
                if pursuit.instead is not None:
                    return False
                pursuit.error = error
                self.plans.failed(function, form, str(error))
            else:
                pursuit.error = None
                self.plans.got(function, form)
                return True
        return False

    async def _get(self, function: FunctionView, form: PlanForm, pursuit: _Pursuit) -> None:
        """Raises as Activation.ready."""
        code = module_code(function.spec) if form in INIT_FORMS else snapshot_code(function)
        if code is None:
            raise NotReady("nobody has stated a snapshot of it")
        pursuit.code = code.digest
        mapped = await self._activation.ready(code, way=_way(form), timeout_s=math.inf)
        self._serve(function, code)
        self._log.info(
            "form ready",
            function=function.name,
            form=form,
            code=code.digest,
            start=mapped.start,
        )


def _user(
    mapped: Mapping[Digest, Mapped], serving: Mapping[VersionId, Digest]
) -> Callable[[FunctionView], Mapped | None]:
    """A closure, as a method that calls another costs a third more for each invocation."""

    def use(function: FunctionView) -> Mapped | None:
        spec = function.spec
        digest: Digest | None = spec.module
        if spec.init is not None:
            digest = serving.get(function.version)
        found = None if digest is None else mapped.get(digest)
        if found is not None:
            found.uses += 1
        return found

    return use


def codes_of(function: FunctionView) -> tuple[Code, ...]:
    """What it can run in, the quickest to start first."""
    stated, module = snapshot_code(function), module_code(function.spec)
    return (module,) if stated is None else (stated, module)


def _way(form: PlanForm) -> Way | None:
    return None if form == "forward" else form
