"""A run's folder on disk: rows are appended as they happen, so that a killed run can be read too.

  scenario.toml    as it was run              timeline.jsonl  planned faults, before the run
  history.jsonl    what happened              requests.jsonl  what was asked and answered
  samples.jsonl    nodes, once per second     verdict.json    the judgement
  logs/NODE.log    report.html  plots/*.png

A torn last line is what a kill leaves; it is dropped. Anything else that is no row of its file is
damage, told with file, line and reason. Written by one thread; bounded in bytes, lines and rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, ClassVar, Final, Literal, TypeVar

import msgspec

from edged.errors import ConfigError, RunDamaged
from edged.files import write_file

from .history import History, HistoryRow, Planned, Request, Row, Run, Sample, Verdict

LINE_BYTES_MAX: Final = 1024 * 1024
FILE_BYTES_MAX: Final = 4 * 1024**3
ROWS_MAX: Final = 5_000_000
"""An hour at 1,000 requests a second, and more than a report can draw."""

FileName = Literal["timeline", "history", "requests", "samples"]

R = TypeVar("R", bound=Row)

TIMELINE: Final[msgspec.json.Decoder[Planned]] = msgspec.json.Decoder(Planned)
HISTORY: Final[msgspec.json.Decoder[HistoryRow]] = msgspec.json.Decoder(HistoryRow)
REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
SAMPLES: Final[msgspec.json.Decoder[Sample]] = msgspec.json.Decoder(Sample)


def path_of(directory: Path, name: FileName) -> Path:
    return directory / f"{name}.jsonl"


def write_timeline(directory: Path, timeline: Iterable[Planned]) -> None:
    """Whole or not at all. Raises ConfigError."""
    write_file(path_of(directory, "timeline"), encode_rows(timeline), secret=False)


def encode_rows(rows: Iterable[Row]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


class RunFolder:
    """Of a run that is under way. A row is in the file when `flush` or the context manager has
    returned; the runner flushes once per second."""

    FILES: ClassVar[tuple[FileName, ...]] = ("history", "requests", "samples")
    """That it holds open."""

    def __init__(self, directory: Path, files: Mapping[FileName, BinaryIO]) -> None:
        """See `recording`."""
        self.directory = directory
        self._files = files
        self._encoder = msgspec.json.Encoder()

    def event(self, row: HistoryRow) -> None:
        """Written through: few, and the first to be looked for after a crash."""
        self._append("history", row)
        self._files["history"].flush()

    def request(self, row: Request) -> None:
        self._append("requests", row)

    def sample(self, row: Sample) -> None:
        self._append("samples", row)

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def _append(self, name: FileName, row: Row) -> None:
        line = self._encoder.encode(row)
        assert len(line) < LINE_BYTES_MAX, f"{name}: a row of {len(line)} bytes"
        self._files[name].write(line + b"\n")


@contextmanager
def recording(directory: Path) -> Iterator[RunFolder]:
    """Opens the files of a new run in `directory`, which is made. Raises ConfigError: it holds a
    run already, or cannot be written."""
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            files = {
                name: stack.enter_context(path_of(directory, name).open("xb"))
                for name in RunFolder.FILES
            }
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename}: is there already: give each run a folder of its own"
            ) from error
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be made: {error.strerror}") from error
        yield RunFolder(directory, files)


# ---------------------------------------------------------------- reading
def read_history(directory: Path) -> History:
    """Everything of a run that was written. Raises RunDamaged naming file, line and reason."""
    rows = tuple(read_rows(directory, "history", HISTORY))
    if not rows or not isinstance(rows[0], Run):
        raise RunDamaged(f"{path_of(directory, 'history')}: does not begin with a run row")
    return History(
        run=rows[0],
        rows=rows,
        timeline=tuple(read_rows(directory, "timeline", TIMELINE)),
        requests=tuple(read_rows(directory, "requests", REQUESTS)),
        samples=tuple(read_rows(directory, "samples", SAMPLES)),
    )


def read_rows(directory: Path, name: FileName, decoder: msgspec.json.Decoder[R]) -> Iterator[R]:
    """One by one, so that a reader need not hold them all. Raises RunDamaged."""
    path = path_of(directory, name)
    for number, line in enumerate(_lines(path), 1):
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunDamaged(f"{path}:{number}: no row of this file: {error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Whole ones: what follows the last newline is torn."""
    try:
        with path.open("rb") as file:
            if (size := path.stat().st_size) > FILE_BYTES_MAX:
                raise RunDamaged(f"{path}: {size} bytes; at most {FILE_BYTES_MAX} are read")
            for number in range(1, ROWS_MAX + 2):
                line = file.readline(LINE_BYTES_MAX + 1)
                if not line.endswith(b"\n"):
                    if len(line) > LINE_BYTES_MAX:
                        raise RunDamaged(f"{path}:{number}: longer than {LINE_BYTES_MAX} bytes")
                    return
                if number > ROWS_MAX:
                    raise RunDamaged(f"{path}: more than {ROWS_MAX} rows")
                yield line
    except OSError as error:
        raise RunDamaged(f"{path}: cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------- the judgement
def write_verdict(directory: Path, verdict: Verdict) -> None:
    """Raises ConfigError."""
    encoded = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    write_file(directory / "verdict.json", encoded + b"\n", secret=False)


def read_verdict(directory: Path) -> Verdict | None:
    """None: not judged yet. Raises RunDamaged."""
    path = directory / "verdict.json"
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(64 * LINE_BYTES_MAX), type=Verdict)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDamaged(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunDamaged(f"{path}: no verdict: {error}") from error
