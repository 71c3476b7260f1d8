"""Valid modules with state of every kind, made up by Hypothesis: small, bounded, shrinkable.

A program is text: some memories, globals, tables and segments, helpers that call only earlier
helpers, an initialiser, and `step` exports that go on from where it ended. `probe` folds all of
the state into one number as the guest sees it. Loops count down and the product of their counts is
bounded (`COST_MAX`), so that every program ends. An initialiser may trap; that is an outcome, too.

What comes out of float arithmetic loses its NaN's bits, which the specification leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import wasmtime
from hypothesis import strategies as st

from .running import Call

T = TypeVar("T")
NUMBERS = ("i32", "i64", "f32", "f64", "v128")
I32 = (0, 1, -1, 7, 64, 255, 65535, 65536, 0x7FFFFFFF, -0x80000000, 0x1234567)
I64 = (*I32, 1 << 40, -(1 << 63), (1 << 63) - 1)
FLOATS = ("0", "1", "-0.0", "-1.5", "3.25", "1e10", "-1e-10", "inf", "nan")
WIDTHS = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
COST_MAX = 20_000
PAGE = 65536
PRELUDE = """
  (func $cf32 (param f32) (result f32)
    (select (local.get 0) (f32.const nan) (f32.eq (local.get 0) (local.get 0))))
  (func $cf64 (param f64) (result f64)
    (select (local.get 0) (f64.const nan) (f64.eq (local.get 0) (local.get 0))))"""
LOCALS = "(local $i i32) (local $l i64) (local $f f32) (local $d f64) (local $v v128)"
LOCAL_OF = {"i32": "$i", "i64": "$l", "f32": "$f", "f64": "$d", "v128": "$v"}
MUCH_CODE = "(func $much_code)"
"""Stands for a function that is large enough for the fast compiler to be used."""
INITIALISERS = ("wizer-initialize", "wizer.initialize", "_initialize", "set up")


@dataclass(frozen=True)
class Memory:
    name: str
    wide: bool
    pages: int
    maximum: int | None

    @property
    def index(self) -> str:
        return "i64" if self.wide else "i32"

    @property
    def there(self) -> str:
        """Whether it has pages."""
        return f"({self.index}.ne (memory.size {self.name}) ({self.index}.const 0))"


@dataclass(frozen=True)
class Program:
    wat: str
    initialiser: str
    calls: tuple[Call, ...]
    """After the snapshot."""

    @property
    def wasm(self) -> bytes:
        return bytes(wasmtime.wat2wasm(self.wat.replace(MUCH_CODE, f"(func {'nop ' * 25_000})")))

    @property
    def before(self) -> list[Call]:
        """What stands for the initialiser where there is no snapshot."""
        names = [self.initialiser]
        if "_initialize" in self.wat and self.initialiser != "_initialize":
            names.insert(0, "_initialize")
        return [(name, ()) for name in names]

    def __repr__(self) -> str:
        return f"{self.wat}\n;; init: {self.initialiser}\n;; calls: {self.calls}"


@dataclass
class Maker:
    """Draws one program. Every choice's first alternative is the simplest."""

    draw: Callable[[st.SearchStrategy[int]], int]
    references: bool
    """Also what changes tables and drops segments."""
    memories: list[Memory] = field(default_factory=list)
    globals: list[tuple[str, str, bool]] = field(default_factory=list)
    """Name, type, mutable."""
    segments: dict[str, int] = field(default_factory=dict)
    """Their bytes."""
    active: set[str] = field(default_factory=set)
    elements: list[str] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    """Their elements."""
    helpers: list[tuple[str, int]] = field(default_factory=list)
    """Name and cost."""
    text: list[str] = field(default_factory=list)
    cost: int = 0
    times: int = 1
    counters: int = 0
    indirect: bool = False

    # ------------------------------------------------------------ choices
    def upto(self, limit: int) -> int:
        return self.draw(st.integers(0, limit))

    def one(self, options: Sequence[T]) -> T:
        return options[self.upto(len(options) - 1)]

    def chance(self, of: int) -> bool:
        """One in `of`, and never in the simplest program."""
        return self.upto(of - 1) == of - 1

    def count(self, limit: int) -> range:
        return range(self.upto(limit))

    # ------------------------------------------------------------ declarations
    def constant(self, kind: str) -> str:
        if kind == "v128":
            return f"(v128.const i64x2 {self.one(I64)} {self.one(I64)})"
        values = {"i32": I32, "i64": I64}.get(kind, FLOATS)
        return f"({kind}.const {self.one(values)})"

    def declare(self) -> None:
        if self.chance(4):
            self.text.append('(import "env" "later" (func $later (param i32) (result i32)))')
        for number in range(1 + self.upto(2) - self.chance(8)):
            self.declare_memory(f"$m{number}")
        for number in self.count(5):
            kind, mutable = self.one(NUMBERS), not self.chance(5)
            self.globals.append((f"$g{number}", kind, mutable))
            exported = f' (export "g{number}")' if self.chance(3) else ""
            type_ = f"(mut {kind})" if mutable else kind
            self.text.append(f"(global $g{number}{exported} {type_} {self.constant(kind)})")
        for number in self.count(2):
            size = self.tables[f"$t{number}"] = self.upto(4)
            maximum = " 8" if self.chance(3) else ""
            self.text.append(f"(table $t{number} {size}{maximum} funcref)")
        for number in self.count(4):
            self.declare_segment(f"$s{number}")

    def declare_memory(self, name: str) -> None:
        pages = self.one((1, 2, 0, 3))
        maximum = pages + self.upto(3) if self.chance(3) else None
        memory = Memory(name, self.chance(4), pages, maximum)
        self.memories.append(memory)
        exported = f' (export "{name[1:]}")' if self.chance(3) else ""
        wide = " i64" if memory.wide else ""
        limit = "" if maximum is None else f" {maximum}"
        self.text.append(f"(memory {name}{exported}{wide} {pages}{limit})")

    def declare_segment(self, name: str) -> None:
        size = self.one((3, 0, 1, 16, 40))
        data = "".join(f"\\{(at * 37 + size) % 255 + 1:02x}" for at in range(size))
        roomy = [memory for memory in self.memories if memory.pages]
        if roomy and not self.chance(3):
            memory = self.one(roomy)
            offset = self.one((0, 8, memory.pages * PAGE - size, 100, 65530 - size))
            where = f"(memory {memory.name}) ({memory.index}.const {offset}) "
            self.active.add(name)
        else:
            where = ""
        if self.memories:
            self.segments[name] = size
            self.text.append(f'(data {name} {where}"{data}")')

    # ------------------------------------------------------------ expressions
    def value(self, kind: str, depth: int = 2) -> str:
        options = [self.constant, self.local]
        if depth:
            options += [self.read_global, self.load, self.operation, self.operation]
        chosen = self.one(options)
        return self.operation(kind, depth - 1) if chosen == self.operation else chosen(kind)

    def local(self, kind: str) -> str:
        return f"(local.get {LOCAL_OF[kind]})"

    def read_global(self, kind: str) -> str:
        names = [name for name, type_, _mutable in self.globals if type_ == kind]
        return f"(global.get {self.one(names)})" if names else self.constant(kind)

    def load(self, kind: str) -> str:
        if not self.memories:
            return self.constant(kind)
        memory = self.one(self.memories)
        read = f"({kind}.load {memory.name} {self.address(memory)})"
        if memory.pages:
            return read
        return f"(if (result {kind}) {memory.there} (then {read}) (else {self.constant(kind)}))"

    def operation(self, kind: str, depth: int = 1) -> str:
        left, right = self.value(kind, depth), self.value(kind, depth)
        if kind in ("i32", "i64"):
            if self.memories and self.chance(6):
                memory = self.one(self.memories)
                size = f"(memory.size {memory.name})"
                return size if memory.index == kind else self.resized(size, kind)
            names = ("add", "xor", "mul", "sub", "rotl", "shr_u", "and", "or")
            return f"({kind}.{self.one(names)} {left} {right})"
        if kind == "v128":
            names = ("i32x4.add", "v128.xor", "i8x16.swizzle", "i16x8.mul", "i64x2.sub")
            return f"({self.one(names)} {left} {right})"
        if self.chance(4):
            return f"({kind}.copysign {left} {right})"
        names = ("add", "mul", "sub", "div", "min")
        return f"(call $c{kind} ({kind}.{self.one(names)} {left} {right}))"

    def resized(self, text: str, kind: str) -> str:
        return f"(i32.wrap_i64 {text})" if kind == "i32" else f"(i64.extend_i32_u {text})"

    def address(self, memory: Memory) -> str:
        """Inside as a rule, for vectors too."""
        kind = memory.index
        if self.chance(3):
            back = self.one((16, 24, 4096, 65536))
            end = f"({kind}.mul (memory.size {memory.name}) ({kind}.const {PAGE}))"
            return f"({kind}.sub {end} ({kind}.const {back}))"
        if self.chance(2):
            room = max(memory.pages * PAGE - 16, 0)
            return f"({kind}.const {min(self.one((0, 8, 100, 1000, 32768, room)), room)})"
        return f"({kind}.and {self.value(kind, 1)} ({kind}.const {0xFFE0}))"

    # ------------------------------------------------------------ statements
    def statement(self, depth: int) -> str:
        self.cost += self.times
        options: list[Callable[[int], str]] = [self.set_local]
        if any(mutable for _name, _kind, mutable in self.globals):
            options.append(self.set_global)
        if self.memories:
            options += [self.store, self.store, self.grow, self.fill, self.copy]
            if self.segments:
                options += [self.initialise]
        if self.tables and self.indirect:
            options.append(self.call_table)
        if self.helpers:
            options.append(self.call)
        if depth:
            options += [self.branch, self.loop]
        if self.references:
            options += [self.change_reference]
        return self.one(options)(depth)

    def set_local(self, _depth: int) -> str:
        kind = self.one(NUMBERS)
        return f"(local.set {LOCAL_OF[kind]} {self.value(kind)})"

    def set_global(self, _depth: int) -> str:
        name, kind, _mutable = self.one([item for item in self.globals if item[2]])
        return f"(global.set {name} {self.value(kind)})"

    def store(self, _depth: int) -> str:
        memory, kind = self.one(self.memories), self.one(NUMBERS)
        width = self.one(("", "8", "16")) if kind in ("i32", "i64") else ""
        where = f"{memory.name} {self.address(memory)}"
        return self.guarded(f"({kind}.store{width} {where} {self.value(kind)})", memory)

    def guarded(self, text: str, *memories: Memory) -> str:
        """Only where they have pages: traps should not be what most programs do."""
        for memory in memories:
            if not memory.pages:
                text = f"(if {memory.there} (then {text}))"
        return text

    def grow(self, _depth: int) -> str:
        memory = self.one(self.memories)
        pages = self.upto(2) if self.times == 1 else 0
        return f"(drop (memory.grow {memory.name} ({memory.index}.const {pages})))"

    def size(self, kind: str = "i32") -> str:
        return f"({kind}.const {self.one((0, 1, 8, 15))})"

    def fill(self, _depth: int) -> str:
        memory = self.one(self.memories)
        where = f"{self.address(memory)} {self.value('i32', 1)} {self.size(memory.index)}"
        return self.guarded(f"(memory.fill {memory.name} {where})", memory)

    def copy(self, _depth: int) -> str:
        to, source = self.one(self.memories), self.one(self.memories)
        length = "i64" if to.wide and source.wide else "i32"
        where = f"{self.address(to)} {self.address(source)} {self.size(length)}"
        return self.guarded(f"(memory.copy {to.name} {source.name} {where})", to, source)

    def initialise(self, _depth: int) -> str:
        memory, name = self.one(self.memories), self.one(tuple(self.segments))
        # Active segments are gone when functions run, so reading one byte of them traps.
        length = 0 if name in self.active and not self.chance(20) else self.one((0, 1, 3))
        length = min(length, self.segments[name])
        where = f"{self.address(memory)} (i32.const 0) (i32.const {length})"
        return self.guarded(f"(memory.init {memory.name} {name} {where})", memory)

    def call(self, depth: int) -> str:
        name, cost = self.one(self.helpers)
        if (self.cost + cost * self.times) > COST_MAX:
            return self.set_local(depth)
        self.cost += cost * self.times
        return f"(local.set $i (call {name} {self.value('i32', 1)}))"

    def call_table(self, depth: int) -> str:
        dearest = max((cost for _name, cost in self.helpers), default=0)
        if (self.cost + dearest * self.times) > COST_MAX:
            return self.set_local(depth)
        self.cost += dearest * self.times
        table, at = self.one(tuple(self.tables)), f"(i32.const {self.upto(3)})"
        argument = self.value("i32", 1)
        called = f"(call_indirect {table} (param i32) (result i32) {argument} {at})"
        if self.chance(30):
            return f"(local.set $i {called})"
        null = f"(i32.eqz (ref.is_null (table.get {table} {at})))"
        inner = f"(if {null} (then (local.set $i {called})))"
        return f"(if (i32.lt_u {at} (table.size {table})) (then {inner}))"

    def branch(self, depth: int) -> str:
        then, otherwise = self.block(depth - 1), self.block(depth - 1)
        return f"(if {self.value('i32')} (then {then}) (else {otherwise}))"

    def loop(self, depth: int) -> str:
        count = self.one((2, 3, 10))
        if self.cost + self.times * count * 10 > COST_MAX:
            return self.set_local(depth)
        counter, self.counters = f"$n{self.counters}", self.counters + 1
        self.times *= count
        body = self.block(depth - 1)
        self.times //= count
        again = f"(br_if 0 (local.tee {counter} (i32.sub (local.get {counter}) (i32.const 1))))"
        return f"(local.set {counter} (i32.const {count})) (loop {body} {again})"

    def block(self, depth: int) -> str:
        return " ".join(self.statement(depth) for _ in self.count(3))

    def change_reference(self, _depth: int) -> str:
        options = [f"(data.drop {name})" for name in self.segments]
        options += [f"(elem.drop {name})" for name in self.elements]
        for table in self.tables:
            at, null = f"(i32.const {self.upto(3)})", "(ref.null func)"
            function = "(ref.func $table0)"
            options += [
                f"(table.set {table} {at} {null})",
                f"(table.set {table} {at} {function})",
                f"(drop (table.grow {table} {function} (i32.const {self.upto(2)})))",
                f"(table.fill {table} {at} {null} (i32.const {self.upto(2)}))",
                f"(table.copy {table} {table} {at} (i32.const 0) (i32.const 1))",
            ]
            for name in self.elements:
                options.append(
                    f"(table.init {table} {name} {at} (i32.const 0) (i32.const {self.upto(1)}))"
                )
        return self.one(options) if options else "(nop)"

    # ------------------------------------------------------------ functions
    def function(self, head: str, *, result: str = "", statements: int = 6) -> int:
        """Appends it; its cost."""
        self.cost, self.times, self.counters = 1, 1, 0
        body = "\n    ".join(self.statement(2) for _ in self.count(statements))
        counters = " ".join(f"(local $n{number} i32)" for number in range(self.counters))
        self.text.append(f"(func {head} {LOCALS} {counters}\n    {body}{result})")
        return self.cost

    def make(self) -> Program:
        self.declare()
        self.text.append(PRELUDE)
        for number in self.count(3):
            head = f"$h{number} (param $p i32) (result i32)"
            cost = self.function(head, result=f"\n    {self.value('i32')}", statements=4)
            self.helpers.append((f"$h{number}", cost))
        self.fill_tables()
        self.indirect = bool(self.helpers)
        if self.chance(4):
            self.function("$start", statements=3)
            self.text.append("(start $start)")
        initialiser = self.one(INITIALISERS)
        if initialiser != "_initialize" and self.chance(5):
            self.function('(export "_initialize")', statements=3)
        self.function(f'$init (export "{initialiser}")', statements=12)
        steps = 1 + self.upto(1)
        for number in range(steps):
            result = f"\n    {self.value('i32')}"
            self.function(f'(export "step{number}") (param $p i32) (result i32)', result=result)
        self.probe()
        if self.chance(4):
            self.text.append(MUCH_CODE)
        if self.chance(4):
            self.text.append('(@custom "of somebody" (after code) "kept")')
        made = [(f"step{self.upto(steps - 1)}", (self.one(I32),)) for _ in self.count(3)]
        calls = (("probe", ()), *made, ("probe", ()))
        imports = [line for line in self.text if line.startswith("(import")]
        rest = [line for line in self.text if not line.startswith("(import")]
        return Program("(module\n  " + "\n  ".join(imports + rest) + ")", initialiser, calls)

    def fill_tables(self) -> None:
        names = " ".join(name for name, _cost in self.helpers)
        if self.references:
            self.text.append("(func $table0 (param i32) (result i32) (i32.const 77))")
            self.text.append("(elem declare func $table0)")
        for number, (table, size) in enumerate(self.tables.items()):
            if names and not self.chance(4):
                some = " ".join(self.one(self.helpers)[0] for _ in self.count(size))
                self.text.append(f"(elem (table {table}) (i32.const 0) func {some})")
            if names and self.chance(3):
                self.elements.append(f"$e{number}")
                self.text.append(f"(elem $e{number} func {names})")

    def probe(self) -> None:
        """Every eighth byte's neighbourhood of each memory and every global, into one i64."""
        lines = []
        for memory in self.memories:
            kind = memory.index
            end = f"({kind}.mul (memory.size {memory.name}) ({kind}.const {PAGE}))"
            at = "(local.get $at64)" if memory.wide else "(i32.wrap_i64 (local.get $at64))"
            end64 = end if memory.wide else f"(i64.extend_i32_u {end})"
            lines.append(
                f"(local.set $at64 (i64.const 0)) (block (loop (br_if 1 (i64.ge_u"
                f" (local.get $at64) {end64})) (local.set $h (i64.add (i64.mul (local.get $h)"
                f" (i64.const 0x100000001b3)) (i64.load {memory.name} {at})))"
                f" (local.set $at64 (i64.add (local.get $at64) (i64.const 8))) (br 0)))"
            )
        for name, kind, _mutable in self.globals:
            read = f"(global.get {name})"
            bits = {
                "i32": f"(i64.extend_i32_u {read})",
                "i64": read,
                "f32": f"(i64.extend_i32_u (i32.reinterpret_f32 {read}))",
                "f64": f"(i64.reinterpret_f64 {read})",
                "v128": f"(i64.xor (i64x2.extract_lane 0 {read})"
                f" (i64.rotl (i64x2.extract_lane 1 {read}) (i64.const 1)))",
            }[kind]
            lines.append(f"(local.set $h (i64.xor (i64.rotl (local.get $h) (i64.const 7)) {bits}))")
        body = "\n    ".join(lines)
        self.text.append(
            '(func (export "probe") (result i64) (local $at64 i64) (local $h i64)\n'
            f"    {body}\n    (local.get $h))"
        )


@st.composite
def programs(draw: st.DrawFn, *, references: bool = False) -> Program:
    return Maker(draw, references).make()
