"""What mpiexec says as it ends, in its own words -> which board it was, in one line."""

import pytest

from pyllama.cluster.hosts import Host
from pyllama.cluster.job import Job

ABORTED = (
    "[pi3:00000] *** An error occurred in Socket closed\n"
    "[pi3:00000] *** reported by process [860880897,2]\n"
    "[pi3:00000] *** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,\n"
)
BROKEN = (
    "[pi1][[13136,1],0][btl_tcp_frag.c:127:mca_btl_tcp_frag_send] peer: pi2 mca_btl_tcp_frag_send: writev failed: "
    "Broken pipe (32)\n"
)
ENDED = (
    "prterun has exited due to process rank 2 with PID 7464 on node pi3 calling\n"
    '"abort". This may have caused other processes in the application to be\n'
    "terminated by signals sent by prterun (as reported here).\n"
)
KILLED = "prterun noticed that process rank 1 with PID 12 on node pi2 exited on signal 9 (Killed).\n"


@pytest.mark.parametrize(
    "said, told",
    [
        (KILLED, "pi2: the rank was ended by signal SIGKILL; was its memory short?"),
        (ABORTED + BROKEN + ENDED, "pi2: the rank there has ended, or its link is down"),
        (ABORTED + ENDED, "pi3: lost its connection to another rank, which has ended or whose link is down"),
        ("", "hosts: mpiexec ended"),
    ],
)
def test_a_board_is_named(said, told):
    job = Job.__new__(Job)
    job.hosts = [Host(name, place=place) for place, name in enumerate(("pi1", "pi2", "pi3"))]
    job._errors = said.splitlines()
    assert job._last_words() == told
