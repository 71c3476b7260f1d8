"""GET and PUT /v1/links: what this node does to what it sends, where it shapes at all."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edged.errors import BadRequest, ConfigError, SwitchedOff
from edged.interfaces import LinkOperator
from edged.links import DOCUMENT_BYTES_MAX, parse_document

from .bodies import read_body
from .responses import json_response

AT_MS_MAX: Final = 2**53 - 1


class LinksWhen(msgspec.Struct, frozen=True):
    """Of the body of PUT /v1/links, what is not the document's."""

    at_ms: Annotated[int, msgspec.Meta(ge=0, le=AT_MS_MAX)] | None = None


class LinksApi:
    def __init__(self, links: LinkOperator | None) -> None:
        """None: [links] is not enabled."""
        self._links = links

    def _there(self) -> LinkOperator:
        """Raises SwitchedOff."""
        if self._links is None:
            raise SwitchedOff(
                "this node shapes no links: set links.enabled = true in its configuration and "
                "restart it",
                key="links.enabled",
            )
        return self._links

    async def view(self, _request: Request) -> Response:
        return json_response(self._there().view())

    async def change(self, request: Request) -> Response:
        links = self._there()
        body = await read_body(request, limit_bytes=DOCUMENT_BYTES_MAX)
        try:
            when = msgspec.json.decode(body, type=LinksWhen)
            document = parse_document(body, where="request body", beside=("at_ms",))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BadRequest(f"request body: {error}") from error
        except ConfigError as error:
            raise BadRequest(str(error)) from error
        return json_response(links.schedule(document, when.at_ms))
