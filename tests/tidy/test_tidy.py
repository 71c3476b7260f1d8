"""The house rules a linter does not know: sizes, docstrings, references, nothing left over."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from edged import errors

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edged", "protocol")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
DOCSTRING_LINES_MAX = 15
# Spelled apart so that this file does not contain them.
UNFINISHED = re.compile(
    "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"))
)
MACHINE_PATH = re.compile(
    r"(?<![\w.$}~-])/(?:work|root|home|Users|mnt|opt)/[\w.-]+|\b[A-Z]:\\\\[A-Za-z]"
)
REGISTRY = re.compile(
    "|".join(
        (
            "pypi" + r"\.org",
            "python" + "hosted",
            "npmjs" + r"\.(?:org|com)",
            r"--(?:extra-)?index-url",
        )
    )
)
SPEC_REFERENCE = re.compile(r"SPEC(?:\.md)? §(\d+(?:\.\d+)*)")
SPEC_HEADING = re.compile(r"^#{1,6}\s+(?:§\s*)?(\d+(?:\.\d+)*)[.:)\s]", re.MULTILINE)
# What starts a program is imported by nobody.
ENTRY_MODULES = {"edged.__main__"}


def tracked() -> list[Path]:
    """Files in git and new ones it does not ignore; in a plain copy of the tree, all but caches."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        names = [name for name in done.stdout.decode().split("\0") if name]
        paths = [ROOT / name for name in names]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(
                (part.startswith(".") and part != ".ci") or part == "__pycache__"
                for part in path.relative_to(ROOT).parts
            )
        ]
    return sorted(path for path in paths if path.is_file())


def text_of(path: Path) -> str:
    """ "" for a binary file."""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


TRACKED = tracked()
TEXTS = {path: text_of(path) for path in TRACKED}


def is_python(path: Path) -> bool:
    return path.suffix == ".py" or (
        not path.suffix and TEXTS[path].startswith(("#!/usr/bin/env python", "#!/usr/bin/python"))
    )


PYTHON = [path for path in TRACKED if is_python(path)]
SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGES]
TREES = {path: ast.parse(TEXTS[path], filename=str(path)) for path in PYTHON}


def test_there_is_something_to_check() -> None:
    assert {name_of(path) for path in SOURCES} >= {"edged/errors.py", "protocol/ids.py"}
    assert any(path.parent.name == "tidy" for path in PYTHON)


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long, f"over {FUNCTION_LINES_MAX} lines:\n" + "\n".join(long)


def test_files_are_short() -> None:
    long = [
        f"{name_of(path)}: {len(TEXTS[path].splitlines())} lines"
        for path in PYTHON
        if len(TEXTS[path].splitlines()) > FILE_LINES_MAX
    ]
    assert not long, f"over {FILE_LINES_MAX} lines:\n" + "\n".join(long)


def test_modules_say_what_they_own() -> None:
    wrong = []
    for path in SOURCES:
        docstring = ast.get_docstring(TREES[path])
        if not docstring and TEXTS[path].strip():
            wrong.append(f"{name_of(path)}: no module docstring")
        elif docstring and len(docstring.splitlines()) > DOCSTRING_LINES_MAX:
            wrong.append(f"{name_of(path)}: docstring over {DOCSTRING_LINES_MAX} lines")
    assert not wrong, "\n".join(wrong)


def _lines_matching(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(TEXTS[path].splitlines(), 1)
        if pattern.search(line)
    ]


def test_nothing_is_unfinished() -> None:
    found = _lines_matching(UNFINISHED, PYTHON)
    assert not found, "\n".join(found)


def test_no_machine_paths() -> None:
    found = _lines_matching(MACHINE_PATH, TRACKED)
    assert not found, "\n".join(found)


def test_no_registry_addresses() -> None:
    here = Path(__file__).resolve()
    found = _lines_matching(REGISTRY, [path for path in TRACKED if path != here])
    assert not found, "\n".join(found)


