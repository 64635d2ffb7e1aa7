"""uvicorn's HTTP/1.1 protocol with bounds on what a connection may cost: their number, and time without a request.

uvicorn closes a connection that idles after an answer. Here one is also closed that never finishes its first
request's headers, and one that goes on sending a body nobody reads; and beyond a number of them, the next is told so.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(max_connections: int, receive_timeout_s: float) -> type[H11Protocol]:
    """A protocol class for uvicorn's Config(http=...)."""

    class BoundedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(503, "too many connections")
            else:
                self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Whatever is under way must be complete in time: headers, or a body, read by somebody or not.
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and self.conn.our_state is not h11.SEND_BODY:
                self._expect()
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

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

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "not an HTTP request, or headers that are too large")

        def _refuse(self, status: int, message: str) -> None:
            kind = "invalid_request_error" if status < 500 else "server_error"
            error = {"error": {"message": message, "type": kind, "param": None, "code": None}}
            body = json.dumps(error).encode()
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status, len(body), body)
            )
            self.transport.close()

    return BoundedProtocol
