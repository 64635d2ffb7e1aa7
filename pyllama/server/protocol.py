"""uvicorn's HTTP/1.1 protocol with bounds on what a connection may cost: their number, time without a request, and
time without reading the answer.

uvicorn closes a connection that idles after an answer. Here one is also closed that never finishes its first
request's headers, one that goes on sending a body nobody reads, and one whose client does not read what was sent to
it. Beyond a number of them a new one takes the place of the one that has idled longest, or is told that there is none.
"""

import asyncio
import json
import socket
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyllama.server.errors import ApiError, openai_body

# Of what waits to be sent, so much must get on its way each time: a byte a minute is as good as nothing.
MIN_SENT_NBYTES = 4096
# Who came just now may be about to ask.
MIN_IDLE_S = 1.0
# Probes of a connection on which nothing moves, so that a client without power or network is noticed.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def bounded_protocol(max_connections: int, receive_timeout_s: float, send_timeout_s: float) -> type[H11Protocol]:
    """A protocol class for uvicorn's Config(http=...).

    max_connections    open at once
    receive_timeout_s  until a request's headers, and then its body, are here
    send_timeout_s     in which a client must have taken MIN_SENT_NBYTES of what waits for it, or all
    """

    class BoundedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None
        _unsent = 0
        _idle_since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # Whatever the system's buffers do not take pauses the writer: what is unsent is one piece of an answer,
            # and a client that does not read is known by it (pause_writing).
            transport.set_write_buffer_limits(high=0)
            _watch_the_peer(transport.get_extra_info("socket"), send_timeout_s)
            self._idle_since = time.monotonic()
            if len(self.connections) > max_connections and not self._make_room():
                self._refuse(503, "too many connections")
            else:
                self._expect()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():  # refused: nobody looks at what still comes
                return
            super().data_received(data)
            # Whatever is under way must be complete in time: headers, or a body, read by somebody or not.
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and self.conn.our_state is not h11.SEND_BODY:
                self._expect()
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def on_response_complete(self) -> None:
            self._idle_since = time.monotonic()
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the next request has begun
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._timer, self._stall):
                if timer is not None:
                    timer.cancel()
            # After an error, uvicorn leaves its timer behind, and with it the connection until it rings.
            self._unset_keepalive_if_required()
            super().connection_lost(exc)

        # --- those that idle ---

        def _idles(self) -> bool:
            busy = self.flow.write_paused or self.transport.is_closing()
            busy = busy or time.monotonic() < self._idle_since + MIN_IDLE_S
            return not busy and (self.cycle is None or self.cycle.response_complete)

        def _make_room(self) -> bool:
            """Close the connection that has idled longest; False if all are at work."""
            others = [c for c in self.connections if c is not self and isinstance(c, BoundedProtocol) and c._idles()]
            if not others:
                return False
            min(others, key=lambda connection: connection._idle_since).transport.abort()
            return True

        # --- those that send too slowly ---

        def _expect(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(receive_timeout_s, self._too_slow)

        def _too_slow(self) -> None:
            self._timer = None
            if self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE and self.cycle is None:
                self._refuse(408, f"no request within {receive_timeout_s:g} s")
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.close()
            # Else a route is reading the body, and keeps the time itself (body.py).

        # --- those that read too slowly ---

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stall is None:
                self._unsent = self.transport.get_write_buffer_size()
                self._stall = self.loop.call_later(send_timeout_s, self._not_read)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None

        def _not_read(self) -> None:
            """Nothing is added while the writer is paused, so what has become less was sent."""
            unsent = self.transport.get_write_buffer_size()
            if unsent > self._unsent - MIN_SENT_NBYTES:
                self._stall = None
                self.transport.abort()
            else:
                self._unsent = unsent
                self._stall = self.loop.call_later(send_timeout_s, self._not_read)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "not an HTTP request, or headers that are too large")

        def _refuse(self, status: int, message: str) -> None:
            body = json.dumps(openai_body(ApiError(status, message))).encode()
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, len(body), body)
            )
            self.transport.close()

    return BoundedProtocol


def _watch_the_peer(connection: socket.socket | None, send_timeout_s: float) -> None:
    """Let the system end a connection whose other end is gone without a word, also one we have closed."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values = {**_KEEP_ALIVE, "TCP_USER_TIMEOUT": int(2000 * send_timeout_s)}
    for name, value in values.items():
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
