"""Public HTTP: routing and invocation. Calling conventions live in `abi`."""

from .app import Gateway, GatewayLimits
from .forward import Forwarder
from .passage import HOPS_MAX, REFUSED

__all__ = ["HOPS_MAX", "REFUSED", "Forwarder", "Gateway", "GatewayLimits"]
