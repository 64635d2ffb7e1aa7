"""`pyllama chat`: through a pipe a turn a line, on a terminal a conversation with commands."""

import json
import re

from command_line import pyllama_run
from conftest import TEMPLATE, write_model

import pyllama
from pyllama.generation.defaults import CONVERSATION
from pyllama.printable import visible

# --- through a pipe ---


def test_chat_answers_every_line(chat_folder):
    done = pyllama_run(
        "chat",
        chat_folder,
        "--max-tokens",
        5,
        "--temperature",
        0,
        input=b"hello\n\nand you?\n/reset\nhello\n/exit\nnot read\n",
    )
    assert done.returncode == 0
    with pyllama.load(chat_folder) as model, model.chat(max_tokens=5) as chat:
        first, second = chat.send("hello").read(), chat.send("and you?").read()
    assert done.stdout.decode() == f"{first}\n{second}\n{first}\n"


def test_chat_through_a_pipe_ends_at_the_first_error(chat_folder):
    done = pyllama_run("chat", chat_folder, "--context", 40, input=b"x" * 50 + b"\nhello\n")
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"pyllama: prompt is too long: ") and done.stderr.count(b"\n") == 1


# --- on a terminal ---


def test_a_conversation_on_a_terminal(terminal, chat_folder):
    with pyllama.load(chat_folder) as model, model.chat(max_tokens=5, seed=3, **CONVERSATION) as chat:
        answer = chat.send("hello").read()
    t = terminal("chat", chat_folder, "--max-tokens", 5, "--seed", 3)
    t.read_until("> ")
    t.type("hello\n")
    seen = t.read_until(r"\n> ")
    assert next(line for line in visible(answer).splitlines() if line.strip()).strip() in seen
    t.type("/nonsense\n")
    t.read_until("no such command")
    t.read_until("> ")
    t.type("/help\n")
    t.read_until("/clear")
    t.read_until("\n> ")
    t.type("\x04")
    assert t.wait() == 0
    assert "Traceback" not in t.output


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, chat_folder):
    t = terminal("chat", chat_folder, "--ignore-eos", "--temperature", 3, "--seed", 1)
    t.read_until("> ")
    t.type("hello\n")
    t.read_until("hello\n")
    t.read_until(r"\S")  # the answer has begun
    t.type("\x03")
    t.read_until("\n> ")
    t.type("/reset\n")  # the program is still there, and takes commands
    t.read_until("> ")
    t.type("again\n")
    t.read_until("again\n")
    t.read_until(r"\S")
    t.type("\x03")
    t.read_until("\n> ")
    t.interrupt_until("> ")  # at the prompt: a new one
    t.type("\x04")
    assert t.wait() == 0
    assert "Traceback" not in t.output


def test_an_error_on_a_terminal_leaves_the_prompt(terminal, chat_folder):
    t = terminal("chat", chat_folder, "--context", 40, "--max-tokens", 2)
    t.read_until("> ")
    t.type("x" * 60 + "\n")
    t.read_until(r"pyllama: prompt is too long: \d+ tokens, this model's maximum context length is 40.*/clear")
    t.read_until("> ")
    t.type("/exit\n")
    assert t.wait() == 0


def test_a_message_of_several_lines(terminal, chat_folder):
    with pyllama.load(chat_folder) as model, model.chat(max_tokens=4, temperature=0) as chat:
        expected = chat.send("one\ntwo").read()
    t = terminal("chat", chat_folder, "--max-tokens", 4, "--temp", 0)
    t.read_until("> ")
    t.type('"""\none\ntwo\n"""\n')
    seen = t.read_until(r"\n> ")
    visible = "".join(c for c in expected if c.isalnum())
    assert visible in "".join(c for c in seen if c.isalnum())
    t.type("\x04")
    assert t.wait() == 0


# --- messages ---


def talk(terminal, folder, *more, **environment):
    t = terminal("chat", folder, "-n", 4, *more, TERM="xterm", NO_COLOR="1", **environment)
    t.read_until("> ")
    return t


def say(t, text, until="> "):
    """Type a line; what comes up to the next prompt."""
    t.type(text + "\r")
    t.read_until(r"\x1b\[\?2004l")  # readline has the line
    return t.read_until(until)


def messages(t):
    """The conversation so far."""
    say(t, "/save saved")
    with open(t.environment["XDG_STATE_HOME"] + "/pyllama/conversations/saved.json") as file:
        return json.load(file)["messages"]


def asked(t):
    return [message["content"] for message in messages(t) if message["role"] == "user"]


def leave(t):
    t.type("\x04")
    assert t.wait() == 0
    assert "Traceback" not in t.output + t.seen


def test_pasted_lines_are_one_message(terminal, chat_folder):
    t = talk(terminal, chat_folder)
    say(t, "\x1b[200~one\rtwo\rthree\x1b[201~")
    say(t, "four")
    assert asked(t) == ["one\ntwo\nthree", "four"]
    leave(t)


def test_quotes_hold_several_lines(terminal, chat_folder):
    t = talk(terminal, chat_folder)
    t.type('"""one\r')
    t.read_until(r"\.\.\. ")
    t.type("/two\r")
    t.read_until(r"\.\.\. ")
    say(t, 'three"""')
    say(t, '"""four"""')
    assert asked(t) == ["one\n/two\nthree", "four"]
    leave(t)


def test_the_history_is_there_next_time(terminal, chat_folder, tmp_path):
    t = talk(terminal, chat_folder)
    say(t, "\x1b[200~one\rtwo\x1b[201~")
    leave(t)
    file = tmp_path / "state/pyllama/history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["one\ntwo"]
    again = talk(terminal, chat_folder)
    say(again, "\x1b[A")
    assert asked(again) == ["one\ntwo"]
    leave(again)
    before = file.read_bytes()
    silent = talk(terminal, chat_folder, "--no-history")
    say(silent, "secret")
    leave(silent)
    assert file.read_bytes() == before


