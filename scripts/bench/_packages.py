"""Single files of packages on npm and PyPI, by pinned version and SHA-256, kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from _common import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _env
import _guests

CACHE = REPOSITORY / ".cache" / "bench"
TIMEOUT_S = 600.0


class Unobtainable(Exception):
    """A file cannot be had here; the text says why."""


class Member(NamedTuple):
    registry: Literal["npm", "pypi"]
    package: str
    version: str
    name: str
    """In npm's archive, or in the wheel."""
    sha256: str


def fetch(member: Member) -> Path:
    """Raises Unobtainable."""
    kept = CACHE / "packages" / f"{member.sha256[:16]}-{Path(member.name).name}"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {member.package} {member.version} …", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=kept.parent) as name:
            place = Path(name)
            data = (_from_npm if member.registry == "npm" else _from_pypi)(member, place)
            if hashlib.sha256(data).hexdigest() != member.sha256:
                raise Unobtainable(
                    f"{member.name} of {member.package} {member.version} is not what was pinned"
                )
            (place / "member").write_bytes(data)
            (place / "member").replace(kept)
    except subprocess.CalledProcessError as error:
        raise Unobtainable(f"{member.package}: {error.stderr.decode()[-500:].strip()}") from error
    except (_env.EnvError, subprocess.SubprocessError, OSError, KeyError) as error:
        raise Unobtainable(f"{member.package}: {error}") from error
    return kept


def _run(command: list[str], place: Path) -> None:
    subprocess.run(
        command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S,
        check=True,
    )  # fmt: skip


def _from_npm(member: Member, place: Path) -> bytes:
    if shutil.which("npm") is None:
        raise Unobtainable("npm is not installed")
    named = f"{member.package}@{member.version}"
    _run(["npm", "pack", "--silent", "--ignore-scripts", named], place)
    with tarfile.open(next(place.glob("*.tgz"))) as files:
        found = files.extractfile(member.name)
        if found is None:
            raise KeyError(member.name)
        return found.read()


def _from_pypi(member: Member, place: Path) -> bytes:
    _env.ensure(_guests.ZIG_ENV, "guests")  # it has a pip, whatever runs this
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    named = f"{member.package}=={member.version}"
    _run([*_env.pip(_guests.ZIG_ENV), "download", *options, "--dest", ".", named], place)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as files:
        return files.read(member.name)
