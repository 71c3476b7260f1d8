"""The real Wizer: npm's native binary, pinned by hash.

Its defaults differ from edged's in names only: `initialiser` says which export it is to run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from npm_package import Unavailable, cached

PACKAGE = "@bytecodealliance/wizer-linux-x64@11.0.3"
INTEGRITY = (
    "HvqiIcnSdaNeQ/D/Q613OXgyW4bWt3bXrl62kv+MvcCeiMskYLclRjvvDH8Mvrjvtjtx0GwuyhyP4gYFaiIQxg=="
)
TIMEOUT_S = 60.0
NAMES = ("wizer-initialize", "wizer.initialize", "_initialize")


class Refused(Exception):
    """What Wizer wrote when it made no snapshot."""


def find() -> Path:
    """Raises npm_package.Unavailable or Unexpected."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unavailable(f"{PACKAGE} is for Linux on x86-64, this is {platform.machine()}")
    return cached("wizer", PACKAGE, INTEGRITY) / "wizer"


def snapshot(
    binary: Path, wasm: bytes, *, initialiser: str, renamed: tuple[str, ...] = ()
) -> bytes:
    """`renamed`: new=old. Raises Refused."""
    options = ["--init-func", initialiser, "--allow-wasi", "--inherit-stdio=false"]
    options += [f"--rename-func={each}" for each in renamed]
    done = subprocess.run(
        [str(binary), *options],
        input=wasm,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "0"},
    )
    if done.returncode:
        raise Refused(done.stderr.decode(errors="replace").strip())
    return done.stdout
