"""One stream over a shaped link, in place of its socket: what it takes leaves when it is due.

Beneath TLS, so that what waits is ciphertext and nobody above knows of it. Until the peer and its
link are known, and while that link is clear and nothing waits, all goes straight to the socket.
Bounds: the window of protocol.shaping.Flow, which what the kernel does not take counts against.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import trio

from protocol.ids import NodeId
from protocol.member import Address
from protocol.shaping import WINDOW_BYTES, Flow

from .departures import Departures
from .lanes import Lane

SCARCE_WINDOW_BYTES: Final = 64 * 1024
"""Of each stream once all of them hold what they may."""
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of all streams of a node: on their way, or waiting for a link that is cut."""
BUSY_S: Final = 0.01
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class StreamOwner(Protocol):
    """The shaper, as its streams see it."""

    held_bytes: int

    @property
    def departures(self) -> Departures: ...

    def find(self, *, peer: NodeId | None, address: Address | None) -> Lane | None: ...

    def start_drain(self, drain: ShapedStream) -> None: ...

    def closing(self, stream: ShapedStream) -> None:
        """Its socket is still to be closed, when all has left."""
        ...

    def ended(self, stream: ShapedStream) -> None: ...

    async def come_back(self, lane: Lane) -> None: ...


class ShapedStream:
    def __init__(
        self,
        owner: StreamOwner,
        sock: socket.socket,
        *,
        peer: NodeId | None,
        address: Address | None,
        reset: Callable[[], None],
    ) -> None:
        """Takes over closing `sock`. `reset` is called when the link resets the stream: it is to
        close it."""
        self._owner = owner
        self._socket = sock
        self._peer = peer
        self._address = address
        self._reset = reset
        self._flow: Flow | None = None
        self._lane: Lane | None = None
        self._due: deque[memoryview] = deque()
        """What has arrived, as far as links go, and the kernel does not take."""
        self._due_bytes = 0
        self._under_way = 0
        self._draining = False
        self._closing = False
        self._broken: OSError | None = None
        self._gone = False
        self._interrupted = False
        self._news = trio.Event()

    # ------------------------------------------------------------ instead of the socket's
    def send(self, data: memoryview, flags: int = 0) -> int:
        """How much of it was taken. `flags` are for the kernel, where no link comes in between.
        Raises BlockingIOError: nothing now; OSError."""
        lane = self._find_lane()
        if self._broken is not None:
            raise self._broken
        if lane is None or self._flow is None or self._is_straight(lane):
            sent = self._socket.send(data, flags)
            if lane is not None:
                lane.counts.stream_bytes += sent
            return sent
        now, taken = trio.current_time(), 0
        while taken < len(data):
            room = self._flow.room(now, lane.back.link, self._window())
            if not room:
                break
            piece = data[taken : taken + room]
            arrival = self._flow.send(len(piece), now, lane.back.link)
            self._under_way += len(piece)
            self._owner.held_bytes += len(piece)
            self._owner.departures.at(arrival, partial(self._arrive, piece))
            taken += len(piece)
        if not taken:
            raise BlockingIOError
        lane.counts.stream_bytes += taken
        lane.counts.stream_bytes_delayed += taken
        return taken

    async def wait_writable(self) -> None:
        """Until `send` may take something. Raises trio.ClosedResourceError: interrupted."""
        lane = self._lane
        self._interrupted = False
        if self._broken is not None:
            await trio.lowlevel.checkpoint()
            return
        if lane is None or self._flow is None or self._is_straight(lane):
            await trio.lowlevel.wait_writable(self._socket)
            return
        window = self._window()
        # Without a window it is the kernel that has to take something first.
        at = self._flow.room_at(lane.back.link, window) if window > 0 else math.inf
        self._news = trio.Event()
        with trio.move_on_at(at):
            await self._news.wait()
        if self._interrupted:
            raise trio.ClosedResourceError("interrupted")

    def interrupt(self) -> None:
        """Who waits to send does not wait any longer."""
        self._interrupted = True
        self._news.set()

    def close(self) -> None:
        """Now, or when all that was sent has arrived and the end of the stream too."""
        lane = self._lane
        if self._broken or lane is None or self._flow is None or self._is_straight(lane):
            self._end()
        elif not self._closing:
            self._closing = True
            self._owner.closing(self)
            self._send_end()

    # ------------------------------------------------------------ for who makes connections
    def identify(self, peer: NodeId) -> None:
        """The handshake is over. Raises ConnectionResetError."""
        self._peer = peer
        self._find_lane()
        if self._broken is not None:
            raise self._broken

    async def await_way_back(self) -> None:
        """Of what the peer sends before it knows who calls. Raises ConnectionResetError."""
        lane = self._find_lane()
        if lane is not None:
            await self._owner.come_back(lane)

    # ------------------------------------------------------------ for the shaper
    def changed(self) -> None:
        """The link has."""
        lane = self._lane
        if lane is None or self._flow is None:
            return
        self._flow.pipe = lane.pipe
        if lane.is_reset:
            self._break()
            return
        self._news.set()
        if self._closing:
            self._send_end()

    def end_now(self) -> None:
        """The shaper ends, or there are too many that are still to close."""
        self._end()

    # ------------------------------------------------------------ inside
    def _find_lane(self) -> Lane | None:
        if self._lane is None:
            self._lane = self._owner.find(peer=self._peer, address=self._address)
            if self._lane is not None:
                self._lane.streams[self] = None
                self._flow = Flow(self._lane.pipe)
                if self._lane.is_reset:
                    self._break()
        return self._lane

    def _is_straight(self, lane: Lane) -> bool:
        return lane.is_clear and not (self._under_way or self._due)

    def _window(self) -> int:
        scarce = self._owner.held_bytes > HELD_BYTES_MAX
        return (SCARCE_WINDOW_BYTES if scarce else WINDOW_BYTES) - self._due_bytes

    def _arrive(self, piece: memoryview) -> None:
        self._under_way -= len(piece)
        if self._gone:
            return
        self._due.append(piece)
        self._due_bytes += len(piece)
        if not self._draining and not self._push():
            self._draining = True
            self._owner.start_drain(self)
        self._news.set()

    def _push(self) -> bool:
        """What the kernel takes; whether that was all."""
        while self._due:
            try:
                sent = self._socket.send(self._due[0])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                self._fail(error)
                return True
            self._due_bytes -= sent
            self._owner.held_bytes -= sent
            if sent < len(self._due[0]):
                self._due[0] = self._due[0][sent:]
            else:
                self._due.popleft()
        return True

    async def drain(self) -> None:
        """The rest, as the kernel takes it."""
        try:
            while not self._gone and not self._push():
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.BusyResourceError:  # whoever sent straight before waits there too
                    await trio.sleep(BUSY_S)
                except trio.ClosedResourceError:
                    continue  # gone; or only who reads or sends is not to wait any longer
                self._news.set()
        finally:
            self._draining = False
        if self._closing and not self._under_way:
            self._end()

    def _send_end(self) -> None:
        if self._flow is not None and self._flow.pipe.link.cut is None:
            arrival = self._flow.end(trio.current_time())
            self._owner.departures.at(arrival, self._arrive_end)

    def _arrive_end(self) -> None:
        if not self._gone and not self._due and not self._under_way:
            self._end()

    def _fail(self, error: OSError) -> None:
        """The peer is gone: whoever sends or reads next finds out."""
        self._broken = error
        self._owner.held_bytes -= self._due_bytes
        self._due.clear()
        self._due_bytes = 0
        if self._closing:
            self._end()

    def _break(self) -> None:
        if self._broken is None and not self._gone:
            self._broken = ConnectionResetError("the link resets it")
            if self._lane is not None:
                self._lane.counts.streams_reset += 1
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._reset()
            self._news.set()

    def _end(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._owner.held_bytes -= self._under_way + self._due_bytes
        self._due.clear()
        self._due_bytes = 0
        if self._lane is not None:
            self._lane.streams.pop(self, None)
        self._owner.ended(self)
        self._news.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