def test_tab_completes_commands(terminal, chat_folder):
    t = talk(terminal, chat_folder)
    say(t, "hello")
    t.type("/und\t")
    t.read_until("/undo ")
    say(t, "")
    assert asked(t) == []
    t.type("/set tempe\t")
    t.read_until("/set temperature")
    assert "temperature 0.25," in say(t, " 0.25")
    leave(t)


# --- commands ---


def test_commands_change_the_conversation(terminal, chat_folder):
    t = talk(terminal, chat_folder, "--system", "first")
    say(t, "one")
    say(t, "two")
    assert asked(t) == ["one", "two"]
    assert "forgotten: two" in say(t, "/undo")
    assert asked(t) == ["one"]
    before = messages(t)
    say(t, "/regenerate")
    after = messages(t)
    assert [m["role"] for m in after] == [m["role"] for m in before] and after[:2] == before[:2]
    say(t, "/edit", until="> one")
    say(t, " more")
    assert asked(t) == ["one more"]
    assert "system message from now on" in say(t, "/system second")
    assert "second" in say(t, "/system")
    assert messages(t)[0] == {"role": "system", "content": "second"}
    say(t, "/save kept")
    assert "forgotten: 2 messages" in say(t, "/clear")
    assert "nothing to forget" in say(t, "/clear")
    assert messages(t) == [{"role": "system", "content": "second"}]
    say(t, "/load kept")
    assert asked(t) == ["one more"]
    say(t, "/system -")
    assert [m["role"] for m in messages(t)] == ["user", "assistant"]
    leave(t)


def test_what_is_sampled_with_can_be_changed(terminal, chat_folder):
    t = talk(terminal, chat_folder, "--verbose")
    assert "sampling: temperature 0.7, top-k 40, top-p 0.95, min-p 0.05, max-tokens 4" in t.seen
    assert "top-k 7" in say(t, "/set top-k 7")
    assert "repetition-penalty 1.5" in say(t, "/set parameter repeat_penalty 1.5")
    assert "max-tokens 3" in say(t, "/set num_predict 3")
    assert "pyllama: temperature: 900.0, expected" in say(t, "/set temp 900").replace("900,", "900.0,")
    assert "expected a number" in say(t, "/set temp hot")
    assert "top-k 40" in say(t, "/set top-k default")
    assert re.search(r"decode 2 tokens", say(t, "hello"))
    assert "context: " in say(t, "/stats")
    leave(t)


def test_other_programs_words_and_mistakes(terminal, chat_folder):
    t = talk(terminal, chat_folder)
    assert "did you mean /undo?" in say(t, "/undu")
    assert "cannot ask for that" in say(t, "/set nothink")
    assert "wrap: off" in say(t, "/set nowordwrap")
    assert "/regenerate" in say(t, "/?")
    assert "there is no message yet" in say(t, "/regenerate")
    assert "there is no answer yet" in say(t, "/copy")
    assert "no such file" in say(t, "/load nothing")
    say(t, "/etc/passwd is a file")  # no command
    assert asked(t) == ["/etc/passwd is a file"]
    assert "]52;c;" in say(t, "/copy")
    t.type("/bye\r")
    assert t.wait() == 0


# --- what it looks like ---


def test_colour_is_left_out_where_nobody_wants_it(terminal, chat_folder):
    bold = terminal("chat", chat_folder, "--quiet", TERM="xterm")
    bold.read_until(r"\x1b\[1m> \x1b\[22m")
    plain = terminal("chat", chat_folder, "--quiet", TERM="xterm", NO_COLOR="1")
    plain.read_until("> ")
    dumb = terminal("chat", chat_folder, "--quiet")
    dumb.read_until("> ")
    assert "\x1b[1m" not in plain.seen and "\x1b" not in dumb.seen


THINKS = TEMPLATE.replace("assistant\n{%", "assistant\n{% if enable_thinking is not false %}<think>\n{% endif %}{%")


def test_thinking_is_dim_or_folded_or_not_asked_for(terminal, tmp_path):
    folder = write_model(tmp_path / "thinks", template=THINKS)
    t = terminal("chat", folder, "-n", 9, "--ignore-eos", TERM="xterm")
    t.read_until("> ")
    seen = say(t, "hello", until=r"\x1b\[1m> ")
    assert "\x1b[2m" in seen and "\x1b[22m" in seen
    seen = say(t, "/think", until=r"\x1b\[1m> ")
    assert "\x1b[2m" in seen
    assert "thoughts: folded" in say(t, "/think fold", until=r"\x1b\[1m> ")
    assert "[thought for 0 s; /think shows it]" in say(t, "hello", until=r"\x1b\[1m> ")
    assert "thinking: off" in say(t, "/set nothink", until=r"\x1b\[1m> ")
    assert "thought" not in say(t, "hello", until=r"\x1b\[1m> ")
    leave(t)


def test_run_shows_thinking_dim_on_a_terminal(terminal, tmp_path):
    folder = write_model(tmp_path / "thinks", template=THINKS)
    t = terminal("run", folder, "hello", "-n", 9, "--ignore-eos", TERM="xterm")
    assert t.wait() == 0
    assert "\x1b[2m" in t.output and "\x1b[22m" in t.output
    t = terminal("run", folder, "hello", "-n", 9, "--ignore-eos", "--no-think", TERM="xterm")
    assert t.wait() == 0 and "\x1b[2m" not in t.output
