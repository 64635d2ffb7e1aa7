"""A server's hooks to the service manager: ready, what it does, and that it is alive, as long as it really is.

The watchdog is fed by the event loop, and only while the engine gets on: a layer reached, or nothing to do. A hung
engine behind a healthy loop starves it, and so does a hung loop.
"""

import time

from pyllama.engine import AsyncEngine
from pyllama.server.hooks import Hooks
from pyllama.service.notify import Notifier

STATUS_S = 2.0


class Watched(Hooks):
    """Tells a service manager, besides what other hooks tell.

    notifier  to the manager
    inner     hooks that are called as well
    name      of what is served
    """

    def __init__(self, notifier: Notifier, inner: Hooks, name: str):
        self._notifier, self._inner, self._name = notifier, inner, name
        self._where = name
        self._status = ""
        self._told_at = self._fed_at = float("-inf")

    def ready(self, url: str) -> None:
        self._inner.ready(url)
        self._where = f"{self._name} at {url}"
        self._notifier.ready(self._where)

    def tick(self, engine: AsyncEngine) -> None:
        self._inner.tick(engine)
        now = time.monotonic()
        self._feed(engine, now)
        if now - self._told_at >= STATUS_S:
            status = status_line(self._where, engine)
            if status != self._status:
                self._status, self._told_at = status, now
                self._notifier.status(status)

    def _feed(self, engine: AsyncEngine, now: float) -> None:
        patience_s = self._notifier.watchdog_s
        if patience_s is None or now - self._fed_at < patience_s / 4:
            return
        # Half of it: the manager's own clock starts with the last word it hears.
        if engine.engine.stalled_s() < patience_s / 2:
            self._fed_at = now
            self._notifier.alive()

    def stopping(self) -> None:
        self._inner.stopping()
        self._notifier.stopping("stopping: running answers may finish")

    def stopped(self) -> None:
        self._inner.stopped()
        self._notifier.status("stopped")
        self._notifier.close()


def status_line(where: str, engine: AsyncEngine) -> str:
    """What `systemctl status` shows: work under way, and work done."""
    stats = engine.stats()
    done = sum(count for how, count in stats.requests.items() if how in ("stop", "length"))
    if not stats.running:
        doing = "idle"
    else:
        doing = f"{stats.running} running, {stats.waiting} waiting"
        if stats.layer:
            doing += f", layer {stats.layer} of {stats.layers}"
    return f"{where}: {doing}; {done} answered, {stats.completion_tokens} tokens"
