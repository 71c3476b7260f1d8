"""Node processes: start detached, tell whether they run, pause and stop them, find what they left.

A process is (pid, start time): see state.py. Each is started in a session of its own and with
EDGED_CLUSTER_NODE = its directory in its environment, which its children inherit: by both, strays
are found after a crash, by the second even when nobody remembers a pid. Linux (/proc).
"""

from __future__ import annotations

import compileall
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from edged.logfile import LOG_FILE

MARKER: Final = "EDGED_CLUSTER_NODE"
POLL_S: Final = 0.02
PROC: Final = Path("/proc")

_ROOT: Final = Path(__file__).resolve().parents[2]
_UNWANTED_ENV: Final = (
    "EDGED_TOKEN",
    "EDGED_TOKEN_FILE",
    "EDGED_CONTROL",
    "EDGED_NODE",
    "EDGED_GATEWAY",
    "PYTHONDONTWRITEBYTECODE",
)
"""The operator's own credentials are no business of the nodes, and what keeps Python from using
compiled modules would make each node compile all of edged by itself: 0.4 s of CPU of 0.9 s."""
PAUSE_ROUNDS_MAX: Final = 10
"""A node that starts a process while it is being stopped: one more look finds it."""


class Process(NamedTuple):
    pid: int
    started_ticks: int


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def compile_ahead() -> None:
    """Once for all nodes, where edged is used from its sources; 10 ms when that was done before."""
    if os.access(_ROOT / "edged", os.W_OK):
        for package in ("edged", "protocol"):
            compileall.compile_dir(_ROOT / package, quiet=2)


def start_node(config_file: Path, directory: Path, log_file: Path) -> Process:
    """`python -m edged run CONFIG`, detached; stdout and stderr append to `log_file`, which the
    node keeps from growing without end."""
    environ = {key: value for key, value in os.environ.items() if key not in _UNWANTED_ENV}
    environ[MARKER] = str(directory)
    environ[LOG_FILE] = str(log_file)
    # The same edged as this one, wherever the command was typed; -P keeps that place's files out.
    root = str(_ROOT)
    known = environ.get("PYTHONPATH", "")
    if root not in known.split(os.pathsep):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, known)))
    argv = [sys.executable, "-P", "-m", "edged", "run", str(config_file)]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        sys.executable,
        argv,
        environ,
        file_actions=[
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable_fds()),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_file), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )
    return Process(pid, started_ticks(pid) or 0)


def _inheritable_fds() -> list[int]:
    """Open descriptors above 2 that a child would get: a daemon must not keep a pipe open."""
    found: list[int] = []
    for entry in os.listdir(PROC / "self/fd"):
        with suppress(OSError):
            if int(entry) > 2 and os.get_inheritable(int(entry)):
                found.append(int(entry))
    return found


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the second may hold spaces."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def started_ticks(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def _has_ended(fields: list[str]) -> bool:
    """Once the last of its threads has: until then what it has open stays so, locks and ports too,
    while the state, which is the first thread's, may be that of a zombie."""
    return fields[0] in "ZX" and int(fields[17]) <= 1


def is_running(process: Process) -> bool:
    """Also reaps it where it is this process's child and has ended."""
    fields = _stat_fields(process.pid)
    if fields is None or int(fields[19]) != process.started_ticks:
        return False
    if _has_ended(fields):
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        return False
    return True


def is_paused(process: Process) -> bool:
    fields = _stat_fields(process.pid)
    return fields is not None and int(fields[19]) == process.started_ticks and fields[0] == "T"


def send_signal(process: Process, number: signal.Signals) -> bool:
    """False if it was not running."""
    if not is_running(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
    return True


def wait_gone(processes: Iterable[Process], *, timeout_s: float) -> list[Process]:
    """Those that still run when the time is over."""
    left = list(processes)
    deadline = time.monotonic() + timeout_s
    while True:
        left = [process for process in left if is_running(process)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(POLL_S)


def strays(directory: Path, leaders: Iterable[Process] = ()) -> list[Process]:
    """Running processes started for nodes whose directory is `directory` or below it, and those of
    the sessions that `leaders` opened: compilers run without an environment."""
    wanted = f"{MARKER}={directory}".encode()
    sessions = {leader.pid: leader for leader in leaders if not _replaced(leader)}
    found: list[Process] = []
    for entry in os.listdir(PROC):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            fields = _stat_fields(int(entry))
            if fields is None or _has_ended(fields):
                continue
            known = Process(int(entry), int(fields[19]))
            leader = sessions.get(int(fields[3]))
            ours = leader is not None and known.started_ticks >= leader.started_ticks
            if ours or _is_marked((PROC / entry / "environ").read_bytes(), wanted):
                found.append(known)
    return found


def _replaced(process: Process) -> bool:
    """Its pid, and so its session's number, belongs to another process by now."""
    ticks = started_ticks(process.pid)
    return ticks is not None and ticks != process.started_ticks


def _is_marked(environ: bytes, wanted: bytes) -> bool:
    return any(item == wanted or item.startswith(wanted + b"/") for item in environ.split(b"\x00"))


def pause_all(directory: Path, leader: Process) -> list[Process]:
    """SIGSTOP to the node and to all it started, the node first: stopped, it starts no more.

    Returns those that were stopped."""
    send_signal(leader, signal.SIGSTOP)
    stopped = [leader]
    for _ in range(PAUSE_ROUNDS_MAX):
        fresh = [each for each in strays(directory, [leader]) if each not in stopped]
        for each in fresh:
            send_signal(each, signal.SIGSTOP)
        stopped += fresh
        if not fresh:
            break
    return stopped


def resume_all(directory: Path, leader: Process) -> list[Process]:
    """SIGCONT to the same, the node last; those it went to."""
    resumed = [*(each for each in strays(directory, [leader]) if each != leader), leader]
    return [each for each in resumed if send_signal(each, signal.SIGCONT)]


def kill_all(processes: Iterable[Process], *, timeout_s: float) -> list[Process]:
    """SIGKILL; those that run on nevertheless (stuck in the kernel)."""
    listed = list(processes)
    for process in listed:
        send_signal(process, signal.SIGKILL)
    return wait_gone(listed, timeout_s=timeout_s)
