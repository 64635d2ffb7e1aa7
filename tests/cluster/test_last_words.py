"""What mpiexec says as it ends, in its own words -> which board it was, in one line."""

import pytest

from pyllama.cluster.hosts import Host
from pyllama.cluster.job import _SSH, ABORT_S, LATE_S, Job, command

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
# A rank was killed on pi3; the other ranks lose their connections to it, and wait before they end the job.
DELAYED = (
    "[pi1:19513] plm:ssh: Warning: setpgid(19520,19520) failed in parent with errno=Permission denied(13)\n"
    "Local host: pi2\nLocal PID:  19786\nPeer host:  pi3\n"
    "[pi2:19786] Delaying for 2 seconds before aborting\n"
    + ABORTED.replace("pi3", "pi2").replace(",2]", ",1]")
    + "[pi1:19752] Delaying for 2 seconds before aborting\n"
    "prterun noticed that process rank 2 with PID 19780 on node pi3 exited on\nsignal 9 (Killed).\n"
)
# The same without a word of who it was, of the first rank.
UNNAMED = (
    ABORTED + "[pi3:18952] Delaying for 2 seconds before aborting\n[pi2:18958] Delaying for 2 seconds before aborting\n"
    "prterun noticed that process rank 0 with PID 18924 on node pi1 exited on\nsignal 9 (Killed).\n"
)
WARNED = "[pi1:02857] plm:ssh: Warning: setpgid(2865,2865) failed in parent with errno=Permission denied(13)\n"


@pytest.mark.parametrize(
    "said, told",
    [
        (DELAYED, "pi3: the rank was ended by signal SIGKILL; was its memory short?"),
        (UNNAMED, "pi1: the rank was ended by signal SIGKILL; was its memory short?"),
        (WARNED + KILLED, "pi2: the rank was ended by signal SIGKILL; was its memory short?"),
        (WARNED, "hosts: mpiexec ended"),
        (WARNED + "root@pi2: Permission denied (publickey).\n", "hosts: root@pi2: Permission denied (publickey)."),
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


@pytest.mark.parametrize("said, is_of_ssh", [(WARNED, False), ("ssh: connect to host pi2 port 22: refused\n", True)])
def test_what_mpiexec_says_of_its_ssh_does_not_end_the_start(said, is_of_ssh):
    assert bool(_SSH.search(said)) is is_of_ssh


def test_a_rank_that_loses_another_leaves_mpiexec_the_time_to_say_which(tmp_path, monkeypatch):
    """Without it, the one that lost its connection ended the job first, and was the board in the line."""
    monkeypatch.setattr("pyllama.cluster.job.shutil.which", lambda name: name)
    words = command(tmp_path / "hosts", [Host("pi1"), Host("pi2", place=1)], None)
    assert words[words.index("opal_abort_delay") + 1] == str(ABORT_S) and 1 <= ABORT_S < LATE_S
