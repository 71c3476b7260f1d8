"""Public HTTP: routing and invocation. Calling conventions live in `abi`."""

from .app import Gateway, GatewayLimits

__all__ = ["Gateway", "GatewayLimits"]
