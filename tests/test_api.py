"""The Python API on a tiny model: prompts of every kind, logits, chats that compute only what is new."""

import hashlib

import numpy as np
import pytest

import pyllama

PROMPT = "hello and hello"


@pytest.fixture(scope="module")
def model(chat_folder):
    with pyllama.load(chat_folder) as model:
        yield model


# --- generate ---


def test_generate_is_the_argmax_of_forward(model):
    ids = model.encode_prompt(PROMPT)
    generation = model.generate(PROMPT, max_tokens=20, ignore_eos=True)
    steps = list(generation)
    for step in steps:
        assert step.token_id == int(model.forward(ids)[-1].argmax())
        ids.append(step.token_id)
    assert "".join(step.text for step in steps) == generation.text
    assert generation.finish_reason == steps[-1].finish_reason == "length"


def test_text_token_ids_and_arrays_are_the_same_prompt(model):
    ids = model.tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, max_tokens=8).read()
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        assert model.generate(prompt, max_tokens=8).read() == expected


def test_messages_go_through_the_template(model):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    text = "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    assert model.encode_prompt(messages) == model.tokenizer.encode(text, add_special_tokens=False, parse_special=True)
    generation = model.generate(messages, max_tokens=3)
    assert generation.prompt_ids == model.encode_prompt(messages)
    assert generation.prompt_ids[0] == 257


def test_a_space_between_prompt_and_answer_is_kept_unless_it_is_a_chat(model, monkeypatch):
    """A SentencePiece model's first space belongs to a text that goes on, and not to an answer."""
    asked, stream = [], model.tokenizer.stream

    def record(*, continuation):
        asked.append(continuation)
        return stream(continuation=continuation)

    monkeypatch.setattr(model.tokenizer, "stream", record)
    model.generate("hello", max_tokens=1).read()
    model.generate([104, 101], max_tokens=1).read()
    model.generate([{"role": "user", "content": "hello"}], max_tokens=1).read()
    with model.chat(max_tokens=1) as chat:
        chat.send("hello").read()
    assert asked == [True, True, False, False]


def test_special_tokens_written_out_in_a_prompt_count(model):
    assert 257 in model.encode_prompt("a<|im_start|>b")


def test_fingerprint_is_of_the_sampled_rows(model):
    generation = model.generate(PROMPT, max_tokens=5, ignore_eos=True, fingerprint=True)
    generation.read()
    rows = model.forward(generation.prompt_ids + generation.token_ids[:-1])[len(generation.prompt_ids) - 1 :]
    assert generation.fingerprint.hexdigest() == hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()


def test_threads_do_not_change_a_bit(chat_folder):
    prints = set()
    for threads in (1, 2, 3):
        with pyllama.load(chat_folder, threads=threads) as model:
            generation = model.generate(PROMPT, max_tokens=10, ignore_eos=True, fingerprint=True)
            generation.read()
            prints.add(generation.fingerprint.hexdigest())
    assert len(prints) == 1


def test_a_seed_is_a_text(model):
    def text(seed):
        return model.generate(PROMPT, max_tokens=20, temperature=2.0, top_p=0.9, seed=seed).read()

    assert text(3) == text(3)
    assert text(3) != text(4)


def test_logprobs_are_those_of_forward(model):
    generation = model.generate(PROMPT, max_tokens=3, ignore_eos=True, logprobs=4)
    steps = list(generation)
    rows = model.forward(generation.prompt_ids + generation.token_ids[:-1])[len(generation.prompt_ids) - 1 :]
    for row, step in zip(rows.astype(np.float64), steps, strict=True):
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:4]
        assert [token_id for token_id, _ in step.top_logprobs] == best
        assert max(abs(value - logprobs[i]) for i, value in step.top_logprobs) < 1e-6
        assert step.logprob == step.top_logprobs[0][1]


def test_stop_strings(model):
    whole = model.generate(PROMPT, max_tokens=30, ignore_eos=True).read()
    stop = whole[5:8]
    generation = model.generate(PROMPT, max_tokens=30, ignore_eos=True, stop=stop)
    assert generation.read() == whole[: whole.index(stop)]
    assert generation.finish_reason == "stop"


