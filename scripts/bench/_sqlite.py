"""SQLite as a WASI guest: the amalgamation from npm's better-sqlite3, built with PyPI's Zig, once.

About 1.1 MB; it makes a table in memory and answers one query.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from _common import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _env
import _guests

CACHE = REPOSITORY / ".cache" / "bench"
PACKAGE = "better-sqlite3@13.2.0"
AMALGAMATION = "package/deps/sqlite3"
SHA256 = "75a4760a7b9727a4c4c877aec92eacf39e52a8f2921ce00bd33be6d3a8e8e254"
MODULE = CACHE / "sqlite-13.2.0.wasm"
EXPECTED = b"3|x,y\n"
FLAGS = [
    "-w", "-I.", "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-DSQLITE_OMIT_WAL",
    "-DSQLITE_TEMP_STORE=3", "-DSQLITE_DEFAULT_MEMSTATUS=0", "-D_WASI_EMULATED_MMAN",
    "-D_WASI_EMULATED_GETPID", "-lwasi-emulated-mman", "-lwasi-emulated-getpid",
]  # fmt: skip
MAIN = r"""
#include <stdio.h>
#include "sqlite3.h"

static int show(void *unused, int columns, char **values, char **names) {
    (void)unused, (void)names;
    for (int i = 0; i < columns; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "");
    return putchar('\n') == EOF;
}

int main(void) {
    sqlite3 *database;
    return sqlite3_open(":memory:", &database)
        || sqlite3_exec(database, "create table t(a, b); insert into t values (1, 'x'), (2, 'y');"
                                  "select sum(a), group_concat(b) from t", show, 0, 0);
}
"""


def sqlite() -> Path | None:
    """The module; None, with the reason printed, where its parts cannot be had."""
    if MODULE.is_file():
        return MODULE
    if shutil.which("npm") is None:
        print("without SQLite: npm is not installed")
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            _build(Path(name))
    except (_env.EnvError, subprocess.SubprocessError, OSError, ValueError) as error:
        print(f"without SQLite: {error}")
        return None
    return MODULE


def _build(place: Path) -> None:
    print("building SQLite with Zig, once: a minute or so …", flush=True)
    subprocess.run(
        ["npm", "pack", "--silent", "--ignore-scripts", PACKAGE],
        cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=180, check=True,
    )  # fmt: skip
    with tarfile.open(next(place.glob("*.tgz"))) as files:
        for name in ("sqlite3.c", "sqlite3.h"):
            member = files.extractfile(f"{AMALGAMATION}/{name}")
            (place / name).write_bytes(member.read() if member else b"")
    if hashlib.sha256((place / "sqlite3.c").read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{PACKAGE} does not have the sqlite3.c that this benchmark knows")
    (place / "main.c").write_text(MAIN, encoding="ascii")
    python = _env.ensure(_guests.ZIG_ENV, "guests")
    output = place / "sqlite.wasm"
    _guests._run(
        [str(python), "-m", "ziglang", "cc", *_guests.C_FLAGS, *FLAGS, *_guests.LINK_FLAGS,
         "sqlite3.c", "main.c", "-o", str(output)], cwd=place,
    )  # fmt: skip
    output.replace(MODULE)
