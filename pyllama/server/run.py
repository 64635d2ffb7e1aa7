"""An application and a socket to a running server: start, signals, graceful stop."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from pyllama.engine import AsyncEngine
from pyllama.errors import RequestError, reason_of
from pyllama.server.app import build_app
from pyllama.server.hooks import Hooks
from pyllama.server.protocol import bounded_protocol
from pyllama.server.service import Settings

_log = logging.getLogger("pyllama")


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: taken before a model is loaded, so that errors come early.

    Raises RequestError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = reason_of(error)
        raise RequestError(f"{host}:{port}: {reason}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn with our stop: what waits is refused, what runs may finish, what is known is saved."""

    def __init__(self, engine: AsyncEngine, names: tuple[str, ...], settings: Settings, hooks: Hooks):
        self.app = build_app(engine, names, settings)
        self.captured: int | None = None
        self._engine, self._settings, self._hooks = engine, settings, hooks
        super().__init__(
            uvicorn.Config(
                self.app,
                http=bounded_protocol(settings.max_connections, settings.body_timeout_s, settings.send_timeout_s),
                ws="none",
                lifespan="on",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=settings.max_header_nbytes,
                timeout_keep_alive=30,
                # A second thought for connections that outlive their answers.
                timeout_graceful_shutdown=int(settings.stop_timeout_s) + 5,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell("ready", url_of(sockets[0]) if sockets else "")

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._tell("tick", self._engine)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._tell("stopping")
        self.app.state.service.stopping = True
        stop = asyncio.create_task(self._engine.stop(self._settings.stop_timeout_s))
        await super().shutdown(sockets)
        if self.force_exit:
            await self._engine.stop(0.0)
        await stop
        self._tell("stopped")

    def _tell(self, what: str, *arguments) -> None:
        """Call a hook. Whoever listens may be gone, his pipe with him: the server runs and stops all the same."""
        try:
            getattr(self._hooks, what)(*arguments)
        except OSError:
            pass
        except Exception:  # noqa: BLE001 - a hook is no reason to stop
            _log.exception("the hook for %r failed", what)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a stop that was asked for is no death by signal."""
        if threading.current_thread() is not threading.main_thread():  # no signals there
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame) -> None:
        self.captured = sig
        super().handle_exit(sig, frame)


def serve(
    engine: AsyncEngine,
    bound: socket.socket,
    *,
    names: tuple[str, ...],
    settings: Settings,
    hooks: Hooks,
) -> int:
    """Serve until SIGINT or SIGTERM, on the main thread; the exit code.

    engine    not started yet
    bound     from bind()
    names     what clients may call the model
    """
    server = Server(engine, names, settings, hooks)
    with bound:
        asyncio.run(server.serve([bound]))
    return 130 if server.captured == signal.SIGINT else 0