def test_a_generation_that_is_closed_early_gives_its_pages_back(model):
    for _ in range(3):
        generation = model.generate(PROMPT, max_tokens=50, ignore_eos=True)
        next(generation)
        generation.close()
    before = model.decoder.cache.pool.nbytes
    for _ in range(20):
        with model.generate(PROMPT, max_tokens=50, ignore_eos=True) as generation:
            next(generation)
    assert model.decoder.cache.pool.nbytes == before


def test_two_generations_at_once_do_not_meet(model):
    expected = [model.generate(text, max_tokens=10, ignore_eos=True).read() for text in ("hello", "and")]
    first, second = (model.generate(text, max_tokens=10, ignore_eos=True) for text in ("hello", "and"))
    for _ in zip(first, second):
        pass
    assert [first.text, second.read()] == expected


# --- forward ---


def test_forward_gives_a_row_a_token(model):
    ids = model.encode_prompt(PROMPT)
    logits = model.forward(ids)
    assert logits.shape == (len(ids), model.config.vocab_size)
    assert logits.dtype == np.float32
    for t in range(1, len(ids)):
        assert np.array_equal(model.forward(ids[:t])[-1], logits[t - 1])


def test_forward_in_several_passes_gives_the_same_bits(chat_folder):
    ids = [1 + i % 250 for i in range(70)]
    with pyllama.load(chat_folder, context_length=80) as model:
        whole = model.forward(ids)
        model.decoder.max_pass_tokens = 16
        passes = model.passes
        assert np.array_equal(model.forward(ids), whole)
        assert model.passes == passes + 5


def test_forward_of_nothing(model):
    assert model.forward([]).shape == (0, model.config.vocab_size)


# --- load ---


def test_the_context_is_the_models_own_up_to_4096(chat_folder, model):
    assert model.config.max_position_embeddings == 8192
    assert model.context_length == 4096
    with pyllama.load(chat_folder, context_length=8192) as long:
        assert long.context_length == 8192


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context_length": 0}, "context_length: 0, expected 1 to 8192"),
        ({"context_length": "8"}, "context_length: '8', expected"),
        ({"kv_dtype": "q8"}, "kv_dtype: 'q8', expected f16 or f32"),
        ({"threads": 0}, "threads: 0, expected 1 to"),
        ({"threads": True}, "threads: True, expected 1 to"),
        ({"memory": "lots"}, "memory: "),
    ],
)
def test_load_names_the_argument_that_is_wrong(chat_folder, options, message):
    with pytest.raises(pyllama.RequestError, match=message):
        pyllama.load(chat_folder, **options)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "prompt: no tokens"),
        ("", "prompt: no tokens"),
        ([-1], "token id: -1, expected 0 to"),
        ([10**6], "token id: 1000000, expected 0 to"),
        ([1.5], "prompt: expected text"),
        ([[1], [2, 3]], "prompt: expected text"),
        ([[1, 2], [3, 4]], "prompt: expected text"),
        (["a", "b"], "prompt: expected text"),
        ([True], "prompt: expected text"),
        (None, "prompt: expected text"),
        (7, "prompt: expected text"),
        ({"role": "user", "content": "a"}, "prompt: expected text"),
    ],
)
def test_prompts_that_are_none(model, prompt, message):
    with pytest.raises(pyllama.RequestError, match=message):
        model.generate(prompt)


def test_options_are_checked_before_anything_runs(model):
    passes = model.passes
    with pytest.raises(pyllama.RequestError, match="^top_p: "):
        model.generate("a", top_p=3)
    with pytest.raises(pyllama.RequestError, match="^heat: no such sampling option"):
        model.generate("a", heat=3)
    with pytest.raises(pyllama.ContextOverflowError, match="prompt is too long: 5000 tokens, .* 4096"):
        model.generate([1] * 5000)
    with pytest.raises(pyllama.ContextOverflowError, match="token_ids: 5000 tokens, the context holds 4096"):
        model.forward([1] * 5000)
    assert model.passes == passes


def test_a_closed_model_says_so(chat_folder):
    model = pyllama.load(chat_folder)
    model.close()
    model.close()
    for use in (lambda: model.generate("a"), lambda: model.forward([1]), lambda: model.chat()):
        with pytest.raises(pyllama.PyllamaError, match="model: closed"):
            use()


