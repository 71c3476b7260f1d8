from __future__ import annotations

import os

from edged.runtime import tmpdir


def test_made_private(tmp_path):
    path = tmpdir.make(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path != tmpdir.make(tmp_path)


def test_removes_odd_modes_links_and_names(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    path = tmpdir.make(tmp_path)
    (path / "link").symlink_to(outside)
    (path / "dangling").symlink_to("nowhere")
    os.mkfifo(path / "fifo")
    (path / "a" / "b" / "c").mkdir(parents=True)
    (path / "a" / "file").write_text("x")
    (path / "a" / "file").chmod(0)
    (path / "a" / "b" / "c").chmod(0)
    (path / "a" / "b").chmod(0o500)
    (path / "a").chmod(0o100)
    (path / "-rf").write_text("")
    os.mkdir(os.fsencode(path) + b"/\xff\n")
    path.chmod(0)
    tmpdir.remove(path)
    assert not path.exists()
    assert (outside / "kept").read_text() == "kept"


def test_removes_a_tree_deeper_than_path_max(tmp_path):
    path = tmpdir.make(tmp_path)
    here = os.open(path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("x" * 100, dir_fd=here)
        below = os.open("x" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    tmpdir.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_removes_a_wide_tree(tmp_path):
    path = tmpdir.make(tmp_path)
    for outer in range(20):
        for inner in range(20):
            (path / f"{outer}" / f"{inner}").mkdir(parents=True)
            (path / f"{outer}" / f"{inner}" / "file").write_text("x")
    tmpdir.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_only_its_own(tmp_path):
    (tmp_path / "other").mkdir()
    tmpdir.make(tmp_path)
    tmpdir.make(tmp_path)
    assert tmpdir.sweep(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert tmpdir.sweep(tmp_path / "new" / "deep") == 0
