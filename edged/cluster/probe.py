"""Asks a node on this machine how it is. A node that does not answer is an answer too."""

from __future__ import annotations

import http.client
from typing import Final, Literal

import msgspec

PROBE_TIMEOUT_S: Final = 1.0
ASK_TIMEOUT_S: Final = 5.0
"""For what changes a node; on a busy machine one in fifty took more than a second."""
BODY_BYTES_MAX: Final = 4 * 1024 * 1024

Health = Literal["ready", "starting", "draining", "unreachable"]


class _Member(msgspec.Struct, frozen=True):
    name: str
    state: str


class _Members(msgspec.Struct, frozen=True):
    members: tuple[_Member, ...]


class _State(msgspec.Struct, frozen=True):
    state: str = ""


# Made here, not at each use: msgspec 0.22 crashes where threads are the first to use a type.
_decode_members: Final = msgspec.json.Decoder(_Members).decode
_decode_state: Final = msgspec.json.Decoder(_State).decode


def get(address: str, path: str, *, token: str = "") -> tuple[int, bytes] | None:
    """(status, body), or None if nothing that speaks HTTP answered in time."""
    return ask("GET", address, path, token=token, timeout_s=PROBE_TIMEOUT_S)


def ask(
    method: str,
    address: str,
    path: str,
    *,
    token: str = "",
    body: bytes | None = None,
    timeout_s: float = ASK_TIMEOUT_S,
    bytes_max: int = BODY_BYTES_MAX,
) -> tuple[int, bytes] | None:
    """As `get`; of the answer's body no more than `bytes_max`."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(bytes_max)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def health(address: str) -> Health:
    """Of the control API at `address`."""
    answer = get(address, "/v1/health")
    if answer is None:
        return "unreachable"
    status, body = answer
    if status == 200:
        return "ready"
    try:
        state = _decode_state(body).state
    except msgspec.MsgspecError:
        return "unreachable"
    return "draining" if state == "draining" else "starting"


def alive_members(address: str, token: str) -> frozenset[str] | None:
    """Names of the members the node believes alive; None if it does not say."""
    answer = get(address, "/v1/members", token=token)
    if answer is None or answer[0] != 200:
        return None
    try:
        members = _decode_members(answer[1]).members
    except msgspec.MsgspecError:
        return None
    return frozenset(member.name for member in members if member.state == "alive")
