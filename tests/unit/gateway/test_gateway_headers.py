"""Server-Timing and request ids."""

from __future__ import annotations

import pytest

from edged.gateway.headers import NO_PHASES, accepted_request_id, server_timing
from edged.interfaces import Phases


def test_phases_in_order_in_milliseconds() -> None:
    phases = Phases(
        queue_s=0.0001, fetch_s=1.5, compile_s=2.0, load_s=0.003, instantiate_s=4e-06, run_s=0.005
    )
    assert server_timing(phases, 3.6, "optimised") == (
        b"queue;dur=0.100, fetch;dur=1500.000, compile;dur=2000.000, load;dur=3.000, "
        b"instantiate;dur=0.004, run;dur=5.000, total;dur=3600.000"
    )


def test_what_did_not_happen_is_left_out() -> None:
    assert server_timing(NO_PHASES, 0.25, None) == b"total;dur=250.000"
    assert server_timing(Phases(run_s=0.001), 0.25, "fast") == (
        b"run;dur=1.000, tier;desc=fast, total;dur=250.000"
    )


@pytest.mark.parametrize("value", [b"a", b"0-9._:Z", b"a" * 64])
def test_sane_request_ids(value: bytes) -> None:
    assert accepted_request_id(value) == value


@pytest.mark.parametrize("value", [b"", b".a", b"a b", b"a/b", b'"', b"a" * 65, b"a\n", b"\xe9"])
def test_other_request_ids(value: bytes) -> None:
    assert accepted_request_id(value) is None
