"""A builder that cannot be poisoned: the node is started again, and the fault is unproven."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fake_field import FakeField

from edged.lab.chaos.faults import Unproven, fault_of
from edged.lab.history import Planned


class OnDisk(FakeField):
    def __init__(self, root: Path) -> None:
        super().__init__(["n1", "n2"])
        self._root = root

    def directory(self, name: str) -> Path:
        return self._root / name


async def test_what_was_not_planted_is_unproven(tmp_path: Path) -> None:
    field = OnDisk(tmp_path)
    settings = {"module": "ab" * 32, "code_of": "cd" * 32, "signed": True}
    planned = Planned(t_s=1.0, id="1", action="poison", targets=("n2",), settings=settings)
    fault = fault_of(field, planned)
    with (
        trio.fail_after(60),
        pytest.raises(Unproven, match=r"n2: nothing was planted: .*node.toml"),
    ):
        await fault.begin()
    assert [(act, name) for _, act, name in field.log] == [("kill", "n2"), ("restart", "n2")]
    assert field.machines["n2"].runs
