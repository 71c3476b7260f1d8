"""Run folders: what is written is read; a kill's torn line is dropped, damage is named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ConfigError, RunDamaged
from edged.lab import history as h
from edged.lab import runfolder
from edged.lab.chaos.telling import told
from edged.lab.runfolder import read_history, recording, write_timeline

RUN = h.Run(
    t_s=0.0,
    scenario="s",
    seed=7,
    started_at_ms=1,
    nodes=(h.Node(name="n1", region="eu"), h.Node(name="n2", region="us", roles=("serve",))),
    functions=(
        h.Function(
            name="f", abi="raw", replicas=3, versions=(h.Version(label="1", module="ab" * 32),)
        ),
    ),
    replay="edged chaos run s.toml --seed 7",
)
EVENTS: tuple[h.HistoryRow, ...] = (
    RUN,
    h.Phase(t_s=0.5, name="warm-up", errors_max=0.01),
    h.Deploy(
        t_s=1.5,
        function="f",
        label="1",
        version="v",
        module="ab" * 32,
        node="n1",
        begun_s=1.0,
        acknowledged_s=1.5,
        wanted=3,
        holders=("n1", "n2"),
    ),
    h.Deploy(
        t_s=1.6, function="f", label="2", module="cd" * 32, node="n2", begun_s=1.5, error="503"
    ),
    h.Fault(t_s=2.0, id="1", action="kill", targets=("n2",), state="begun"),
    h.Fault(
        t_s=2.1, id="1", action="kill", targets=("n2",), state="proven", detail="process 7 is gone"
    ),
    h.Converged(t_s=4.0, what="membership", after="1", seconds=1.5, waited_s=1.5, nodes=("n1",)),
    h.Converged(t_s=9.0, what="catalog", after="", waited_s=5.0, detail="n2 differs"),
    h.Catalog(t_s=9.0, node="n1", after="end", digest="ef" * 32, functions={"f": "v"}),
    h.Finding(t_s=9.5, invariant="acknowledged", subject="f", detail="it is gone"),
    h.Left(t_s=10.0, fds_before=9, fds_after=9, files=("socket",)),
)
REQUEST = h.Request(
    t_s=3.2,
    region="eu",
    node="n1",
    function="f",
    intended_s=3.0,
    sent_s=3.1,
    done_s=3.2,
    status=200,
)
SAMPLE = h.Sample(t_s=3.0, node="n1", state="ready", alive=("n1",), links={"n2": h.LinkCount()})
PLANNED = h.Planned(t_s=2.0, id="1", action="kill", targets=("n2",), settings={"x": 1.5, "y": True})


def written(directory: Path) -> Path:
    with recording(directory) as folder:
        write_timeline(directory, [PLANNED])
        for row in EVENTS:
            folder.event(row)
        folder.request(REQUEST)
        folder.sample(SAMPLE)
    return directory


def test_what_is_written_is_read(tmp_path: Path) -> None:
    history = read_history(written(tmp_path / "run"))
    assert history.run == RUN
    assert history.rows == EVENTS
    assert history.timeline == (PLANNED,)
    assert history.requests == (REQUEST,)
    assert history.samples == (SAMPLE,)
    assert [row.label for row in history.of(h.Deploy)] == ["1", "2"]
    assert history.end_s == 10.0


def test_events_are_on_disk_at_once_and_the_rest_when_flushed(tmp_path: Path) -> None:
    with recording(tmp_path) as folder:
        write_timeline(tmp_path, [])
        folder.event(RUN)
        folder.request(REQUEST)
        assert read_history(tmp_path).rows == (RUN,)
        folder.flush()
        assert read_history(tmp_path).requests == (REQUEST,)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ConfigError, match="is there already"), recording(tmp_path):
        pass


@given(cut=st.integers(min_value=1))
def test_a_run_that_was_killed_is_read_up_to_its_last_whole_row(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    directory = written(tmp_path_factory.mktemp("run") / "r")
    path = runfolder.path_of(directory, "history")
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    kept = data[: first + cut % (len(data) - first)]
    path.write_bytes(kept)
    assert read_history(directory).rows == EVENTS[: kept.count(b"\n")]


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("history", b"{}\n", "history.jsonl:12: no row of this file"),
        ("history", b'{"kind":"planned","t_s":1}\n', "history.jsonl:12: no row of this file"),
        ("requests", b"\xff\n", "requests.jsonl:2: no row of this file"),
        ("requests", b'{"kind":"request","t_s":-1}\n', "requests.jsonl:2: no row of this file"),
        ("samples", b'{"kind":"sample","t_s":1,"node":"n","state":"ready","x":1}\n', "field `x`"),
        ("timeline", b"[]\n", "timeline.jsonl:2: no row of this file"),
    ],
)
def test_damage_is_told_with_its_place(
    tmp_path: Path, name: runfolder.FileName, line: bytes, words: str
) -> None:
    with runfolder.path_of(written(tmp_path), name).open("ab") as file:
        file.write(line)
    with pytest.raises(RunDamaged, match=words):
        read_history(tmp_path)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runfolder, "ROWS_MAX", len(EVENTS))
    assert len(read_history(written(tmp_path)).rows) == len(EVENTS)
    monkeypatch.setattr(runfolder, "ROWS_MAX", len(EVENTS) - 1)
    with pytest.raises(RunDamaged, match="more than 10 rows"):
        read_history(tmp_path)
    monkeypatch.setattr(runfolder, "LINE_BYTES_MAX", 40)
    with pytest.raises(RunDamaged, match="longer than 40 bytes"):
        read_history(tmp_path)
    monkeypatch.setattr(runfolder, "FILE_BYTES_MAX", 100)
    with pytest.raises(RunDamaged, match="at most 100 are read"):
        read_history(tmp_path)


def test_what_is_missing_or_has_no_beginning(tmp_path: Path) -> None:
    with pytest.raises(RunDamaged, match=r"history\.jsonl: cannot be read"):
        read_history(tmp_path)
    runfolder.path_of(tmp_path, "history").write_bytes(runfolder.encode_rows(EVENTS[1:]))
    with pytest.raises(RunDamaged, match="does not begin with a run row"):
        read_history(tmp_path)


def test_verdicts(tmp_path: Path) -> None:
    assert runfolder.read_verdict(tmp_path) is None
    finding = h.Finding(t_s=1.0, invariant="bytes", subject="f", detail="they differ")
    verdict = h.Verdict(
        scenario="s",
        seed=7,
        verdict="invalid",
        why="1 finding",
        findings=(finding,),
        judged=(h.Judged(invariant="bytes", findings=1),),
        replay="edged chaos run s.toml",
    )
    runfolder.write_verdict(tmp_path, verdict)
    assert runfolder.read_verdict(tmp_path) == verdict
    (tmp_path / "verdict.json").write_bytes(b'{"verdict": "fine"}')
    with pytest.raises(RunDamaged, match="no verdict"):
        runfolder.read_verdict(tmp_path)


def test_rows_are_frozen_and_told_in_one_line() -> None:
    with pytest.raises(AttributeError):
        RUN.seed = 8  # type: ignore[misc]
    for row in EVENTS:
        assert told(row)
        assert "\n" not in told(row)
        assert msgspec.json.decode(msgspec.json.encode(row), type=h.HistoryRow) == row
