"""Ranks under MPI on this machine: the bits of one process, whatever their number and shares, and none left behind.

Skipped where the extra `cluster` is not installed. PYLLAMA_TEST_CLUSTER=all, for a machine with nothing else to do, has
more of everything, and holds the faults to the seconds that docs/cluster.md promises.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from command_line import pyllama_process
from conftest import write_byte_tokenizer

import pyllama
from pyllama.cluster import job
from pyllama.cluster.front import AGAIN_S, ClusterError
from pyllama.engine import Engine
from pyllama.errors import BoardError
from pyllama.generation.sampler import SamplingParams
from pyllama.machine.memory import resident_nbytes
from pyllama.packing import pack
from pyllama.server.errors import as_api_error

MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
if os.environ.get("PYLLAMA_EMULATED") == "1":
    pytest.skip("mpiexec is not emulated", allow_module_level=True)
if importlib.util.find_spec("mpi4py") is None or not (MPIEXEC.exists() or shutil.which("mpiexec")):
    pytest.skip("the extra `cluster` is not installed", allow_module_level=True)

PROMPT = list(range(3, 30))
ALL = os.environ.get("PYLLAMA_TEST_CLUSTER") == "all"
WITHIN_S = 5.0 if ALL else 60.0  # a fault is told; a busy machine's time is not its ranks'
by_hand = pytest.mark.skipif(not ALL, reason="takes long; PYLLAMA_TEST_CLUSTER=all runs it")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a busy machine a rank may be silent for seconds, and is not frozen."""
    if not ALL:
        monkeypatch.setattr(job, "LATE_S", 30.0)


def hosts(count: int) -> str:
    return ",".join(["localhost"] * count)


def ranks_alive() -> set[int]:
    """Ranks whose front end is this process or one it has started, by their socket's folder or by descent."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"pyllama.cluster.worker" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def no_rank_left():
    before = ranks_alive()
    yield
    end = time.monotonic() + WITHIN_S
    while ranks := ranks_alive() - before:
        # Ranks of other tests on this machine come and go; ours are children of mpiexec processes of ours alone.
        if not any(_ours(pid) for pid in ranks):
            break
        assert time.monotonic() < end, f"left behind: {ranks}"
        time.sleep(0.1)


def _ours(pid: int) -> bool:
    """Whether a process has this one among its ancestors, or none of its own any more."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def answer(folder, **options):
    with pyllama.load(folder, context_length=128, **options) as model:
        generation = model.generate(PROMPT, max_tokens=6, ignore_eos=True, fingerprint=True)
        return [step.token_id for step in generation], generation.fingerprint.hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("localhost", marks=by_hand),
        hosts(2),
        "localhost=1,localhost=0.1,localhost=0.5",
        pytest.param(hosts(5), marks=by_hand),
        pytest.param(hosts(7), marks=by_hand),
    ],
)
def test_the_bits_of_one_process(folder, names):
    assert answer(folder, hosts=names) == answer(folder)


def test_ranks_are_not_of_the_folder_where_the_user_stands(folder, shadowed):
    assert answer(folder, hosts=hosts(2)) == answer(folder)


FAMILIES = {family: {"model_type": family} for family in tiny.FAMILIES} | {"gemma4 mixture": tiny.GEMMA4_MIXTURE}


@pytest.mark.parametrize("family", [pytest.param(of, marks=() if of == "olmo2" else by_hand) for of in FAMILIES])
def test_every_family(tmp_path, family):
    model = tiny.write_random(tmp_path / "m", **FAMILIES[family])
    expected = answer(model)
    for count in (1, 2, 3, 5, 7) if ALL else (3,):
        assert answer(model, hosts=hosts(count)) == expected


def test_states_go_back_to_what_was_kept(tmp_path):
    """Texts that begin alike share what they have in common, of a model whose layers carry a state as well."""
    folder = tiny.write_random(tmp_path / "m", model_type="qwen3_5_text")
    prompts = [list(range(3, 70)), [*range(3, 70), 5, 6, 7], [*range(3, 66), 1, 2]]
    found = []
    for options in ({}, {"hosts": hosts(3)}):
        with pyllama.load(folder, context_length=128, contexts=4, **options) as model:
            engine, answers = Engine(model), []
            for prompt in prompts:
                params = SamplingParams(max_tokens=6, ignore_eos=True)
                answers.append(engine.submit(prompt, params, lambda event: None, fingerprint=True))
                while engine.step():
                    pass
            found.append([(each.answer.token_ids, each.answer.fingerprint.hexdigest()) for each in answers])
            found.append([each.cached_tokens for each in answers])
    assert found[:2] == found[2:]
    assert any(found[1])


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_sessions_survive_a_restart(tmp_path, family):
    folder = tiny.write_random(tmp_path / "m", model_type=family)
    found = []
    for _ in range(2):
        with pyllama.load(folder, context_length=128, contexts=4, hosts=hosts(3)) as model:
            engine = Engine(model, session_dir=tmp_path / "sessions")
            engine.start()
            heard = []
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            request = engine.submit(list(range(3, 80)), params, heard.append, fingerprint=True)
            while not (heard and (isinstance(heard[-1], Exception) or heard[-1].finish_reason)):
                time.sleep(0.01)
            found.append((request.answer.token_ids, request.answer.fingerprint.hexdigest(), request.cached_tokens))
            engine.stop()
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == 0 and found[1][2] >= 64
    with pyllama.load(folder, context_length=128) as alone:
        generation = alone.generate(list(range(3, 80)), max_tokens=6, ignore_eos=True, fingerprint=True)
        generation.read()
        assert found[0][:2] == (generation.token_ids, generation.fingerprint.hexdigest())


