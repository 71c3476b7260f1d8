"""A random node is killed every two seconds, and started again at once, under deploys and
invocations on all: what was acknowledged is served by every node at the end, no answer is wrong,
and no request fails but on the node that was killed.

What is promised holds while fewer than `replicas` holders are away. A killed node is away until the
others see it alive again, one to two seconds on a quiet machine: one or two are away at any time.
Where starting takes longer, a kill waits until it would not be the third, and is made up for as
soon as it may be: none is left out. A deploy through a node that reaches fewer than it needs says
so; of such a function only the end is promised.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from process_cluster import WAIT_S, Member, Members, cluster, says, wait_until

REPLICAS = 3
AWAY_MAX = REPLICAS - 1
KILL_EVERY_S = 2.0
DEPLOY_EVERY_S = 1.0
ASK_EVERY_S = 0.05
CLIENTS = 3
LOOK_EVERY_S = 0.25
START_MAX_S = 3 * WAIT_S
"""A machine that others use up may take a minute to start a process."""
SPREAD_S = 3.0
"""After it was acknowledged, a function is known everywhere; until then it may be 404 elsewhere."""


class Storm:
    def __init__(self, members: Members, seed: int) -> None:
        self._members = members
        self._rng = random.Random(seed)
        self._ending = threading.Event()
        self._kills: Counter[str] = Counter()
        self._away: dict[str, None] = {}
        self.late = 0
        self.acknowledged: dict[str, tuple[bytes, float]] = {}
        self.on_fewer: dict[str, bytes] = {}
        self.answered = self.refused_deploys = 0
        self.excused: Counter[str] = Counter()
        self.wrong: list[object] = []
        self.broken: list[BaseException] = []
        jobs = [self._kill, self._deploy, *[self._ask] * CLIENTS]
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]

    def rage(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        self._ending.wait(seconds)
        self._ending.set()
        for thread in self._threads:
            thread.join()
        assert self.broken == []

    @property
    def kills(self) -> int:
        return self._kills.total()

    def _run(self, job: object) -> None:
        try:
            job()  # type: ignore[operator]
        except BaseException as error:
            self.broken.append(error)
            self._ending.set()

    # ------------------------------------------------------------ what is done to the cluster
    def _kill(self) -> None:
        revivals: list[threading.Thread] = []
        due_s = time.monotonic()
        while not self._ending.wait(max(due_s + KILL_EVERY_S - time.monotonic(), 0)):
            due_s += KILL_EVERY_S
            self.late += len(self._away) >= AWAY_MAX
            while len(self._away) >= AWAY_MAX and not self._ending.wait(0.02):
                pass
            victim = self._rng.choice([one for one in self._members.all if not one.restarting])
            self._away[victim.name] = None
            self._kills[victim.name] += 1
            victim.kill()
            revival = threading.Thread(target=self._run, args=(lambda m=victim: self._revive(m),))
            revival.start()
            revivals.append(revival)
        for revival in revivals:
            revival.join()

    def _revive(self, member: Member) -> None:
        member.spawn()
        wait_until(lambda: self._is_seen(member), START_MAX_S, every_s=LOOK_EVERY_S)
        del self._away[member.name]
        member.wait_ready()  # its gateway opens when it has caught up
        member.restarting = False

    def _is_seen(self, member: Member) -> bool:
        """By all that are there."""
        there = [one for one in self._members.all if one.name not in self._away]
        try:
            return all(member.name in one.alive() for one in there)
        except (OSError, http.client.HTTPException):
            return False  # killed meanwhile

    def _deploy(self) -> None:
        rng = random.Random(1)
        number = 0
        while not self._ending.wait(DEPLOY_EVERY_S):
            number += 1
            member = rng.choice(self._members.all)
            name, text = f"f{number}", f"function {number} of {member.name}"
            try:
                stored = member.ask("PUT", "/v1/modules", says(text))
                body = msgspec.json.encode({"module": stored["module"]})
                done = member.ask("PUT", f"/v1/functions/{name}", body)
            except (OSError, http.client.HTTPException, AssertionError):
                self.refused_deploys += 1
                continue
            if len(done["replicas"]) == done["wanted"] == REPLICAS:
                self.acknowledged[name] = (text.encode(), time.monotonic())
            else:
                assert done["wanted"] == REPLICAS, done
                self.on_fewer[name] = text.encode()

    # ------------------------------------------------------------ what clients see
    def _ask(self) -> None:
        rng = random.Random(threading.get_ident())
        while not self._ending.wait(ASK_EVERY_S):
            spread = time.monotonic() - SPREAD_S
            known = [name for name, (_, at) in list(self.acknowledged.items()) if at < spread]
            if known:
                self._ask_one(rng.choice(self._members.all), rng.choice(known))

    def _ask_one(self, member: Member, name: str) -> None:
        away, kills = member.restarting, self._kills[member.name]
        try:
            status, body = member.invoke(name)
        except (OSError, http.client.HTTPException) as error:
            if away or member.restarting or self._kills[member.name] != kills:
                self.excused[type(error).__name__] += 1
            else:
                self.wrong.append((member.name, name, repr(error)))
            return
        self.answered += 1
        if (status, body) != (200, self.acknowledged[name][0]):
            self.wrong.append((member.name, name, status, body[:300]))


def storm(base: Path, *, nodes: int, seconds: float, seed: int) -> None:
    with cluster(base, ["lan"] * nodes, regions=("eu", "us", "ap")) as members:
        raging = Storm(members, seed)
        raging.rage(seconds)
        report = {
            "kills": raging.kills,
            "late kills": raging.late,
            "acknowledged": len(raging.acknowledged),
            "acknowledged on fewer": len(raging.on_fewer),
            "refused deploys": raging.refused_deploys,
            "answered": raging.answered,
            "failed on a killed node": dict(raging.excused),
        }
        print(json.dumps(report))
        assert raging.wrong == []
        assert raging.kills >= seconds / 10
        assert raging.acknowledged
        assert raging.answered >= 2 * seconds
        members.wait_whole()
        texts = {name: text for name, (text, _) in raging.acknowledged.items()} | raging.on_fewer
        for member in members.all:
            for name, text in texts.items():
                wait_until(lambda m=member, n=name, t=text: m.invoke(n) == (200, t), WAIT_S)


@pytest.mark.slow
def test_some_seconds_of_kills(tmp_path: Path) -> None:
    storm(tmp_path, nodes=5, seconds=12, seed=1)


@pytest.mark.long
def test_nine_nodes_and_two_minutes_of_kills(tmp_path: Path) -> None:
    storm(tmp_path, nodes=9, seconds=120, seed=7)
