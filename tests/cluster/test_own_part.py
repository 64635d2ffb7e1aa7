"""One board's rows of a model, packed alone: the bits of one process, and whatever does not fit refused."""

import filecmp
import json
import os

import numpy as np
import pytest
import tiny
from thread_ranks import run_ranks

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.digest import model_digest
from pyllama.checkpoint.packed import SHARE
from pyllama.cli import main
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import board_of, open_front, open_part, part_name, parts_folder
from pyllama.decoder import Decoder
from pyllama.errors import CheckpointError, HubError, RequestError, UnsupportedError
from pyllama.packing import pack, verify
from pyllama.streaming import StreamedWeights
from pyllama.streaming.local import LocalCheckpoint

SHARES = {"1": [1], "2": [1, 1], "7": [1] * 7, "3 unequal": [1, 0.1, 0.4], "5 unequal": [0.3, 1, 0.1, 0.7, 1]}
SIZES = {"hidden_size": 200, "intermediate_size": 328, "head_dim": 40, "num_attention_heads": 8}


@pytest.fixture(autouse=True)
def one_thread():
    """Each rank is a thread: with more of them each, they wait for each other."""
    before = kernels.num_threads()
    kernels.set_num_threads(1)
    yield
    kernels.set_num_threads(before)


def passes(checkpoint, ranks=None, **options):
    """Logits of a prompt, of a single token, and of a batch with a fork."""
    local = checkpoint if ranks is None else LocalCheckpoint(checkpoint, ranks.share)
    weights = StreamedWeights(local, **options)
    decoder = Decoder(
        checkpoint.config, weights, context_length=128, rope_interleaved=checkpoint.rope_interleaved, ranks=ranks
    )
    try:
        first = decoder.new_sequence()
        found = [decoder.extend([(first, list(range(3, 40)))], [37])[0], decoder.extend([(first, [5])], [1])[0]]
        found.append(decoder.extend([(first.fork(), [1, 3]), (decoder.new_sequence(), [7, 8, 9])], [2, 1])[0])
        return found
    finally:
        weights.close()


def hosts_of(shares):
    return [Host(f"pi{place + 1}", share, place=place) for place, share in enumerate(shares)]


def pack_parts(source, folder, shares):
    """Parts of a model for boards of these shares, by place."""
    folder.mkdir()
    hosts = hosts_of(shares)
    return [pack(source, folder / str(place), board=board_of(hosts, place)) for place in range(len(shares))]


def deal_of(source, shares):
    with open_checkpoint(source) as checkpoint:
        return board_of(hosts_of(shares), 0).of(checkpoint)


def check(source, parts, shares, **options):
    with open_checkpoint(source) as checkpoint:
        expected = passes(checkpoint)
        digest, config = model_digest(checkpoint, "f16"), checkpoint.config

    def work(ranks):
        with open_part(str(parts[ranks.rank]), ranks.rank, shares) as part:
            assert model_digest(part, "f16") == digest
            return passes(part, ranks, **options)

    results = run_ranks(config, shares, work)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    for ours, whole in zip(results[0], expected, strict=True):
        assert np.array_equal(ours.view(np.uint32), whole.view(np.uint32))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(tmp_path, family):
    model = tiny.write_random(tmp_path / "m", 1, model_type=family)
    shares = SHARES["3 unequal"]
    try:
        deal_of(model, shares)
    except UnsupportedError as error:
        pytest.skip(str(error))
    check(model, pack_parts(model, tmp_path / "parts", shares), shares)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_any_boards(tmp_path, shares):
    model = tiny.write_random(tmp_path / "m", 1, num_key_value_heads=2, vocab_size=333, attention_bias=True, **SIZES)
    parts = pack_parts(model, tmp_path / "parts", shares)
    check(model, parts, shares)
    check(model, parts, shares, pinned_nbytes=20_000, room=4096, slots=3)
    for part in parts:
        assert not verify(part).damage


