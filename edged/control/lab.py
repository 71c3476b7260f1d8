"""GET and PUT /v1/lab: the laboratory's switches, where this node has them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edged.errors import SwitchedOff
from edged.interfaces import Lab, LabWish

from .bodies import read_json
from .responses import json_response


class LabApi:
    def __init__(self, lab: Lab | None) -> None:
        """None: [lab] is not enabled."""
        self._lab = lab

    def _there(self) -> Lab:
        """Raises SwitchedOff."""
        if self._lab is None:
            raise SwitchedOff(
                "this node has no lab switches: set lab.enabled = true in its configuration "
                "and restart it",
                key="lab.enabled",
            )
        return self._lab

    async def view(self, _request: Request) -> Response:
        return json_response(self._there().view())

    async def set(self, request: Request) -> Response:
        lab = self._there()
        return json_response(lab.set(await read_json(request, LabWish)))
