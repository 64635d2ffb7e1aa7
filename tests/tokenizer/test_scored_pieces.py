"""Pieces with scores: the ids of the sentencepiece library itself, and nothing that could end the process."""

import io
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece

from pyllama.errors import TokenizerError
from pyllama.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
WORDS = "the model reads token after token and one word of it or another of them ends a line of text".split()
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def load(path, form="meta", metadata=None):
    config = SimpleNamespace(vocab_size=None, model_type="llama", bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=path, format=form, metadata=metadata or {}, config=config))


def message(number: int, data: bytes) -> bytes:
    size = len(data)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return message(1, message(1, data) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


def model(pieces, algorithm: int = 2, byte_fallback: bool = False, unk_id: int = 0, prefix: bool = True) -> bytes:
    trainer = b"\x18%c\x98\x02%c\xc0\x02%c" % (algorithm, byte_fallback, unk_id)
    normalizer = message(1, b"identity") + b"\x18%c\x20\x00\x28\x01" % prefix
    return b"".join(piece(*entry) for entry in pieces) + message(2, trainer) + message(3, normalizer)


def written(folder: Path, data: bytes):
    (folder / "tokenizer.model").write_bytes(data)
    return folder


def trained(algorithm: str, byte_fallback: bool, **more) -> bytes:
    """A model of English-like lines, with user-defined pieces."""
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} | more
    chooser, out = random.Random(3), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chooser.choices(WORDS, k=9)) + " é 東京 12" for _ in range(400)]),
        model_writer=out, model_type=algorithm, vocab_size=110 + 256 * byte_fallback, byte_fallback=byte_fallback,
        hard_vocab_limit=False, **options,
        user_defined_symbols=["@@", "<tool>"], control_symbols=["[INST]"], num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def texts(count: int):
    chooser = random.Random(4)
    parts = [*WORDS, " ", "  ", "\n", "12", "é", "東京", "☃", "☃☃", "👩‍👧", "@@", "<tool>", "\0", "\u2581", "\ufdd0"]
    for _ in range(count):
        yield "".join(chooser.choice(parts) + chooser.choice(["", " "]) for _ in range(chooser.randint(0, 40)))


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_ids_are_those_of_the_library_on_the_file_itself(tmp_path, algorithm, byte_fallback):
    data = trained(algorithm, byte_fallback)
    ours, theirs = load(written(tmp_path, data)), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert (theirs.piece_to_id("<0x00>") != theirs.unk_id()) == byte_fallback
    for text in texts(400):
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, repr(text)
        if byte_fallback:
            assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf"])
@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_models_that_normalize(tmp_path, algorithm, rule):
    """SentencePiece's own defaults: characters to NFKC, one space at a time."""
    data = trained(algorithm, algorithm == "bpe", normalization_rule_name=rule, remove_extra_whitespaces=True)
    ours, theirs = load(written(tmp_path, data)), sentencepiece.SentencePieceProcessor(model_proto=data)
    wide = ["\u3000", "ﬁ", "Ｔｈｅ model", "①", "e\u0301", "ｶﾞ", "\u200b", "\t", "…", "Straße", "\x7f"]
    for text in [*texts(200), *(a + b + c for a in wide for b in (" ", "", "x") for c in wide)]:
        text = text.replace("\u2581", "")
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), repr(text)
    with pytest.raises(TokenizerError, match="surrogate"):
        ours.encode("a\ud800")


def charsmap(data: bytes) -> tuple[int, int]:
    """Where in a model of nmt_nfkc its table begins and ends."""
    start = data.index(b"\x0a\x08nmt_nfkc\x12") + 11
    size = shift = 0
    while True:
        size |= (data[start] & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if data[start - 1] < 0x80:
            return start, start + size


def test_unused_pieces_are_steps_on_the_way_and_nothing_else(tmp_path):
    pieces = [*SPECIAL, ("▁", -9), ("a", -8), ("b", -7), ("ab", -1, UNUSED), ("aba", -2)]
    data = model(pieces)
    ours, theirs = load(written(tmp_path, data)), sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in ("ab", "aba", "abab", "abaab"):
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)
    assert ours.encode("ab", add_special_tokens=False) == [3, 4, 5]
    assert ours.encode("aba", add_special_tokens=False) == [3, 7]


