"""The one HTTP adapter: an ASGI 3 server that speaks strict HTTP/1.1 and nothing else.

Everything of hypercorn that edged uses is in this package. What stock hypercorn lets through, and
where the cover is, stands in tests/integration/http/test_stock_holes.py.
"""

from .answer import AnswerHead, AnswerReader
from .exchange import EXTENSION, DirectExchange
from .limits import HttpHooks, HttpLimits, HttpStatistics
from .response import HOP_BY_HOP, RETRY_AFTER_S, problem_response
from .server import AsgiApp, HttpServer, bind_tcp, serve
from .wire import ClientGone

__all__ = [
    "EXTENSION",
    "HOP_BY_HOP",
    "RETRY_AFTER_S",
    "AnswerHead",
    "AnswerReader",
    "AsgiApp",
    "ClientGone",
    "DirectExchange",
    "HttpHooks",
    "HttpLimits",
    "HttpServer",
    "HttpStatistics",
    "bind_tcp",
    "problem_response",
    "serve",
]
