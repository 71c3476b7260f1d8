"""Whoever makes or takes a connection to a peer hands it to the shaper, where there is one."""

from __future__ import annotations

import re
from pathlib import Path

from edged import network

MAKERS = "dial|dial_gateway|accept|shake|TlsStream|StreamProber|_attempt"
CALL = re.compile(
    rf"(?<!def )(?<!class )(?<![.\w])(?:{MAKERS})(?:\(|, address)[^()]*(?:\([^()]*\)[^()]*)*\)"
)
DIRECTORY = Path(network.__file__).parent


def test_no_connection_goes_past_the_shaper() -> None:
    calls = [
        (path.name, call)
        for path in sorted(DIRECTORY.glob("*.py"))
        for call in CALL.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(calls) >= 9, "the makers have other names now"
    past = [call for call in calls if "shape" not in call[1]]
    assert not past, f"not shaped: {past}"
