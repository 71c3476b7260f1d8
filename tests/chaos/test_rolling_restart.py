"""Nodes of different presets in one cluster, restarted one after the other under load: no request
is lost but those that a node refused while it was away, and no answer is wrong."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest
from process_cluster import Member, Members, cluster

FUNCTIONS = {f"f{index}": f"this is function {index}".encode() for index in range(3)}
CLIENTS = 3
PAUSE_S = 0.03
"""Between two requests of a client: load, and not all of the CPU."""


class Load:
    """Clients that go round nodes and functions, a connection per request."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(offset,)) for offset in range(CLIENTS)
        ]
        self.answered: dict[tuple[str, str], int] = {}
        self.wrong: list[object] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _client(self, offset: int) -> None:
        turn = offset
        while not self._ending.is_set():
            member = self._members.all[turn % len(self._members.all)]
            function = list(FUNCTIONS)[turn // len(self._members.all) % len(FUNCTIONS)]
            turn += 1
            self._ask(member, function)
            self._ending.wait(PAUSE_S)

    def _ask(self, member: Member, function: str) -> None:
        away = member.restarting
        try:
            got = member.invoke(function)
        except ConnectionRefusedError:
            if not (away or member.restarting):
                self.wrong.append((member.name, function, "refused while it was there"))
            return
        except (OSError, http.client.HTTPException) as error:
            self.wrong.append((member.name, function, repr(error)))
            return
        if got != (200, FUNCTIONS[function]):
            self.wrong.append((member.name, function, got))
        key = (member.name, function)
        self.answered[key] = self.answered.get(key, 0) + 1


def roll(base: Path, presets: list[str]) -> None:
    with cluster(base, presets) as members:
        members.deploy(FUNCTIONS)
        with Load(members) as load:
            for member in members.all:
                before = dict(load.answered)
                member.restart()
                for other in members.all:
                    if other is not member:
                        assert member.name not in [
                            row["name"] for row in other.events("member-down")
                        ], f"{other.name} took {member.name}'s leave for a death"
                served = sum(load.answered.values()) - sum(before.values())
                assert served > 0, f"nothing was served while {member.name} restarted"
                members.wait_whole()
        assert load.wrong == []
        expected = {(m.name, name) for m in members.all for name in FUNCTIONS}
        assert set(load.answered) == expected


def test_three_presets_in_one_cluster_survive_a_rolling_restart(tmp_path: Path) -> None:
    roll(tmp_path, ["local", "lan", "wan"])


@pytest.mark.long
def test_a_rolling_restart_of_ten_nodes_keeps_every_function_invocable(tmp_path: Path) -> None:
    roll(tmp_path, [("local", "lan", "wan")[index % 3] for index in range(10)])
