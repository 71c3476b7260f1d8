"""Calling conventions: how a request becomes an invocation and its result a response.

One file per convention, one entry here, one interface (base.Abi).
"""

from __future__ import annotations

from typing import Final

import protocol.function

from .base import Abi, HttpRequest, HttpResponse
from .cgi import Cgi
from .export import Export
from .raw import Raw

REGISTRY: Final[dict[protocol.function.Abi, Abi]] = {
    "raw": Raw(),
    "cgi": Cgi(),
    "export": Export(),
}

__all__ = ["REGISTRY", "Abi", "HttpRequest", "HttpResponse"]