def test_a_control_piece_of_one_character_is_no_text(tmp_path):
    pieces = [*SPECIAL, ("▁", -1, NORMAL), ("a", -2, NORMAL), ("#", 0, CONTROL), ("$", 0, USER_DEFINED)]
    ours = load(written(tmp_path, model(pieces)))
    assert ours.encode("a#", add_special_tokens=False) == [3, 4, 0]
    assert ours.encode("a#", add_special_tokens=False, parse_special=True)[-1] == 5
    assert ours.encode("a$", add_special_tokens=False) == [3, 4, 6]


@pytest.mark.parametrize("algorithm", [1, 2])
def test_what_a_file_lacks_is_not_asked_for(tmp_path, algorithm):
    """No unknown piece, one of another type, two of them, byte pieces but not all: each is a file that loads."""
    letters = [("▁", -1.0, NORMAL), ("a", -2.0, NORMAL)]

    def ids(pieces, text="a☃☃a", **more):
        return load(written(tmp_path, model(pieces, algorithm, **more))).encode(text, add_special_tokens=False)

    assert ids([*letters, ("<s>", 0, CONTROL)]) == [0, 1, 1], "no unknown piece"
    assert ids([("<unk>", 0, UNKNOWN), *letters]) == [1, 2, 0, 2], "a run of unknown characters is one"
    assert ids([("<unk>", 0, UNKNOWN), ("<bad>", 0, UNKNOWN), *letters], unk_id=1) == [2, 3, 1, 3], "two"
    assert ids([*letters, ("<unk>", 0, NORMAL)], unk_id=2) == [0, 1, 1], "of the type of text"
    assert ids([("<unk>", 0, UNKNOWN), *letters, *BYTES[:-1]], byte_fallback=True) == [1, 2, 0, 2], "a byte is missing"
    assert ids([("<unk>", 0, UNKNOWN), *letters, *BYTES], "a☃") == [1, 2, 3 + 0xE2, 3 + 0x98, 3 + 0x83]


