"""The front end's side of a cluster: a decoder whose passes are run by ranks, on this board and on others.

Sequences and their pages are kept here, as numbers; what lies in the pages is with the ranks. A fault loses that: it
is told to whoever asked, and the next pass starts the ranks anew and begins with nothing.
"""

import json
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pyllama.architecture import Config
from pyllama.cluster.hosts import Host
from pyllama.cluster.job import Job
from pyllama.cluster.own_part import shares_by_place
from pyllama.cluster.wire import COPY, HELD, PASS, READ, WRITE, ClosedError, pass_to_bytes
from pyllama.decoder.exclusive import Exclusive, ExclusiveSequence
from pyllama.decoder.kv_cache import KVCache
from pyllama.decoder.page_pool import POSITIONS
from pyllama.decoder.passes import Pass, Segment
from pyllama.errors import BoardError, PyllamaError
from pyllama.planning.memory import Plan

WAITS = 0.1  # of its time that a rank spends more than another on waiting, before somebody is told
AGAIN_S = 2.0  # after a fault, until the ranks are started anew


@dataclass(frozen=True, slots=True)
class Asked:
    """What the ranks are to load: as arguments of load(); bytes that the front end has on rank 0's board, and that
    branches of a drafter's take of all boards together. digest: of the model as the front end has it."""

    model: str
    context_length: int
    kv_dtype: str
    threads: int | None
    contexts: int
    memory: int | None
    front_nbytes: int
    branches: int = 0
    digest: str = ""


class ClusterError(PyllamaError):
    """The boards cannot run a model together: another model, another version, too little memory."""


class RemotePages:
    """Pages whose memory is with the ranks; page_nbytes: of all of them together.

    read(), write() and copy() raise BoardError where the ranks are gone.
    """

    def __init__(self, decoder: "ClusterDecoder", dtype: str, page_nbytes: int):
        self._decoder = decoder
        self.dtype = dtype
        self.page_nbytes = page_nbytes

    def read(self, page: int) -> np.ndarray:
        return self._decoder.held(page)

    def write(self, page: int, data: np.ndarray) -> None:
        self._decoder.hold(page, data)

    def copy(self, source: int, target: int) -> None:
        self._decoder.copy_page(source, target)


class RemoteStates:
    """States whose memory is with the ranks; slot_nbytes: of all of them together."""

    def __init__(self, decoder: "ClusterDecoder", slot_nbytes: int):
        self._decoder = decoder
        self.slot_nbytes = slot_nbytes

    def read(self, slot: int) -> np.ndarray:
        return self._decoder.held(slot, is_state=True)

    def write(self, slot: int, data: np.ndarray) -> None:
        self._decoder.hold(slot, data, is_state=True)


class RemoteWeights:
    """What is to be told of the ranks' weights: sums over them, and the longest wait."""

    expert_counters = None

    def __init__(self, decoder: "ClusterDecoder"):
        self._decoder = decoder

    @property
    def bytes_read(self) -> int:
        said = self._decoder.signs
        told = self._decoder.reports
        return sum(
            max(sign.get("bytes", 0), report.get("bytes_read", 0)) for sign, report in zip(said, told, strict=True)
        )

    @property
    def waited_s(self) -> float:
        return max((report.get("waited_s", 0.0) for report in self._decoder.reports), default=0.0)

    @property
    def nbytes_streamed(self) -> int:
        return sum(report.get("streamed", 0) for report in self._decoder.reports)

    def pin_more(self, nbytes: int) -> None:
        """What a drafter gives up is not the ranks'."""

    def close(self) -> None:
        self._decoder.end()


class ClusterSequence(ExclusiveSequence):
    """A sequence that knows which ranks hold its positions."""

    decoder: "ClusterDecoder"

    def __init__(self, decoder: "ClusterDecoder"):
        super().__init__(decoder)
        self.life = decoder.life

    def _another(self) -> "ClusterSequence":
        branch = ClusterSequence(self.decoder)
        branch.life = self.life
        return branch

    def adopt(self, pages: Sequence[int], length: int, state: int | None = None) -> None:
        if not self.length:
            self.life = self.decoder.life
        super().adopt(pages, length, state)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        if not self.length:  # nothing is left that could be lost
            self.life = self.decoder.life


