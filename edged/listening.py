"""What a node listens on: bound before anything is announced, told as addresses."""

from __future__ import annotations

import contextlib
import socket

import msgspec

from .config import Config, parse_address
from .http import bind_tcp
from .network import GossipSockets, bind_gossip
from .views import address_text


class Addresses(msgspec.Struct, frozen=True):
    """Where a running node listens."""

    gateway_url: str
    control_url: str
    gossip_address: str


class Sockets:
    """Everything the node listens on."""

    def __init__(
        self,
        config: Config,
        gossip: GossipSockets,
        gateway: socket.socket | None,
        control: socket.socket,
    ) -> None:
        advertise = config.gossip.advertise
        self.gossip = gossip
        self.gateway = gateway
        self.control = control
        self.gossip_address = (
            parse_address(advertise, key="gossip.advertise") if advertise else gossip.address
        )
        self.addresses = Addresses(
            gateway_url=(config.gateway.public_url or _url(gateway)) if gateway else "",
            control_url=_url(control),
            gossip_address=address_text(self.gossip_address),
        )

    def close(self) -> None:
        """What is being served already is closed by whoever serves it; twice does no harm."""
        for listener in self.gossip.listeners:
            listener.socket.close()
        self.gossip.close()
        self.control.close()
        if self.gateway is not None:
            self.gateway.close()


def _url(listening: socket.socket) -> str:
    return f"http://{address_text(listening.getsockname()[:2])}"


async def bind_all(config: Config, *, serve: bool) -> Sockets:
    """A node without the role `serve` has no gateway.

    Raises ConfigError naming the address that is taken or wrong; then nothing stays bound."""
    with contextlib.ExitStack() as bound:

        def bind(text: str, key: str) -> socket.socket:
            return bound.enter_context(bind_tcp(*parse_address(text, key=key), key=key))

        gateway = bind(config.gateway.bind, "gateway.bind") if serve else None
        control = bind(config.control.bind, "control.bind")
        gossip = await bind_gossip(*parse_address(config.gossip.bind, key="gossip.bind"))
        bound.pop_all()
    return Sockets(config, gossip, gateway, control)
