"""One rank: its share of a model, and passes over it as rank 0 hears of them from the front end.

    python -m pyllama.cluster.worker        started by mpiexec, see job.py

Standard output is for signs of life, a line of JSON each, twice a second. A rank ends when rank 0's front end does, and
when whatever started it is gone. Knows no tokens' meaning, no text, no sampling.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.digest import model_digest
from pyllama.cluster.dealing import deal
from pyllama.cluster.gathering import GatheringRanks, PeerFailedError
from pyllama.cluster.own_part import open_part
from pyllama.cluster.wire import COPY, HELD, PASS, SOCKET, WRITE, ClosedError, Link, pass_of_bytes
from pyllama.decoder import Decoder, Shape
from pyllama.errors import BudgetError, PyllamaError, reason_of
from pyllama.planning.memory import Plan, make_plan
from pyllama.streaming import StreamedWeights
from pyllama.streaming.local import LocalCheckpoint
from pyllama.version import __version__

if TYPE_CHECKING:
    from pyllama.cluster.mpi import MpiExchange

BEAT_S = 0.5
LOOK_BACK = 6  # beats
LOST_S = 10.0
PROBE_S = 1.0


class _AbandonedError(Exception):
    """The front end wants no more of this pass."""


class _RefusedError(Exception):
    """Not all ranks can go on; the front end has been told why."""


class Signs:
    """Signs of life on standard output, from a thread of its own: a pass may take minutes."""

    def __init__(self, exchange: "MpiExchange"):
        self.state: dict[str, Any] = {"rank": exchange.rank, "pid": os.getpid()}
        self.weights: StreamedWeights | None = None
        self._exchange = exchange
        self._waited: deque[tuple[float, float]] = deque(maxlen=LOOK_BACK)
        self._parent = os.getppid()
        threading.Thread(target=self._run, name="pyllama-signs", daemon=True).start()

    def _run(self) -> None:
        while True:
            if self.weights is not None:
                self.state |= {"bytes": self.weights.bytes_read, "waited": self.weights.waited_s}
            self.state["waits"] = self._waits()
            try:
                os.write(1, json.dumps(self.state).encode() + b"\n")
            except OSError:
                os._exit(1)
            if os.getppid() != self._parent:  # mpiexec, or its daemon on this board, is gone
                os._exit(1)
            time.sleep(BEAT_S)

    def _waits(self) -> float:
        """Of the last seconds, the part in which this rank had nothing to do but wait for others."""
        now, waited = time.perf_counter(), self._exchange.seconds
        self._waited.append((now, waited))
        then, before = self._waited[0]
        return round((waited - before) / (now - then), 3) if now > then else 0.0


def watch_link() -> None:
    """On a board that ssh reached: end this rank, and the daemon that started it, once the first board is out of reach.

    Nothing else would: TCP waits a quarter of an hour for a link that is down. Any answer to a connection counts, a
    refusal as well; where there never is one, as behind some firewalls, nothing is watched.
    """
    first = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    if not first or not _answers(first):
        return
    failed = 0
    while failed < 3:
        time.sleep(PROBE_S)
        failed = 0 if _answers(first) else failed + 1
    daemon = os.getppid()
    with contextlib.suppress(OSError):
        if Path(f"/proc/{daemon}/comm").read_text().strip() == "prted":
            os.kill(daemon, signal.SIGKILL)
    os._exit(1)


def _answers(address: str) -> bool:
    try:
        socket.create_connection((address, 22), timeout=2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


class Worker:
    """A rank of a cluster; rank 0 has a link to the front end."""

    def __init__(self, exchange: "MpiExchange", link: Link | None, signs: Signs):
        self._exchange = exchange
        self._link = link
        self._signs = signs
        self.rank = exchange.rank

    def run(self) -> None:
        """Open what the front end asks for, then pass after pass, until it is gone."""
        asked = json.loads(self._hear_front("open"))
        if asked.get("talk"):
            self._talk()
            return
        checkpoint, error = _opened(asked, asked["places"][self.rank])
        about = {"version": __version__, "host": socket.gethostname(), "error": error, "digest": ""}
        if checkpoint is not None:
            about["digest"] = model_digest(checkpoint, asked["kv_dtype"])
            about["part"] = str(checkpoint.path) if checkpoint.share else ""
        self._agree(about)
        assert checkpoint is not None
        plan, decoder, error = self._loaded(checkpoint, asked)
        told = None if plan is None else {name: getattr(plan, name) for name in plan.__slots__}
        sizes = {"page_nbytes": 0, "slot_nbytes": 0}
        if decoder is not None:
            sizes["page_nbytes"] = decoder.cache.page_nbytes
            sizes["slot_nbytes"] = decoder.states.slot_nbytes if decoder.states else 0
        reports = self._agree({"error": error, "plan": told, **sizes})
        assert decoder is not None
        decoder.max_pass_tokens = min(report["plan"]["max_pass_tokens"] for report in reports)
        while order := self._next_order():
            kind, data = order[:1], order[1:]
            if kind == PASS:
                self._pass(decoder, data)
            else:
                self._held(decoder, kind, data, reports)

    def _talk(self) -> None:
        """Nothing but messages, of the sizes of a pass's, for whoever wants to know how long they take."""
        ranks = self._exchange.size
        found = []
        for nbytes, times in ((64, 200), (1 << 20, 10)):
            mine = [np.zeros(nbytes, np.uint8)] * ranks
            theirs = [np.empty(nbytes, np.uint8) for _ in range(ranks)]
            self._exchange.swap(mine, theirs)
            taken = []
            for _ in range(times):
                started = time.perf_counter()
                self._exchange.swap(mine, theirs)
                taken.append(time.perf_counter() - started)
            found.append(median(taken))
        small_s, large_s = found
        if self._link is not None:
            sent = (ranks - 1) << 20
            self._link.send("talk", {"step_s": small_s, "gb_s": sent / 1e9 / max(1e-9, large_s - small_s)})
            self._link.receive()

    def _agree(self, report: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's report, which rank 0 hands to the front end; it says whether to go on."""
        if self._link is None:
            self._exchange.tell(0, json.dumps(report).encode())
            reports = json.loads(self._exchange.hear(0))
        else:
            reports = [report, *(json.loads(data) for data in self._exchange.hear_all())]
            self._link.send("reports", reports)
            kind, _ = self._link.receive()
            reports = reports if kind == "go" else None
            self._exchange.tell_all(json.dumps(reports).encode())
        if reports is None:
            raise _RefusedError
        found: list[dict[str, Any]] = reports
        return found

    def _hear_front(self, kind: str) -> bytes:
        if self._link is None:
            return self._exchange.hear(0)
        heard, data = self._link.receive()
        if heard != kind:
            raise ClosedError
        self._exchange.tell_all(bytes(data))
        return bytes(data)

    def _loaded(self, checkpoint: Checkpoint, asked: dict[str, Any]) -> tuple[Plan | None, Decoder | None, str | None]:
        from pyllama import _kernels
        from pyllama.machine.memory import default_budget, resident_nbytes
        from pyllama.machine.threads import default_threads

        try:
            beside = asked["ranks_here"][self.rank]
            _kernels.set_num_threads(asked["threads"] or max(1, default_threads() // beside))
            dealt = deal(checkpoint.config, asked["shares"])
            shares = [dealt[place] for place in asked["places"]]
            ranks = GatheringRanks(shares, self.rank, self._exchange)
            local = LocalCheckpoint(checkpoint, ranks.share)
            shape, whole = Shape.of_share(checkpoint.config, ranks.share), Shape.whole(checkpoint.config)
            plan = make_plan(
                local,
                asked["memory"][self.rank] or default_budget() // beside,
                context_length=asked["context_length"],
                kv_dtype=asked["kv_dtype"],
                interpreter=resident_nbytes() + (asked["front_nbytes"] if self.rank == 0 else 0),
                contexts=asked["contexts"],
                branches=asked["branches"] * shape.kv_size // whole.kv_size,
                shape=shape,
            )
            weights = StreamedWeights(
                local,
                slots=plan.slots,
                room=plan.room,
                pinned_nbytes=plan.pinned,
                expert_slots=plan.expert_slots,
                expert_room=plan.expert_room,
            )
            decoder = Decoder(
                checkpoint.config,
                weights,
                context_length=plan.context_length,
                kv_dtype=asked["kv_dtype"],
                max_pass_tokens=plan.max_pass_tokens,
                rope_interleaved=checkpoint.rope_interleaved,
                on_layer=self._on_layer,
                ranks=ranks,
            )
        except (PyllamaError, MemoryError) as error:
            return None, None, _why(error)
        self._signs.weights = weights
        return plan, decoder, None

    # --- passes ---

    def _next_order(self) -> bytes:
        """What rank 0 hears from the front end, and the others from rank 0; nothing at the end."""
        if self._link is None:
            return self._exchange.hear(0)
        try:
            kind, heard = self._link.receive()
            while kind == "stop":  # of a pass that was over by then
                kind, heard = self._link.receive()
        except ClosedError:
            kind, heard = "end", bytearray()
        data = bytes(heard) if kind == "order" else b""
        self._exchange.tell_all(data)
        return data

    def _held(self, decoder: Decoder, kind: bytes, data: bytes, reports: list[dict[str, Any]]) -> None:
        """What a page or a state holds: read, written, copied; of all ranks, one behind the other."""
        number, other, is_state = HELD.unpack_from(data)
        if kind == COPY:
            decoder.cache.pool.copy(number, other)
            return
        pool = decoder.cache.state_pool if is_state else decoder.cache.pool
        if kind == WRITE:
            sizes = [report["slot_nbytes" if is_state else "page_nbytes"] for report in reports]
            begin = HELD.size + sum(sizes[: self.rank])
            if pool is not None:
                pool.write(number, np.frombuffer(data, np.uint8, sizes[self.rank], begin))
            return
        mine = b"" if pool is None else pool.read(number).tobytes()
        if self._link is None:
            self._exchange.tell(0, mine)
        else:
            self._link.send("held", b"".join([mine, *self._exchange.hear_all()]))

    def _pass(self, decoder: Decoder, data: bytes) -> None:
        """Run one, and tell rank 0 how it went: {} well, or why not."""
        hidden, planned = bool(data[0]), pass_of_bytes(data[1:])
        ranks: Any = decoder.ranks
        why: str | None = None
        out = np.empty(0, np.float32)
        try:
            out = decoder.run(planned, hidden=hidden)
        except PeerFailedError:
            why = ""
        except (PyllamaError, MemoryError, OSError, _AbandonedError) as error:
            ranks.fail()
            why = "abandoned" if isinstance(error, _AbandonedError) else _why(error)
        weights = decoder.weights
        report = {
            "error": why,
            "bytes_read": weights.bytes_read,
            "streamed": weights.nbytes_streamed,
            "waited_s": weights.waited_s,
            "gather_s": self._exchange.seconds,
            "sent": ranks.nbytes,
            "messages": ranks.messages,
        }
        if self._link is None:
            self._exchange.tell(0, json.dumps(report).encode())
            return
        reports = [report, *(json.loads(heard) for heard in self._exchange.hear_all())]
        self._link.send("reports", reports)
        if all(each["error"] is None for each in reports):
            self._link.send("logits", out)

    def _on_layer(self, layer: int) -> None:
        self._signs.state["layer"] = layer
        if self._link is not None:
            if select.select([self._link], [], [], 0)[0]:
                self._link.receive()  # "stop", or the end of the front end
                raise _AbandonedError
            self._link.send("layer", layer)


def _opened(asked: dict[str, Any], place: int) -> tuple[Checkpoint | None, str | None]:
    try:
        checkpoint = open_part(asked["model"], place, asked["shares"])
        checkpoint.config = checkpoint.config.for_context(asked["context_length"])
        return checkpoint, None
    except PyllamaError as error:
        return None, _why(error)


def _why(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, BudgetError):
        return str(error)
    return reason_of(error) if isinstance(error, OSError) else str(error)


def main() -> None:
    from pyllama.cluster.mpi import LostError, MpiExchange

    exchange = MpiExchange()
    signs = Signs(exchange)
    link = None
    if exchange.rank:
        threading.Thread(target=watch_link, name="pyllama-link", daemon=True).start()
    if exchange.rank == 0:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ[SOCKET])
        link = Link(connection)
    try:
        Worker(exchange, link, signs).run()
    except (_RefusedError, ClosedError):
        pass
    except LostError:
        time.sleep(LOST_S)  # mpiexec ends the job meanwhile, and names the rank that is gone
        os._exit(1)
    except BaseException as error:  # noqa: BLE001 - a bug is told by the front end, in a line
        print(f"pyllama: internal error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # at which mpiexec ends the others
    sys.stdout.flush()
    from mpi4py import MPI

    MPI.Finalize()  # with all others; what threads still do does not matter
    os._exit(0)


if __name__ == "__main__":
    main()
