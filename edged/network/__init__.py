"""Everything between nodes: sealed gossip datagrams, mutual-TLS streams, fetching blobs."""

from .attestations import ask_attestations
from .exchange import ExchangeService
from .gateways import GatewayPool, GatewayPoolLimits
from .gossip import GossipService
from .lines import Line
from .server import StreamLimits, StreamServer
from .shaping import Shaper
from .sockets import GossipSockets, bind_gossip
from .streams import Connection, dial

__all__ = [
    "Connection",
    "ExchangeService",
    "GatewayPool",
    "GatewayPoolLimits",
    "GossipService",
    "GossipSockets",
    "Line",
    "Shaper",
    "StreamLimits",
    "StreamServer",
    "ask_attestations",
    "bind_gossip",
    "dial",
]
