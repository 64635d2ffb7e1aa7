"""Boards -> how long what they say to each other takes, measured through MPI as a pass uses it."""

import json
from collections.abc import Sequence

from pyllama.cluster.hosts import Host
from pyllama.cluster.job import Job
from pyllama.cluster.wire import ClosedError
from pyllama.planning.boards import Link


def measure_link(hosts: Sequence[Host], interface: str | None = None) -> Link:
    """Between these boards, all of them at once; the first is this machine. Raises BoardError, RequestError."""
    job = Job(hosts, interface)
    try:
        job.link.send("open", {"talk": True})
        told = json.loads(job.link.receive()[1])
        job.link.send("go")
    except ClosedError:
        raise job.fault() from None
    finally:
        job.end()
    return Link(told["step_s"], told["gb_s"], f"measured between {len(hosts)} ranks")