def test_packed_and_quantized(tmp_path):
    model = tiny.write_random(tmp_path / "m")
    pack(model, tmp_path / "packed")
    assert answer(tmp_path / "packed", hosts=hosts(3)) == answer(model)
    config = tiny.tiny_config(hidden_size=64, intermediate_size=96, head_dim=16, num_attention_heads=4)
    config["num_key_value_heads"] = 2
    tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), "Q8_0")
    assert answer(tmp_path / "m.gguf", hosts=hosts(3)) == answer(tmp_path / "m.gguf")


@pytest.mark.parametrize("draft", [pytest.param("lookup", marks=by_hand), "itself"])
def test_drafts_change_nothing(chat_folder, draft):
    who = str(chat_folder) if draft == "itself" else draft
    assert answer(chat_folder, hosts=hosts(2), draft=who) == answer(chat_folder, draft="off")


def own_mb() -> int:
    """What this process holds, and the first board's budget has to cover: more with every test before."""
    return resident_nbytes() >> 20


def test_a_file_of_hosts_with_budgets(folder, tmp_path):
    file, first = tmp_path / "boards", own_mb() + 200
    file.write_text(f"# two\nlocalhost share=1 memory={first}M\nlocalhost share=0.5 memory=250M # the slow one\n")
    with pyllama.load(folder, context_length=128, hosts=file) as model:
        assert [host.share for host in model.decoder.hosts] == [1.0, 0.5]
        assert [plan.budget for plan in model.decoder.plans] == [first << 20, 250 << 20]
        assert model.plan.budget == first + 250 << 20


def test_many_requests_share_passes(folder):
    prompts = [[(7 * n + i * i) % 101 for i in range(20)] for n in range(4)]
    with pyllama.load(folder, context_length=128, hosts=hosts(3), contexts=8) as model:
        engine = Engine(model)
        answers = []
        for prompt in prompts:
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            answers.append(engine.submit(prompt, params, lambda event: None, fingerprint=True))
        while engine.step():
            pass
        assert engine.stats().passes < 20
    with pyllama.load(folder, context_length=128) as alone:
        for prompt, request in zip(prompts, answers, strict=True):
            generation = alone.generate(prompt, max_tokens=6, ignore_eos=True, fingerprint=True)
            generation.read()
            assert request.answer.token_ids == generation.token_ids
            assert request.answer.fingerprint.hexdigest() == generation.fingerprint.hexdigest()


def test_too_little_memory_is_told_with_the_board_and_what_it_needs(folder):
    with pytest.raises(ClusterError, match=r"localhost \(rank 0\): memory: 32 MB, this model needs at least "):
        pyllama.load(folder, context_length=128, hosts=hosts(2), memory="30M")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh")
def test_a_board_that_is_not_reached_is_told_soon(folder):
    started = time.monotonic()
    with pytest.raises(BoardError, match="hosts: .*"):
        pyllama.load(folder, context_length=128, hosts="localhost,nowhere.invalid")
    assert time.monotonic() - started < 2 * WITHIN_S


# --- faults ---


class Slow:
    """A model in the midst of passes, on a thread; what the thread ended with."""

    def __init__(self, model):
        self.model = model
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self.steps = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        while self.steps < 2:
            time.sleep(0.01)

    def _run(self):
        try:
            while True:
                for _ in self.model.generate(PROMPT, max_tokens=90, ignore_eos=True):
                    self.steps += 1
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    def told(self, since: float) -> str:
        self.thread.join(3 * WITHIN_S)
        assert not self.thread.is_alive(), "hangs"
        assert isinstance(self.error, BoardError), self.error
        assert self.ended_at - since < WITHIN_S
        return str(self.error)


def pid_of(model, rank):
    return model.decoder.signs[rank]["pid"]


@pytest.mark.parametrize(
    "number, rank",
    [
        pytest.param(signal.SIGKILL, 0, marks=by_hand),
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 2, marks=by_hand),
        pytest.param(signal.SIGSTOP, 0, marks=by_hand),
        pytest.param(signal.SIGSTOP, 1, marks=by_hand),
        (signal.SIGSTOP, 2),
    ],
)
def test_a_rank_that_is_killed_or_frozen_is_named_and_the_next_text_starts_anew(folder, number, rank, monkeypatch):
    if not ALL:
        monkeypatch.setattr(job, "LATE_S", 8.0)
    told = {signal.SIGKILL: "ended by signal SIGKILL", signal.SIGSTOP: f"no sign of life for {job.LATE_S:.0f} s"}[
        number
    ]
    expected = answer(folder)
    with pyllama.load(folder, context_length=128, hosts=hosts(3)) as model:
        slow = Slow(model)
        pids = [pid_of(model, each) for each in range(3)]
        since = time.monotonic()
        os.kill(pids[rank], number)
        line = slow.told(since)
        assert line.startswith(f"localhost (rank {rank}): ") and told in line
        assert not set(pids) & ranks_alive()
        time.sleep(AGAIN_S + 0.1)
        generation = model.generate(PROMPT, max_tokens=6, ignore_eos=True, fingerprint=True)
        assert ([step.token_id for step in generation], generation.fingerprint.hexdigest()) == expected


