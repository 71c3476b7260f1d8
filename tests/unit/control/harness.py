"""A control API over an operator in memory, and how to judge its problems."""

from __future__ import annotations

import io
import json

from starlette.types import ASGIApp

from edged.control import make_control_app
from edged.eventlog import EventLog
from edged.interfaces import Lab, LinkOperator
from edged.telemetry import Metrics, make_log
from tests.unit.control.asgi_client import Answer, Client
from tests.unit.control.memory_builders import MemoryBuilders
from tests.unit.control.memory_keys import MemoryKeys
from tests.unit.control.memory_operator import MAGIC, MemoryOperator
from tests.unit.control.memory_upkeep import MemoryUpkeep

TOKEN = "correct-horse"
WASM = MAGIC + b"one"


class Node:
    def __init__(self) -> None:
        self.operator = MemoryOperator()
        self.events = EventLog(node="n1", generation=1)
        self.keys = MemoryKeys()
        self.upkeep = MemoryUpkeep()
        self.builders = MemoryBuilders()
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.app = self.make_app()
        self.client = Client(self.app, TOKEN)

    def make_app(self, *, lab: Lab | None = None, links: LinkOperator | None = None) -> ASGIApp:
        return make_control_app(
            self.operator,
            explainer=self.operator,
            events=self.events,
            keys=self.keys.service,
            upkeep=self.upkeep,
            builders=self.builders.service,
            lab=lab,
            links=links,
            token=TOKEN,
            log=make_log("n1", level="debug", stream=self.log),
            metrics=self.metrics,
        )

    def with_links(self, links: LinkOperator) -> Client:
        return Client(self.make_app(links=links), TOKEN)

    def with_lab(self, lab: Lab) -> Client:
        return Client(self.make_app(lab=lab), TOKEN)

    async def upload(self, data: bytes = WASM) -> str:
        answer = await self.client.request("PUT", "/v1/modules", body=data)
        return answer.json()["module"]

    async def deploy(self, name: str, **request: object) -> Answer:
        body = json.dumps(request).encode()
        return await self.client.request("PUT", f"/v1/functions/{name}", body=body)

    def logged(self) -> list[dict]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def check_problem(answer: Answer, status: int, code: str) -> dict:
    problem = answer.json()
    assert answer.status == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"].rpartition(":")[2] == code
    assert problem["title"]
    return problem