REFUSED = {
    "a score that is no number": [("a", float("nan"))],
    "a score that is no number ": [("a", float("inf"))],
    "are both b'a'": [("a", -1), ("a", -2)],
    "no UTF-8": [(b"\xff", 0)],
    "1025 bytes": [("a" * 1025, 0)],
    "is no text with a score": [("", 0)],
    "has type": [("b", 0, 7)],
    "is b'a.x00b' with score": [("a\0b", 0)],
    "score 1e.30": [("b", 1e30)],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_library_does_not_bear_is_refused_in_one_line(tmp_path, reason):
    data = model([*SPECIAL, ("▁", -1), *REFUSED[reason]], algorithm=1)
    with pytest.raises(TokenizerError, match=reason.strip()) as caught:
        load(written(tmp_path, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["nan", "empty", "duplicate", "short", "words"])
def test_damaged_pieces_of_gguf(change):
    tokens, scores, types = ["<unk>", "<s>", "</s>", "▁", "a"], [0.0, 0.0, 0.0, -1.0, -2.0], [2, 3, 3, 1, 1]
    if change == "nan":
        scores[4] = float("nan")
    elif change == "short":
        scores.pop()
    else:
        tokens[4] = {"empty": "", "duplicate": "▁", "words": "a" * 2000}[change]
    arrays = {"scores": np.array(scores, np.float32), "token_type": np.array(types)}
    metadata = {"model": "llama", "tokens": tokens, **arrays}
    with pytest.raises(TokenizerError) as caught:
        load("m.gguf", "gguf", {f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert "\n" not in str(caught.value)


_DAMAGE = """
import random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_scored_pieces import charsmap, load, model, written, SPECIAL, BYTES, NORMAL
from pyllama.errors import TokenizerError
folder, seed = Path(sys.argv[2]), int(sys.argv[3])
chooser = random.Random(seed)
refused = 0
for number in range(200):
    algorithm = chooser.choice([1, 2])
    if number % 10 == 0:  # the table of characters: units of its trie, its size, the end of its strings
        data = bytearray(Path(sys.argv[6]).read_bytes())
        start, stop = charsmap(data)
        for _ in range(chooser.choice([1, 1, 4, 400])):
            at = chooser.choice([start, stop - 1, *[chooser.randrange(start + 4, stop) for _ in range(8)]])
            data[at] = chooser.randrange(256)
    elif number % 2:
        data = bytearray(Path(sys.argv[4 + number // 2 % 2]).read_bytes())
        for _ in range(chooser.randint(1, 30)):
            data[chooser.randrange(len(data))] = chooser.choice([0, 1, 3, 0x7f, 0x80, 0xff, chooser.randrange(256)])
        if chooser.random() < 0.2:
            del data[chooser.randrange(len(data)):]
    else:
        names = ["\\u2581", "a", "b", "ab", "\\0", "\\ufdd0", "\\ufdd05", "<0x41>", "\\u2581\\u2581", "", "<unk>"]
        scores = [0.0, -0.0, 1e9, -1e9, 3e38, -3e38, 1e-45, float("nan"), float("inf"), -1.0, -2.0, -3.0]
        scores = scores if number % 8 == 0 else scores[:4] + scores[9:]
        pieces = [(name, chooser.choice(scores), chooser.choice([1, 1, 1, 1, 2, 3, 4, 5, 6]))
                  for name in chooser.sample(names, chooser.randint(1, len(names)))]
        pieces += chooser.choice([[], SPECIAL, BYTES, BYTES[3:], SPECIAL + BYTES])
        data = model(pieces, algorithm, chooser.random() < 0.5, chooser.choice([0, 1, 3, 200]))
    try:
        tokenizer = load(written(folder, bytes(data)))
        characters = "".join(map(chr, range(1, 0xD800)))
        for text in (characters, "ab the model\\0\\u2581 \\u2603 \\ufdd05<0x41>", "aab" * 500, "", "\\u2603" * 300):
            tokenizer.encode(text, parse_special=True)
    except TokenizerError as error:
        refused += 1
        assert "\\n" not in str(error), error
print(refused)
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_damage_ends_the_process(tmp_path, seed):
    for name in ("unigram", "bpe"):
        (tmp_path / name).write_bytes(trained(name, name == "bpe"))
    (tmp_path / "table").write_bytes(trained("unigram", False, normalization_rule_name="nmt_nfkc"))
    files = [tmp_path / name for name in ("unigram", "bpe", "table")]
    arguments = [str(Path(__file__).parent), tmp_path, str(seed), *files]
    done = subprocess.run([sys.executable, "-c", _DAMAGE, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 50 < int(done.stdout) < 200


def test_threads_may_encode_at_once(tmp_path):
    tokenizer = load(written(tmp_path, trained("bpe", True)))
    asked = list(texts(60))
    expected = [tokenizer.encode(text) for text in asked]
    got: dict[int, list[list[list[int]]]] = {}

    def run(number: int) -> None:
        got[number] = [[tokenizer.encode(text) for text in asked] for _ in range(20)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [expected] * 20 for number in range(3)}


def test_long_texts_are_cut_where_no_merge_crosses(tmp_path):
    """The ids of a text of a megabyte are those of its parts; with a piece across words, it is not cut at all."""
    data = trained("bpe", True)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    text = " ".join(random.Random(5).choices([*WORDS, "", "☃", "\u2581", "a" * 300], k=60_000))
    assert load(written(tmp_path, data)).encode(text, add_special_tokens=False) == theirs.encode(text)
    crossing = model([*SPECIAL, ("▁", -9, NORMAL), ("a", -8, NORMAL), ("▁a", -7, NORMAL), ("a▁", -1, NORMAL)])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=crossing)
    text = "a " * 70_000
    assert load(written(tmp_path, crossing)).encode(text, add_special_tokens=False) == theirs.encode(text)


def test_only_models_of_pieces_load_the_library(tmp_path):
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "tokenizer.model").write_bytes((GOLDEN / "pieces.model").read_bytes())
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tokenizer.json").write_bytes((GOLDEN / "spm-new.json").read_bytes())
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from pyllama.tokenizer import load_tokenizer\n"
        "config = N(vocab_size=None, model_type='llama', bos_token_id=None, eos_token_ids=())\n"
        "load_tokenizer(N(path=Path(sys.argv[1]), format='huggingface', metadata={}, config=config)).encode('a')\n"
        "print('sentencepiece' in sys.modules)"
    )
    for name, loaded in (("json", "False\n"), ("pieces", "True\n")):
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == (loaded, "")


def test_a_missing_library_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match="need the package sentencepiece, which is not here"):
        load(written(tmp_path, model([*SPECIAL, ("▁", -1)])))
