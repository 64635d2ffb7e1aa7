"""States of this process as datagrams to the service manager (sd_notify(3)), with the standard library.

Does nothing where no manager asks for it; a manager that is gone is no reason to stop working.
"""

import os
import socket
from collections.abc import Mapping

PATIENCE_S = 5.0


class Notifier:
    """Says how it goes to whoever started this process.

    address     of the manager's socket: a path, or "@name" for an abstract one; None: nobody listens
    watchdog_s  the manager restarts a process it has not heard of for so long; None: it does not
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None):
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):  # nothing, or a kind of socket only virtual machines have
            return cls(None)
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        return cls(address, int(usec) / 1e6 if watched and usec.isdecimal() and int(usec) else None)

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    def ready(self, status: str) -> None:
        self._send(PATIENCE_S, READY="1", STATUS=status)

    def status(self, text: str) -> None:
        self._send(0, STATUS=text)

    def alive(self) -> None:
        self._send(0, WATCHDOG="1")

    def stopping(self, status: str) -> None:
        self._send(PATIENCE_S, STOPPING="1", STATUS=status)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, patience_s: float, **fields: str) -> None:
        """patience_s: how long to wait for room in the manager's queue; what is said again anyway need not wait."""
        if self._socket is None or self._address is None:
            return
        self._socket.settimeout(patience_s)
        lines = [f"{name}={' '.join(value.split())}" for name, value in fields.items()]  # a line each
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError:  # its queue is full, or it is gone
            pass