def test_spec_references_resolve() -> None:
    spec = ROOT / "protocol" / "SPEC.md"
    cited: dict[str, str] = {}
    for path in [*PYTHON, *(path for path in TRACKED if path.suffix in {".md", ".toml"})]:
        for section in SPEC_REFERENCE.findall(TEXTS[path]):
            cited.setdefault(section, name_of(path))
    assert cited, "nothing cites the specification"
    assert spec.is_file(), "protocol/SPEC.md is missing"
    headings = set(SPEC_HEADING.findall(TEXTS[spec]))
    lost = [f"§{section} ({where})" for section, where in cited.items() if section not in headings]
    assert not lost, f"not a heading of protocol/SPEC.md: {', '.join(sorted(lost))}"


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path) -> set[str]:
    """Every dotted name the file imports, with relative ones resolved."""
    names: set[str] = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names.add(stem)
            names.update(f"{stem}.{alias.name}" for alias in node.names)
    return names


def test_no_dead_modules() -> None:
    """Each is imported by one that is not a test, or named in a string (`-m`, a lazy table)."""
    imports: set[str] = set()
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] != "tests":
            imports |= imported_by(path) - {module_name(path)}
    started = {
        name
        for path in SOURCES
        for name in re.findall(r"[\"']((?:edged|protocol)(?:\.\w+)+)(?::\w+)?[\"']", TEXTS[path])
    }
    dead = [
        name_of(path)
        for path in SOURCES
        if path.name != "__init__.py" and module_name(path) not in imports | started | ENTRY_MODULES
    ]
    assert not dead, f"imported by nobody: {', '.join(dead)}"


def error_classes() -> list[type[errors.EdgedError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.EdgedError)
    ]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_has_a_row(error: type[errors.EdgedError]) -> None:
    assert error in errors.ERRORS
    assert error.__doc__


def requirement_name(line: str) -> str:
    return re.split(r"[\s<>=!~;\[]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def project() -> dict[str, object]:
    data: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return data


def dependencies() -> list[str]:
    table = project()["project"]
    assert isinstance(table, dict)
    return list(table["dependencies"])


def build_requires() -> list[str]:
    table = project()["build-system"]
    assert isinstance(table, dict)
    return list(table["requires"])


def lines_of(requirements: str) -> list[str]:
    path = ROOT / "requirements" / requirements
    lines = (line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def test_requirements_follow_pyproject() -> None:
    editable = "editables>=0.5"
    assert sorted(lines_of("run.in")) == sorted([*dependencies(), *build_requires(), editable])


@pytest.mark.parametrize("name", ["run", "dev", "guests", "sources"])
def test_requirements_are_locked_with_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", text.replace("\\\n", " "), flags=re.IGNORECASE)
    pinned = {requirement_name(block) for block in blocks if "==" in block}
    unhashed = [block for block in blocks if "==" in block and "--hash=sha256:" not in block]
    assert not unhashed
    wanted = {requirement_name(line) for line in lines_of(f"{name}.in")}
    assert wanted <= pinned, f"run scripts/lock: {sorted(wanted - pinned)} not in {name}.txt"


def test_locked_sets_agree() -> None:
    """dev.txt holds run.txt as it is, so that what is tested is what is installed."""
    versions = {}
    for name in ("run", "dev"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        versions[name] = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE))
    assert versions["run"].items() <= versions["dev"].items()


def test_every_dependency_has_its_reason() -> None:
    path = ROOT / "edged" / "docs" / "ARCHITECTURE.md"
    assert path.is_file(), "edged/docs/ARCHITECTURE.md is missing"
    lines = TEXTS[path].splitlines()
    unexplained = [
        name
        for name in map(requirement_name, dependencies())
        if not any(
            re.match(rf"[-*|] *(?:[`\w -]+, )*`?{re.escape(name)}\b", line) for line in lines
        )
    ]
    assert not unexplained, f"no line in ARCHITECTURE.md: {', '.join(unexplained)}"


def test_scripts_can_be_started() -> None:
    wrong = [
        name_of(path)
        for path in TRACKED
        if TEXTS[path].startswith("#!") and not path.stat().st_mode & 0o100
    ]
    assert not wrong, f"not executable: {', '.join(wrong)}"


def test_no_large_or_built_files() -> None:
    """Guests and packages are built from source; nothing binary is kept here."""
    built = {".wasm", ".cwasm", ".so", ".o", ".whl", ".pyc", ".gz", ".zip"}
    wrong = [
        name_of(path)
        for path in TRACKED
        if path.suffix in built or path.stat().st_size > 512 * 1024
    ]
    assert not wrong, ", ".join(wrong)