def test_from_a_packed_model_the_same_bytes(tmp_path):
    model = tiny.write_random(tmp_path / "m", 1, num_key_value_heads=2, vocab_size=333, attention_bias=True, **SIZES)
    packed, shares = pack(model, tmp_path / "packed"), SHARES["3 unequal"]
    of_model, of_packed = pack_parts(model, tmp_path / "a", shares), pack_parts(packed, tmp_path / "b", shares)
    for one, other in zip(of_model, of_packed, strict=True):
        names = sorted(os.listdir(one))
        assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def test_quantized_and_metas_files(tmp_path):
    config = tiny.tiny_config(num_key_value_heads=4, vocab_size=333, hidden_size=256, intermediate_size=512,
                              head_dim=32, num_attention_heads=8)  # fmt: skip
    tensors = tiny.random_tensors(config)
    tiny.write_gguf(tmp_path / "m.gguf", config, tensors, "Q4_K")
    tiny.write_meta(tmp_path / "meta", config, tensors)
    for source in (tmp_path / "m.gguf", tmp_path / "meta"):
        parts = pack_parts(source, tmp_path / f"{source.name} parts", [1, 1, 0.2])
        check(source, parts, [1, 1, 0.2])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory):
    return pack_parts(model, tmp_path_factory.mktemp("parts") / "of", [1, 1, 1])


def test_alone_it_is_refused(parts, tmp_path, capsys):
    for command in (["run", "-p", "hi"], ["info"], ["plan"]):
        assert main([command[0], str(parts[1]), *command[1:]]) == 2
        told = capsys.readouterr().err
        assert (
            told.startswith(f"pyllama: {parts[1]}: part 2 of 3 of a model; it takes all of them")
            and told.count("\n") == 1
        )
    with pytest.raises(UnsupportedError, match="part 2 of 3"):
        pack(parts[1], tmp_path / "again")


def test_another_boards_part_is_refused(parts):
    open_part(str(parts[1]), 1, [2, 2, 2]).close()  # the same division in other numbers
    with pytest.raises(CheckpointError, match=r"1: part 2 of 3, expected part 3 of 3$"):
        open_part(str(parts[1]), 2, [1, 1, 1])
    with pytest.raises(CheckpointError, match=r"1: part 2 of 3, expected part 2 of 4$"):
        open_part(str(parts[1]), 1, [1, 1, 1, 1])
    with pytest.raises(CheckpointError, match=r"part 2 of 3, expected part 2 of 3 \(shares 1, 0.5, 1\)"):
        open_part(str(parts[1]), 1, [1, 0.5, 1])


def test_a_part_of_another_model_has_another_digest(parts, tmp_path):
    other = tiny.write_random(tmp_path / "m", 7)
    part = pack(other, tmp_path / "part", board=board_of(hosts_of([1, 1, 1]), 1))
    with open_part(str(part), 1, [1, 1, 1]) as ours, open_part(str(parts[1]), 1, [1, 1, 1]) as theirs:
        assert model_digest(ours, "f16") != model_digest(theirs, "f16")


