"""A conversation's turns, taken back, taken up again, and computed ahead."""

import pytest

import pyllama


@pytest.fixture
def chat(chat_folder):
    with pyllama.load(chat_folder) as model, model.chat("be brief", max_tokens=4) as chat:
        yield chat


def test_a_turn_is_taken_back_and_said_again(chat):
    first = chat.send("one").read()
    second = chat.send("two").read()
    assert chat.undo() == "two" and [m["content"] for m in chat.messages] == ["be brief", "one", first]
    assert chat.send("two").read() == second
    assert [chat.undo(), chat.undo(), chat.undo()] == ["two", "one", None]
    assert chat.messages == [{"role": "system", "content": "be brief"}]


def test_the_system_message_can_be_changed(chat):
    answer = chat.send("one").read()
    chat.system = "be long"
    assert [m["content"] for m in chat.messages] == ["be long", "one", answer] and chat.system == "be long"
    chat.system = None
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] and chat.system is None
    chat.reset()
    assert chat.messages == []


def test_a_conversation_is_taken_up_again(chat, chat_folder):
    chat.send("one").read()
    kept, answer = chat.messages, chat.send("two").read()
    with pyllama.load(chat_folder) as model, model.chat(max_tokens=4) as other:
        other.restore(kept)
        assert other.system == "be brief"
        assert other.send("two").read() == answer


def test_warming_up_changes_no_text_and_leaves_less_to_compute(chat_folder):
    with pyllama.load(chat_folder) as model, model.chat("be brief", max_tokens=4) as chat:
        cold = chat.send("one").read()
    with pyllama.load(chat_folder) as model, model.chat("be brief", max_tokens=4) as chat:
        chat.warm_up()
        assert model.passes == 1
        chat.warm_up()  # nothing is left to do
        assert model.passes == 1
        generation = chat.send("one")
        assert generation.cached_tokens > len("be brief")
        assert generation.read() == cold


def test_warming_up_can_be_ended_in_its_midst(chat_folder):
    class EnoughError(Exception):
        pass

    def enough(layer):
        raise EnoughError

    with pyllama.load(chat_folder) as model, model.chat(max_tokens=4) as chat:
        with pytest.raises(EnoughError):
            chat.warm_up(enough)
        assert chat.send("one").cached_tokens == 0
        assert chat.send("one").read()


def test_variables_reach_the_template(tmp_path):
    from conftest import TEMPLATE, write_model

    template = TEMPLATE.replace("assistant\n{%", "assistant\n{{ extra }}{%")
    with pyllama.load(write_model(tmp_path / "m", template=template)) as model:
        messages = [{"role": "user", "content": "hello"}]
        plain = model.encode_prompt(messages)
        given = model.generate(messages, variables={"extra": "xyz"}, max_tokens=1).prompt_ids
        assert given == plain + list(b"xyz")
        with model.chat(max_tokens=1) as chat:
            chat.variables["extra"] = "xyz"
            assert chat.send("hello").prompt_ids == given
