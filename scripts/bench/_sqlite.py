"""SQLite as a WASI guest: the amalgamation from npm's better-sqlite3, built with PyPI's Zig, once.

About 1.1 MB; it makes a table in memory and answers one query.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import REPOSITORY
from _packages import CACHE, Member, Unobtainable, fetch

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _env
import _guests

VERSION = "13.2.0"
AMALGAMATION = {
    "sqlite3.c": "75a4760a7b9727a4c4c877aec92eacf39e52a8f2921ce00bd33be6d3a8e8e254",
    "sqlite3.h": "d6c84557261893439b341d2e6c35187ae3ea24fbfd843ad94616f72d89242b8c",
}
MODULE = CACHE / f"sqlite-{VERSION}.wasm"
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
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            _build(Path(name))
    except (Unobtainable, _env.EnvError, subprocess.SubprocessError, OSError) as error:
        print(f"without SQLite: {error}")
        return None
    return MODULE


def _build(place: Path) -> None:
    print("building SQLite with Zig, once: a minute or so …", flush=True)
    for name, sha256 in AMALGAMATION.items():
        of_package = f"package/deps/sqlite3/{name}"
        shutil.copy(
            fetch(Member("npm", "better-sqlite3", VERSION, of_package, sha256)), place / name
        )
    (place / "main.c").write_text(MAIN, encoding="ascii")
    python = _env.ensure(_guests.ZIG_ENV, "guests")
    output = place / "sqlite.wasm"
    _guests._run(
        [str(python), "-m", "ziglang", "cc", *_guests.C_FLAGS, *FLAGS, *_guests.LINK_FLAGS,
         "sqlite3.c", "main.c", "-o", str(output)], cwd=place,
    )  # fmt: skip
    output.replace(MODULE)