class ClusterDecoder(Exclusive):
    """A decoder on several boards, for any thread, but for one at a time.

    hosts    of each rank
    life     how many times the ranks were started
    plan     all boards' memory together
    plans    each rank's own
    reports  what each rank told after the last pass
    """

    def __init__(
        self,
        config: Config,
        hosts: Sequence[Host],
        asked: Asked,
        *,
        interface: str | None = None,
        on_layer: Callable[[int], None] | None = None,
    ):
        """Starts the ranks. Raises BoardError, ClusterError, BudgetError."""
        super().__init__()
        self.config = config
        self.hosts = tuple(hosts)
        self.context_length = asked.context_length
        self.on_layer = on_layer
        self.passes = 0
        self.life = 0
        self.reports: list[dict[str, Any]] = [{} for _ in hosts]
        self.plans: list[Plan] = []
        self._asked = asked
        self._interface = interface
        self._failed_at = 0.0
        self._fault: BoardError | None = None
        self._job: Job | None = None
        page_nbytes, slot_nbytes = self._begin()
        self.max_pass_tokens = min(plan.max_pass_tokens for plan in self.plans)
        pool = RemotePages(self, asked.kv_dtype, page_nbytes)
        states = RemoteStates(self, slot_nbytes) if slot_nbytes else None
        self.cache = KVCache(pool, self.context_length, states)
        self.plan = _together(self.plans, self._pages, page_nbytes)
        self.cache.keep_states(self.plan.state_slots)
        self.weights = RemoteWeights(self)

    @property
    def signs(self) -> list[dict[str, Any]]:
        """What each rank said of itself last."""
        return self._job.signs if self._job is not None else [{} for _ in self.hosts]

    @property
    def slowest(self) -> str | None:
        """The board that the others have been waiting for in the last seconds; None where that is none of them."""
        job = self._job
        waits = [] if job is None else [sign.get("waits", 0.0) for sign in job.signs]
        if job is None or len(waits) < 2 or max(waits) - min(waits) < WAITS:
            return None
        return job.name(waits.index(min(waits)))

    def new_sequence(self) -> ClusterSequence:
        return ClusterSequence(self)

    # --- the ranks ---

    def _begin(self) -> tuple[int, int]:
        """Start the ranks, and agree on what they run; bytes of a page, and of a state, of all of them together."""
        job = Job(self.hosts, self._interface)
        try:
            here = [sum(other.name == host.name for other in self.hosts) for host in self.hosts]
            memory = [host.memory or self._asked.memory for host in self.hosts]
            places = [host.place for host in self.hosts]
            asked = {name: getattr(self._asked, name) for name in Asked.__slots__}
            try:
                job.link.send(
                    "open",
                    asked
                    | {"memory": memory, "shares": shares_by_place(self.hosts), "places": places, "ranks_here": here},
                )
                self._check_alike(job, json.loads(job.link.receive()[1]))
                job.link.send("go")
                reports = json.loads(job.link.receive()[1])
                for rank, report in enumerate(reports):
                    if report["error"]:
                        raise ClusterError(f"{job.name(rank)}: {report['error']}")
                job.link.send("go")
            except ClosedError:
                raise job.fault() from None
        except BaseException:
            job.end()
            raise
        self.plans = [Plan(**report["plan"]) for report in reports]
        pages = [
            plan.cache // report["page_nbytes"]
            for plan, report in zip(self.plans, reports, strict=True)
            if report["page_nbytes"]
        ]
        self._pages = min(pages)
        self._job = job
        self.life += 1
        self.reports = [{} for _ in self.hosts]
        return sum(report["page_nbytes"] for report in reports), sum(report["slot_nbytes"] for report in reports)

    def _check_alike(self, job: Job, reports: list[dict[str, Any]]) -> None:
        """Raises ClusterError where a board has another model or version than the first."""
        for rank, report in enumerate(reports):
            if report["version"] != reports[0]["version"]:
                raise ClusterError(
                    f"{job.name(rank)}: pyllama {report['version']}, expected {reports[0]['version']} as on "
                    f"{job.name(0)}"
                )
            if report["error"]:
                raise ClusterError(f"{job.name(rank)}: {report['error']}")
            expected = self._asked.digest or reports[0]["digest"]
            if report["digest"] != expected:
                name = os.path.basename(self._asked.model)
                part = f"{report['part']}: of another model" if report.get("part") else f"{name} is another model there"
                raise ClusterError(
                    f"{job.name(rank)}: {part} than {f'{name} here' if rank == 0 else f'on {job.name(0)}'}"
                    f" (digest {report['digest'][:8]}, expected {expected[:8]})"
                )

    def _ready(self) -> Job:
        """The running ranks; after a fault, those that are started anew. Raises BoardError while boards are missing."""
        if self._job is not None and not self._job.running:
            self._lost(self._job.fault())
        if self._job is None:
            if self._fault is not None and time.monotonic() - self._failed_at < AGAIN_S:
                raise self._fault
            try:
                self._begin()
            except PyllamaError as error:
                self._failed_at = time.monotonic()
                self._fault = BoardError(str(error))
                raise self._fault from None
        assert self._job is not None
        return self._job

    def _lost(self, fault: BoardError) -> NoReturn:
        self._job = None
        self._fault = fault
        self._failed_at = time.monotonic()
        raise fault

    def end(self) -> None:
        """Ends the ranks."""
        job, self._job = self._job, None
        if job is not None:
            job.end()

    # --- passes ---

    def _check(self, batch: Sequence[Segment]) -> None:
        super()._check(batch)
        self._ready()
        for sequence, _ in batch:
            if isinstance(sequence, ClusterSequence) and sequence.life != self.life:
                if sequence.length:
                    raise BoardError("what was computed of this text was lost with the boards; begin it anew")
                sequence.life = self.life

    def run(self, planned: Pass, on_layer: Callable[[int], None] | None = None, hidden: bool = False) -> np.ndarray:
        job = self._ready()
        width = self.config.hidden_size if hidden else self.config.vocab_size
        try:
            job.link.send("order", PASS + bytes([hidden]) + pass_to_bytes(planned))
            try:
                reports = self._hear_reports(job, on_layer)
            except ClosedError:
                raise
            except BaseException:
                self._give_up(job)
                raise
            self.reports = reports
            self._raise_errors(job, reports)
            kind, data = job.link.receive()
            if kind != "logits":
                raise ClosedError
        except ClosedError:
            self._lost(job.fault())
        self.passes += 1
        return np.frombuffer(data, np.float32).reshape(len(planned.rows), width)

    # --- what the ranks hold, between passes ---

    def held(self, number: int, is_state: bool = False) -> np.ndarray:
        """What a page or a state holds, of all ranks one behind the other. Raises BoardError."""
        job = self._same_life()
        try:
            job.link.send("order", READ + HELD.pack(number, 0, is_state))
            return np.frombuffer(job.link.receive()[1], np.uint8)
        except ClosedError:
            self._lost(job.fault())

    def hold(self, number: int, data: np.ndarray, is_state: bool = False) -> None:
        """Have a page or a state hold what held() gave. Starts the ranks if need be; raises BoardError."""
        job = self._ready()
        try:
            job.link.send("order", WRITE + HELD.pack(number, 0, is_state) + data.tobytes())
        except ClosedError:
            self._lost(job.fault())

    def copy_page(self, source: int, target: int) -> None:
        job = self._same_life()
        try:
            job.link.send("order", COPY + HELD.pack(source, target, False))
        except ClosedError:
            self._lost(job.fault())

    def _same_life(self) -> Job:
        """The ranks that run; others, started anew, would hold nothing of what there was. Raises BoardError."""
        if self._job is None:
            raise self._fault or BoardError("the boards are not running")
        return self._ready()

    def _hear_reports(self, job: Job, on_layer: Callable[[int], None] | None) -> list[dict[str, Any]]:
        while True:
            select.select([job.link], [], [])  # where Ctrl-C ends the wait, and no frame is cut in two
            kind, data = job.link.receive()
            if kind == "reports":
                reports: list[dict[str, Any]] = json.loads(data)
                return reports
            if kind == "layer":
                for told in (self.on_layer, on_layer):
                    if told:
                        told(int(data))

    def _give_up(self, job: Job) -> None:
        """Nobody wants the pass any more: the ranks end it at the next layer, and are as they were before it."""
        try:
            job.link.send("stop")
            kind = ""
            while kind != "reports":
                kind, data = job.link.receive()
            if all(report["error"] is None for report in json.loads(data)):
                job.link.receive()  # it had come to its end
        except ClosedError:
            job.fault()  # which the next pass tells
        except BaseException:  # a second Ctrl-C
            self.end()
            raise

    def _raise_errors(self, job: Job, reports: list[dict[str, Any]]) -> None:
        for rank, report in enumerate(reports):
            if report["error"]:
                raise BoardError(f"{job.name(rank)}: {report['error']}")
        if any(report["error"] is not None for report in reports):
            raise BoardError("the pass was given up")


#: Of plans, what adds up.
_SUMS = ("budget", "process", "activations", "pinned", "weights", "stored", "branches", "expert_slots",
         "experts_stored", "active", "states")  # fmt: skip


def _together(plans: Sequence[Plan], pages: int, page_nbytes: int) -> Plan:
    """Plans of all boards as one: sums, and the pages that each of them has room for."""
    room = max(plan.room for plan in plans)
    context_length = plans[0].context_length
    sums: dict[str, int] = {name: sum(getattr(plan, name) for plan in plans) for name in _SUMS}
    return Plan(
        context_length=context_length,
        max_pass_tokens=min(plan.max_pass_tokens for plan in plans),
        slots=-(-sum(plan.ring for plan in plans) // room),
        room=room,
        cache=max(pages, -(-context_length // POSITIONS)) * page_nbytes,
        expert_room=max(plan.expert_room for plan in plans),
        experts_share=min(plan.experts_share for plan in plans),
        state_slots=min((plan.state_slots for plan in plans if plan.state_slots), default=0),
        **sums,
    )
