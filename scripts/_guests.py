"""Compiles guests/build.toml with PyPI's Zig; standard library only.

A module is made again when its key changes: the hash of its sources, its flags, the locked
compiler and third-party sources, and this file. Everything made is under .cache, written under a
temporary name and renamed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import _env
from _env import CACHE, ROOT, EnvError

SOURCES = ROOT / "guests"
OUTPUT = CACHE / "guests"
ZIG_ENV = CACHE / "zig"
THIRD_PARTY = CACHE / "sources"
# One level for all, because the C library is compiled for each.
C_FLAGS = ["-target", "wasm32-wasi", "-O2"]
# Recursion in a guest's linear memory ends at the policy's bounds, not at the default 64 KiB pages.
LINK_FLAGS = ["-s", "-Wl,-z,stack-size=1048576"]
ZIG_FLAGS = ["-target", "wasm32-wasi", "-OReleaseSmall", "-fstrip", "--stack", "1048576"]
BUILD_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Guest:
    name: str
    c: tuple[str, ...]
    zig: str
    flags: tuple[str, ...]
    main_flags: tuple[str, ...]
    """For the last source only, so that a program `like` another shares its other objects."""
    depends: tuple[str, ...]

    @property
    def module(self) -> Path:
        return OUTPUT / f"{self.name}.wasm"

    @property
    def third_party(self) -> bool:
        return any(source.startswith("@") for source in self.c)


def guests() -> list[Guest]:
    table = tomllib.loads((SOURCES / "build.toml").read_text(encoding="utf-8"))
    found = []
    for name, entry in table.items():
        base = table[entry["like"]] if "like" in entry else {}
        found.append(
            Guest(
                name,
                c=tuple(base.get("c", ()) or entry.get("c", ())),
                zig=entry.get("zig", ""),
                flags=(*base.get("flags", ()), *entry.get("flags", ())),
                main_flags=tuple(entry.get("main_flags", ())),
                depends=(*base.get("depends", ()), *entry.get("depends", ())),
            )
        )
    return found


def key_of(guest: Guest) -> str:
    """Changes with anything the module's bytes depend on."""
    files = [guest.zig, *guest.c, *guest.depends]
    own = [SOURCES / name for name in files if name and not name.startswith("@")]
    locks = [ROOT / "requirements" / name for name in ("guests.txt", "sources.txt")]
    digest = hashlib.sha256(
        json.dumps([guest.c, guest.zig, guest.flags, guest.main_flags]).encode()
    )
    for path in [*own, *locks, Path(__file__)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_built(guest: Guest) -> bool:
    try:
        key = guest.module.with_suffix(".key").read_text(encoding="ascii")
    except OSError:
        return False
    return key == key_of(guest) and guest.module.is_file()


def _run(command: list[str], *, cwd: Path = SOURCES) -> None:
    env = dict(os.environ)
    env["ZIG_GLOBAL_CACHE_DIR"] = str(CACHE / "zig-cache" / "global")
    env["ZIG_LOCAL_CACHE_DIR"] = str(CACHE / "zig-cache" / "local")
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvError(f"not done after {BUILD_TIMEOUT_S:.0f} s: {' '.join(command)}") from error
    if done.returncode:
        raise EnvError(f"failed: {' '.join(command)}\n{done.stdout.rstrip()}")


def fetch_quickjs() -> Path:
    """The unpacked C sources, downloaded once by hash."""
    lock = (ROOT / "requirements" / "sources.txt").read_bytes()
    place = THIRD_PARTY / hashlib.sha256(lock).hexdigest()[:16]
    found = sorted(place.glob("quickjs-*/upstream-quickjs"))
    if found:
        return found[0]
    temp = THIRD_PARTY / f"{place.name}.new"
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
    options += ["--no-build-isolation", "--require-hashes", "--dest", str(temp)]
    lock_file = str(ROOT / "requirements" / "sources.txt")
    # setuptools, which reads the archive's metadata, is in the Zig environment.
    _run([*_env.pip(ZIG_ENV), "download", *options, "-r", lock_file], cwd=temp)
    for archive in sorted(temp.glob("*.tar.gz")):
        with tarfile.open(archive) as files:
            # 3.11.4 and newer have filters; before, the archive's pinned hash has to do.
            options_of = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            files.extractall(temp, **options_of)
        archive.unlink()
    shutil.rmtree(place, ignore_errors=True)
    temp.rename(place)
    return next(iter(sorted(place.glob("quickjs-*/upstream-quickjs"))))


def build(guest: Guest, python: Path, quickjs: Path | None) -> str:
    """Makes one module; a line to show. Raises EnvError."""
    started_s = time.monotonic()
    temp = OUTPUT / f"{guest.name}.new.wasm"
    zig = [str(python), "-m", "ziglang"]
    if guest.zig:
        _run([*zig, "build-exe", guest.zig, *ZIG_FLAGS, f"-femit-bin={temp}"])
    else:
        place = str(quickjs)
        flags = [flag.replace("@quickjs", place) for flag in guest.flags]
        objects = []
        for source in guest.c:
            objects.append(str(OUTPUT / f"{guest.name}-{Path(source).stem}.o"))
            path = source.replace("@quickjs", place)
            more = guest.main_flags if source == guest.c[-1] else ()
            _run([*zig, "cc", *C_FLAGS, *flags, *more, "-c", path, "-o", objects[-1]])
        _run([*zig, "cc", *C_FLAGS, *objects, *LINK_FLAGS, "-o", str(temp)])
        for name in objects:
            Path(name).unlink()
    temp.chmod(0o644)
    temp.replace(guest.module)
    guest.module.with_suffix(".key").write_text(key_of(guest), encoding="ascii")
    size_kb = guest.module.stat().st_size / 1000
    return f"built {guest.name}.wasm, {size_kb:.1f} kB, in {time.monotonic() - started_s:.1f} s"


def build_missing(wanted: list[Guest]) -> None:
    """Raises EnvError."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with _env.locked("guests"):
        missing = [guest for guest in wanted if not is_built(guest)]
        if not missing:
            return
        python = _env.ensure(ZIG_ENV, "guests")
        quickjs = fetch_quickjs() if any(guest.third_party for guest in missing) else None
        print("compiling guests; the C library comes first …", file=sys.stderr, flush=True)
        # Two at once: Zig builds its C library one file after the other, whatever the machine.
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(build, guest, python, quickjs) for guest in missing]
            for job in jobs:
                print(job.result(), file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    quiet = "--quiet" in arguments
    arguments = [name for name in arguments if name != "--quiet"]
    known = guests()
    unknown = set(arguments) - {guest.name for guest in known}
    if unknown:
        print(f"scripts/guests: not in guests/build.toml: {sorted(unknown)}", file=sys.stderr)
        return 2
    wanted = [guest for guest in known if not arguments or guest.name in arguments]
    try:
        if not all(is_built(guest) for guest in wanted):
            build_missing(wanted)
    except EnvError as error:
        print(f"scripts/guests: {error}", file=sys.stderr)
        return 1
    for guest in wanted if not quiet else ():
        print(guest.module.relative_to(ROOT))
    return 0
