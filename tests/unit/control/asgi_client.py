"""Speaks ASGI to an application from a trio test: bodies in any pieces, and leaving at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import trio


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, app: Any, token: str = "") -> None:
        self.app = app
        self.token = token

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes] = b"",
        query: str = "",
        headers: Sequence[tuple[str, str]] = (),
        cut_off: bool = False,
    ) -> Answer:
        """With `cut_off` the client leaves after the last piece instead of ending its body."""
        pieces = [body] if isinstance(body, bytes) else list(body)
        answer = Answer()
        send, receive = trio.open_memory_channel[dict[str, Any]](len(pieces) + 1)
        for index, piece in enumerate(pieces):
            more = cut_off or index + 1 < len(pieces)
            send.send_nowait({"type": "http.request", "body": piece, "more_body": more})
        if cut_off:
            send.send_nowait({"type": "http.disconnect"})
        with trio.fail_after(10):
            await self.app(
                self.scope(method, path, query, headers), receive.receive, sender(answer)
            )
        send.close()
        receive.close()
        return answer

    def scope(
        self, method: str, path: str, query: str = "", headers: Sequence[tuple[str, str]] = ()
    ) -> dict[str, Any]:
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        if self.token:
            raw.append((b"authorization", f"Bearer {self.token}".encode()))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }


def sender(answer: Answer) -> Any:
    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message.get("headers", [])}
        else:
            answer.body += message.get("body", b"")
            answer.complete = not message.get("more_body", False)

    return send
