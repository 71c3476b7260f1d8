"""The operator's HTTP API. `make_control_app` is all the rest of edged needs of it."""

from .app import make_control_app

__all__ = ["make_control_app"]