def test_a_board_whose_disk_fails_is_named_and_the_others_go_on(tmp_path):
    model_folder = tiny.write_random(tmp_path / "m", num_hidden_layers=8, hidden_size=512, intermediate_size=2048)
    weights = model_folder / "model.safetensors"
    with pyllama.load(model_folder, context_length=128, hosts=hosts(2), memory=f"{own_mb() + 90}M") as model:
        pids = [pid_of(model, rank) for rank in range(2)]
        os.utime(weights, (1, 1))  # as a file that was replaced: a read refuses it
        with pytest.raises(BoardError, match=r"localhost \(rank \d\): .*changed while in use"):
            answer_of(model)
        with pytest.raises(BoardError, match="changed while in use"):
            answer_of(model)
        assert [pid_of(model, rank) for rank in range(2)] == pids


def answer_of(model):
    return [step.token_id for step in model.generate(PROMPT, max_tokens=6, ignore_eos=True)]


def test_an_abandoned_pass_leaves_everything_as_it_was(folder):
    class EnoughError(Exception):
        pass

    def enough(layer):
        if layer == 1:
            raise EnoughError

    with pyllama.load(folder, context_length=128, hosts=hosts(3)) as model:
        sequence = model.new_sequence()
        with pytest.raises(EnoughError):
            model.decoder.extend([(sequence, PROMPT)], [1], enough)
        assert sequence.length == 0
        generation = model.generate(PROMPT, max_tokens=6, ignore_eos=True, fingerprint=True)
        assert ([step.token_id for step in generation], generation.fingerprint.hexdigest()) == answer(folder)


def test_ranks_end_with_a_front_end_that_is_killed(folder):
    program = (
        "import pyllama, sys\n"
        "model = pyllama.load(sys.argv[1], context_length=128, hosts='localhost,localhost')\n"
        "print(*(sign['pid'] for sign in model.decoder.signs), flush=True)\n"
        "input()\n"
    )
    front = subprocess.Popen(
        [sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pids = {int(word) for word in front.stdout.readline().split()}
    assert len(pids) == 2
    front.kill()
    front.wait()
    end = time.monotonic() + 2 * WITHIN_S
    while pids & ranks_alive():
        assert time.monotonic() < end, "left behind"
        time.sleep(0.1)


@pytest.mark.parametrize("when", ["loading", "answering"])
def test_ctrl_c_ends_a_run_and_its_ranks(tmp_path, when):
    """With what the front end had said by then, no traceback, and 130."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 512}
    folder = tiny.write_random(tmp_path / "m", num_hidden_layers=8, vocab_size=300, **sizes)
    write_byte_tokenizer(folder, None)
    options = ["--hosts", hosts(3), "--max-tokens", "400", "--context", "512", "--raw", "--ignore-eos"]
    front = pyllama_process("run", folder, "a prompt", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if when == "answering":
        assert front.stdout.read(1)
    else:
        time.sleep(0.7)
    since = time.monotonic()
    front.send_signal(signal.SIGINT)
    _, told = front.communicate(timeout=3 * WITHIN_S)
    assert front.returncode == 130 and time.monotonic() - since < WITHIN_S
    assert b"Traceback" not in told and told.count(b"\n") <= 1


def test_an_engine_tells_a_fault_to_all_its_requests_and_knows_nothing_of_them_afterwards(folder):
    expected = answer(folder)
    with pyllama.load(folder, context_length=128, hosts=hosts(2), contexts=4) as model:
        engine = Engine(model)
        engine.start()
        try:
            events = [[], []]
            for heard in events:
                engine.submit(PROMPT, SamplingParams(max_tokens=90, ignore_eos=True), heard.append)
            while not all(events):
                time.sleep(0.01)
            os.kill(pid_of(model, 1), signal.SIGKILL)
            end = time.monotonic() + 2 * WITHIN_S
            while not all(isinstance(heard[-1], BoardError) for heard in events):
                assert time.monotonic() < end, [heard[-1] for heard in events]
                time.sleep(0.05)
            assert engine.stats().pages_used == 0
            assert as_api_error(events[0][-1]).status == 503
            time.sleep(AGAIN_S + 0.1)
            heard = []
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            request = engine.submit(PROMPT, params, heard.append, fingerprint=True)
            while not (heard and (isinstance(heard[-1], BoardError) or heard[-1].finish_reason)):
                time.sleep(0.05)
            assert (request.answer.token_ids, request.answer.fingerprint.hexdigest()) == expected
        finally:
            engine.stop()
