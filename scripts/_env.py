"""Private environments made from the hashed requirement files; standard library only.

`enter("dev")` makes `.venv` hold what requirements/dev.txt pins and continues the calling script
in it. A stamp of the files' hashes makes the next call cost nothing; a changed file, interpreter
or checkout path rebuilds from nothing, so no left-over package can hide a missing line.
EDGED_ENV=current uses the running interpreter as it is.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - what an older Python gets to read
    sys.exit("edged needs Python 3.11 or newer; this is " + sys.version.split()[0])

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
STAMP = "edged-stamp.json"
SUPERSETS = {"run": ("lab", "dev"), "lab": ("dev",)}
# Never the interpreter of an environment that is about to be rebuilt.
BASE_PYTHON = getattr(sys, "_base_executable", "") or sys.executable


class EnvError(Exception):
    """The environment cannot be made; the text says what to do."""


def _hash(name: str) -> str:
    return hashlib.sha256((ROOT / "requirements" / f"{name}.txt").read_bytes()).hexdigest()


def _editable_hash() -> str:
    """The editable install records metadata and entry points, both from pyproject.toml."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()


def _identity() -> dict[str, str]:
    """What a virtual environment is tied to."""
    return {"python": sys.version, "base": sys.base_prefix, "root": str(ROOT)}


def _read_stamp(directory: Path) -> dict[str, object]:
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(directory: Path, stamp: dict[str, object]) -> None:
    temp = directory / (STAMP + ".new")
    temp.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    temp.replace(directory / STAMP)


def python_of(directory: Path) -> Path:
    return directory / "bin" / "python"


def _run(command: list[str], *, what: str) -> None:
    """Quiet while it works, the whole output when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise EnvError(f"{what} failed ({done.returncode}):\n{done.stdout.rstrip()}")


def create(directory: Path) -> None:
    """An empty environment, with pip if this Python has ensurepip. Raises EnvError."""
    if importlib.util.find_spec("venv") is None:
        raise EnvError("this Python has no venv module; on Debian: apt install python3-venv")
    with_pip = importlib.util.find_spec("ensurepip") is not None
    if not with_pip and importlib.util.find_spec("pip") is None:
        raise EnvError(
            "this Python has neither ensurepip nor pip; on Debian: apt install python3-venv"
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    options = [] if with_pip else ["--without-pip"]
    _run([BASE_PYTHON, "-m", "venv", *options, str(directory)], what=f"making {directory.name}")


def pip(directory: Path) -> list[str]:
    """pip working on `directory`: its own, or (Debian without ensurepip) the caller's."""
    own = python_of(directory)
    if next(directory.glob("lib/python*/site-packages/pip"), None) is not None:
        return [str(own), "-m", "pip"]
    return [BASE_PYTHON, "-m", "pip", "--python", str(own)]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes a thing in the cache; the others wait and find it made."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure(directory: Path, name: str, *, editable: bool = False) -> Path:
    """`directory` with the packages of requirements/{name}.txt; the path of its Python.

    One that holds more, all of `dev` for `run`, does too and stays what it is. Raises EnvError."""
    with locked(f"env-{directory.name.strip('.')}"):
        stamp = _read_stamp(directory)
        held = stamp.get("set")
        if isinstance(held, str) and held in SUPERSETS.get(name, ()):
            name = held
        wanted: dict[str, object] = {
            "identity": _identity(),
            "set": name,
            "hash": _hash(name),
            "edged": _editable_hash() if editable else "",
        }
        if stamp == wanted:
            return python_of(directory)
        started_s = time.monotonic()
        print(f"making {directory.name} from requirements/ …", file=sys.stderr, flush=True)
        grows = isinstance(held, str) and name in (held, *SUPERSETS.get(held, ()))
        same = (
            stamp.get("identity") == _identity() and grows and stamp.get("hash") == _hash(str(held))
        )
        if not same:
            create(directory)
        (directory / STAMP).unlink(missing_ok=True)
        _install(directory, name, editable=editable)
        _write_stamp(directory, wanted)
        print(f"made it in {time.monotonic() - started_s:.1f} s", file=sys.stderr, flush=True)
    return python_of(directory)


def _install(directory: Path, name: str, *, editable: bool) -> None:
    install = [*pip(directory), "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-compile"]
    lock = str(ROOT / "requirements" / f"{name}.txt")
    _run(
        [*install, "--require-hashes", "--only-binary", ":all:", "-r", lock],
        what=f"pip install of requirements/{name}.txt",
    )
    if editable:
        _run(
            [*install, "--no-build-isolation", "--no-deps", "--editable", str(ROOT)],
            what="pip install of this checkout",
        )


def enter(name: str) -> None:
    """Continues the calling script in `.venv` with requirements/{name}.txt, made if needed.

    Returns when already there; otherwise replaces the process, or exits with the reason."""
    if os.environ.get("EDGED_ENV") == "current":
        return
    try:
        python = ensure(VENV, name, editable=True)
    except EnvError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    os.environ["VIRTUAL_ENV"] = str(VENV)
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(python, [str(python), *sys.argv])