def test_where_a_board_looks(model, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = parts_folder(str(model))
    assert folder == parts_folder("/elsewhere/m") == tmp_path / "pyllama" / "parts" / "m"
    assert parts_folder("org/name") == tmp_path / "pyllama" / "parts" / "org--name"
    with open_part(str(model), 1, [1, 1, 1]) as found:
        assert found.path == model  # all of it
    folder.mkdir(parents=True)
    (folder / part_name(1, [1, 1, 1])).symlink_to(parts[1])
    with open_part(str(model), 1, [1, 1, 1]) as found:
        assert found.share.place == 1
    with pytest.raises(
        HubError, match="elsewhere/m: no such file or folder.*; of its parts here is 2-of-3, expected 1-of-3"
    ):
        open_part("/elsewhere/m", 0, [1, 1, 1])
    here = [Host("localhost", place=1), Host("pi1", place=0), Host("pi3", place=2)]  # the front end is second
    with open_front("/elsewhere/m", here) as found:
        assert found.share.place == 1
    with open_front(model, here) as found:
        assert found.share is None
    with pytest.raises(HubError, match="of its parts here is 2-of-3, expected 2-of-2"):
        open_front("/elsewhere/m", [Host("localhost", place=1), Host("pi1", place=0)])


def test_unequal_shares_have_names_of_their_own():
    names = {part_name(0, shares) for shares in ([1, 1], [1, 2], [2, 1], [1, 1, 1])}
    assert len(names) == 4 and "1-of-2" in names
    assert part_name(0, [1, 2]) == part_name(0, [0.5, 1.0])


def test_after_a_kill_it_goes_on(model, tmp_path, monkeypatch):
    from pyllama.packing import journal

    monkeypatch.setattr(journal, "SHARD_NBYTES", 3_000)
    board = board_of(hosts_of([1, 1, 1]), 1)
    whole = pack(model, tmp_path / "whole", board=board)
    assert len(list(whole.glob("model-*"))) > 3

    class Killing:
        label = ""
        total = done = 0

        def skip(self, count):
            self.done += count

        def advance(self, count):
            self.done += count
            if self.done > self.total // 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(model, tmp_path / "part", board=board, progress=Killing())
    assert not (tmp_path / "part").exists()
    begun = {path.name: path.stat().st_ino for path in (tmp_path / "part.packing").glob("model-*")}
    assert begun
    pack(model, tmp_path / "part", board=board)
    names = sorted(os.listdir(whole))
    assert filecmp.cmpfiles(whole, tmp_path / "part", names, shallow=False) == (names, [], [])
    assert {name: (tmp_path / "part" / name).stat().st_ino for name in begun} == begun

    with pytest.raises(KeyboardInterrupt):
        pack(model, tmp_path / "other", board=board, progress=Killing())
    pack(model, tmp_path / "other", board=board_of(hosts_of([1, 1, 1]), 2))  # another part: begun anew
    with open_part(str(tmp_path / "other"), 2, [1, 1, 1]) as found:
        assert found.share.place == 2


def test_replace_would_lose_the_rest(model, tmp_path):
    with pytest.raises(RequestError, match="whose others would be lost"):
        pack(model, tmp_path / "part", replace=True, board=board_of(hosts_of([1, 1]), 0))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"place": 3}, "not a description of a board's part"),
        ({"shares": []}, "not a description of a board's part"),
        ({"shares": [1, -1, 1]}, "not a description of a board's part"),
        ({"digest": 5}, "not a description of a board's part"),
        ({"whole": {"model.norm.weight": ["BF16", [0]]}}, "not a description of a board's part"),
        ({"whole": {"no.such.tensor": ["BF16", [64, 64]]}}, "no.such.tensor"),
        ({"whole": {}}, "shape"),
        ({"whole": None}, "not a description of a board's part"),
    ],
)
def test_a_description_that_is_none(parts, tmp_path, monkeypatch, change, told):
    from pyllama.checkpoint import packed

    read = packed.read_header

    def changed(file):
        fields, stored = read(file)
        fields[SHARE] = json.dumps(json.loads(fields[SHARE]) | change)
        return fields, stored

    monkeypatch.setattr(packed, "read_header", changed)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(parts[1], shares=True)


def test_the_command(model, tmp_path, capsys):
    boards = tmp_path / "boards.txt"
    boards.write_text("pi1\npi2\npi3 share=0.5\n")
    for number, words in enumerate((["2/3"], ["2", "--hosts", str(boards)], ["pi3", "--hosts", "pi1,pi2,pi3=0.5"])):
        assert main(["pack", str(model), str(tmp_path / str(number)), "--quiet", "--for-host", *words]) == 0
    with open_checkpoint(tmp_path / "0", shares=True) as first, open_checkpoint(tmp_path / "1", shares=True) as second:
        assert str(first.share) == "part 2 of 3" and str(second.share) == "part 2 of 3 (shares 1, 1, 0.5)"
    with open_checkpoint(tmp_path / "2", shares=True) as third:
        assert (third.share.place, third.share.shares) == (2, (1.0, 1.0, 0.5))
    capsys.readouterr()
    for words in (["0/3"], ["4/3"], ["x"], ["2"], ["1/65"], ["2/2", "--hosts", str(boards)],
                  ["pi4", "--hosts", "pi1,pi2"], ["localhost", "--hosts", "localhost,localhost"]):  # fmt: skip
        assert main(["pack", str(model), str(tmp_path / "no"), "--quiet", "--for-host", *words]) == 2
        told = capsys.readouterr().err
        assert told.startswith("pyllama: --for-host: ") and told.count("\n") == 1
    assert main(["pack", str(model), str(tmp_path / "no"), "--quiet", "--hosts", str(boards)]) == 2
