"""What a server tells whoever runs it: the service manager, or nobody."""

from pyllama.engine import AsyncEngine


class Hooks:
    """Does nothing. Override what is of interest; all are called on the event loop and must return at once."""

    def ready(self, url: str) -> None:
        """Connections are accepted from now on."""

    def tick(self, engine: AsyncEngine) -> None:
        """Called every second. engine.stats() says what it does; engine.engine.stalled_s() whether it still does."""

    def stopping(self) -> None:
        """No new requests are taken; those that run are given time to finish."""

    def stopped(self) -> None:
        """All is done and saved."""
