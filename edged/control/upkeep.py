"""The endpoints about blobs and transfers: parse the input, ask the node, encode the answer."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from edged.errors import BadRequest
from edged.interfaces import Upkeep
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, parse_digest

from .bodies import digest_field
from .download import Download
from .queries import flag, number
from .responses import json_response

BLOBS_LIMIT: Final = 1000
BLOBS_LIMIT_MAX: Final = 4096
GRACE_S_MAX: Final = 366 * 86_400


class UpkeepApi:
    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def blobs(self, request: Request) -> Response:
        after = request.query_params.get("after", "")
        if after:
            after = digest_field(after, name="after")
        limit = number(request, "limit", BLOBS_LIMIT_MAX, least=1)
        return json_response(
            self._upkeep.blobs(after=after, limit=BLOBS_LIMIT if limit is None else limit)
        )

    async def blob(self, request: Request) -> Download:
        digest = _digest(request)
        kind, opened = await self._upkeep.open_blob(digest)
        return Download(digest, kind, opened)

    async def transfers(self, _request: Request) -> Response:
        return json_response(self._upkeep.transfers())

    async def collect(self, request: Request) -> Response:
        grace_s = number(request, "grace_s", GRACE_S_MAX)
        view = await self._upkeep.collect(dry_run=flag(request, "dry_run"), grace_s=grace_s)
        return json_response(view)

    async def verification(self, _request: Request) -> Response:
        return json_response(self._upkeep.verification())

    async def verify(self, _request: Request) -> Response:
        return json_response(self._upkeep.verify(), status=202)

    async def pins(self, _request: Request) -> Response:
        return json_response(self._upkeep.pins())

    async def pin(self, request: Request) -> Response:
        change = await self._upkeep.pin(request.path_params["target"])
        return json_response(change, status=201 if change.changed else 200)

    async def unpin(self, request: Request) -> Response:
        return json_response(await self._upkeep.unpin(request.path_params["target"]))


def _digest(request: Request) -> Digest:
    """Raises BadRequest."""
    text = request.path_params["digest"]
    try:
        return parse_digest(text)
    except RemoteProtocolError as error:
        raise BadRequest(f"blob {text[:80]!r}: write all 64 lower-case hex digits") from error
