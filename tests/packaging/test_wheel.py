"""The wheel in a clean environment: the locked packages, another directory, no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import _env  # noqa: E402 - what scripts/check makes its own environment with

TIMEOUT_S = 300.0

pytestmark = pytest.mark.slow


def run(command: list[str], *, cwd: Path, state: Path | None = None) -> str:
    """stdout of a command that sees nothing of this checkout; fails with all it said."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env.pop("VIRTUAL_ENV", None)
    if state is not None:
        env["EDGED_STATE"] = str(state)
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], cwd=ROOT)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with requirements/run.txt and the wheel."""
    directory = tmp_path_factory.mktemp("clean")
    _env.create(directory / "env")
    install = [*_env.pip(directory / "env"), "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-compile", "--only-binary", ":all:"]
    lock = str(ROOT / "requirements" / "run.txt")
    run([*install, "--require-hashes", "-r", lock], cwd=directory)
    run([*install, "--no-deps", "--no-index", str(wheel)], cwd=directory)
    return directory / "env" / "bin"


def test_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    tops = {name.split("/")[0] for name in names}
    assert {"edged", "protocol"} == {top for top in tops if not top.endswith(".dist-info")}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("edged", "protocol")
        for path in (ROOT / package).rglob("*.py")
    }
    assert sources <= set(names)
    assert {"edged/py.typed", "protocol/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {line.replace(" ", "") for line in metadata.get_all("Requires-Dist", [])}
    extras = {
        f"{line};extra=={extra!r}"
        for extra, lines in project["optional-dependencies"].items()
        for line in lines
    }
    assert required == {*project["dependencies"], *extras}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_dependencies_are_complete(installed: Path, tmp_path: Path) -> None:
    run([*_env.pip(installed.parent), "check"], cwd=tmp_path)
    walk = (
        "import importlib, pkgutil, edged, protocol\n"
        "for package in (edged, protocol):\n"
        "    assert 'site-packages' in package.__file__, package.__file__\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "            print(module.name)\n"
    )
    imported = run([str(installed / "python"), "-c", walk], cwd=tmp_path).split()
    assert {"edged.node", "edged.cli.main", "protocol.ids"} <= set(imported)


def test_command_serves_a_function(installed: Path, tmp_path: Path) -> None:
    """From an empty directory: a cluster, a deploy, an answer, and nothing left."""
    edged, state = str(installed / "edged"), tmp_path / "state"
    assert run([edged, "--version"], cwd=tmp_path).startswith("edged ")
    config = str(ROOT / "guests" / "add_numbers" / "function.toml")
    run([edged, "cluster", "up", "-n", "1", "--name", "wheel"], cwd=tmp_path, state=state)
    try:
        run([edged, "deploy", "--config", config], cwd=tmp_path, state=state)
        invoke = [edged, "invoke", "add_numbers", "/add_numbers", "-q", "num1=5", "-q", "num2=10"]
        assert run(invoke, cwd=tmp_path, state=state) == "15\n"
    finally:
        run([edged, "cluster", "down", "--name", "wheel"], cwd=tmp_path, state=state)
    assert {path.name for path in tmp_path.iterdir()} <= {"state"}