def test_every_public_name_is_there():
    for name in pyllama.__all__:
        assert getattr(pyllama, name) is not None
        assert name in dir(pyllama)
    with pytest.raises(AttributeError):
        pyllama.nonsense


# --- chat ---


def whole_prompt(model, messages):
    return model.generate(messages, max_tokens=8, ignore_eos=True)


def test_a_chat_says_what_the_whole_conversation_would(model):
    """With the history in the cache, the answers are those of a prompt computed from nothing."""
    with model.chat("be brief", max_tokens=8, ignore_eos=True) as chat:
        for content in ("hello", "and then?", "hello again"):
            expected = whole_prompt(model, [*chat.messages, {"role": "user", "content": content}])
            assert chat.send(content).read() == expected.read()
        assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 3]


def test_a_turn_computes_only_what_is_new(model):
    with model.chat(max_tokens=4, stop_token_ids=[]) as chat:
        first = chat.send("hello")
        first.read()
        second = chat.send("hello")
        # The answer's text may not encode to the tokens that were sampled; the prompt before it does.
        assert second.cached_tokens >= first.prompt_tokens
        passes = model.passes
        next(second)
        assert model.passes == passes + 1


def test_an_answer_that_is_closed_early_is_history_as_far_as_it_was_shown(model):
    with model.chat(ignore_eos=True) as chat:
        generation = chat.send("hello")
        while not generation.text.strip():
            next(generation)
        generation.close()
        assert chat.messages[-1] == {"role": "assistant", "content": generation.text}
        expected = whole_prompt(model, [*chat.messages, {"role": "user", "content": "on"}])
        follow_up = chat.send("on")
        for step in expected:
            assert next(follow_up).token_id == step.token_id


def test_a_turn_without_an_answer_is_forgotten(model):
    with model.chat(max_tokens=4) as chat:
        chat.send("hello").close()
        assert chat.messages == []
        with pytest.raises(pyllama.ContextOverflowError):
            chat.send("hello " * 5000)
        assert chat.messages == []
        expected = model.generate([{"role": "user", "content": "and"}], max_tokens=4).read()
        assert chat.send("and").read() == expected


def test_an_interrupt_in_a_pass_leaves_the_chat_right(model, monkeypatch):
    extend = model.decoder.extend
    countdown = [3]

    def interrupted(*arguments):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise KeyboardInterrupt
        return extend(*arguments)

    with model.chat(ignore_eos=True, max_tokens=8) as chat:
        monkeypatch.setattr(model.decoder, "extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.send("hello").read()
        monkeypatch.undo()
        messages = [*chat.messages, {"role": "user", "content": "on"}]
        assert chat.send("on").read() == whole_prompt(model, messages).read()


def test_reset_forgets_all_but_the_system_message(model):
    with model.chat("be brief", max_tokens=4) as chat:
        first = chat.send("hello").read()
        chat.reset()
        assert chat.messages == [{"role": "system", "content": "be brief"}]
        assert chat.send("hello").read() == first


def test_a_template_of_a_file_takes_the_place_of_the_models_own(base_folder, chat_folder, tmp_path):
    file = tmp_path / "plain.jinja"
    file.write_text("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    messages = [{"role": "user", "content": "hello"}]
    told = []
    for folder in (base_folder, chat_folder):  # the same model, without a template and with one
        with pyllama.load(folder, chat_template=file) as model:
            text = model.tokenizer.apply_chat_template(messages)
            assert text.endswith("user: hello\nassistant:")
            told.append(model.generate(messages, max_tokens=5).read())
            with model.chat(max_tokens=5) as chat:
                assert chat.send("hello").read() == told[-1]
    assert told[0] == told[1]
    for wrong, message in ((tmp_path / "no", "no such file"), (tmp_path, "directory")):
        with pytest.raises(pyllama.PyllamaError, match=message):
            pyllama.load(base_folder, chat_template=wrong)
    file.write_bytes(b"\xff")
    with pytest.raises(pyllama.PyllamaError, match="no UTF-8"):
        pyllama.load(base_folder, chat_template=file)


def test_a_model_without_a_template_cannot_chat(base_folder):
    with pyllama.load(base_folder) as model:
        with pytest.raises(pyllama.RequestError, match="no chat template"):
            model.chat()
        with pytest.raises(pyllama.PyllamaError, match="template"):
            model.generate([{"role": "user", "content": "a"}])
