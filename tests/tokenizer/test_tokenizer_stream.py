"""Streaming: the pieces are whole characters, and together they are decode(ids), for any ids at all."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyllama.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


def load(folder, source, target):
    (folder / target).write_bytes((GOLDEN / source).read_bytes())
    config = SimpleNamespace(vocab_size=None, model_type="llama", bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=folder, format="huggingface", metadata={}, config=config))


@pytest.fixture(
    params=[("llama3.json", "tokenizer.json"), ("pieces.model", "tokenizer.model")], ids=["bytes", "pieces"]
)
def tokenizer(request, tmp_path):
    return load(tmp_path, *request.param)


def test_pieces_add_up_to_decode(tokenizer):
    chooser = random.Random(1)
    single = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
    for _ in range(2000):
        ids = [
            chooser.choice(single) if chooser.random() < 0.6 else chooser.randrange(tokenizer.vocab_size)
            for _ in range(chooser.randint(1, 12))
        ]
        for skip in (True, False):
            stream = tokenizer.stream(skip_special_tokens=skip)
            pieces = [*map(stream.push, ids), stream.finish()]
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
            for piece in pieces:
                piece.encode()  # no surrogates: whole characters only


def test_text_is_shown_as_soon_as_it_is_certain(tokenizer):
    """Every character but an unfinished one: what is held back is always the beginning of a character."""
    text = "añ漢👩‍👧 ok"
    for encoded in (text, "x" + text):
        stream = tokenizer.stream()
        shown, data = "", b""
        for token_id in tokenizer.encode(encoded, add_special_tokens=False):
            data += tokenizer.token_bytes(token_id)
            shown += stream.push(token_id)
            certain = data.decode("utf-8", "ignore").removeprefix(" ")  # "ignore" drops the unfinished character
            assert shown == certain
        assert shown == encoded
        assert stream.finish() == ""


def test_half_a_character_at_the_end_is_replaced_once_nothing_follows(tokenizer):
    lead = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xf0")
    letter = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"a")
    stream = tokenizer.stream()
    assert stream.push(lead) == ""
    assert stream.push(letter) == "\ufffda"
    assert stream.push(lead) == ""
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_not_shown(tokenizer):
    special = max(tokenizer.special_ids)
    letter = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"a")
    assert tokenizer.decode([special, letter, special]) == "a"
    shown = tokenizer.token_bytes(special).decode()
    assert tokenizer.decode([letter, special], skip_special_tokens=False) == "a" + shown


def test_first_space_is_dropped_unless_text_goes_on(tmp_path):
    tokenizer = load(tmp_path, "pieces.model", "tokenizer.model")
    ids = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a"
    stream = tokenizer.stream(continuation=True)
    assert "".join(map(stream.push, ids)) == " a"
    assert tokenizer.decode([*ids, *ids]) == "a a"
