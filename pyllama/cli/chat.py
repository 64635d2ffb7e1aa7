"""`pyllama chat`: a conversation on a terminal, or one turn a line through a pipe."""

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama.cli import streams
from pyllama.cli.options import add_loading, add_sampling, load_watched, sampling
from pyllama.cli.pass_line import PassLine
from pyllama.errors import ContextOverflowError, PyllamaError, RequestError, reason_of

if TYPE_CHECKING:
    from pyllama.generation.chat import Chat

PROMPT = "> "
HELP = """\
/reset   forget the conversation
/help    this help
/exit    leave, as Ctrl-D does
Ctrl-C   stop the answer
\"\"\"      on a line of its own begins and ends a message of several lines"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "chat",
        help="have a conversation",
        description="Have a conversation with a model that has a chat template. Its history stays in the "
        "cache: a turn costs only what is new. Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest. "
        "Through a pipe, every line is a turn.",
    )
    add_loading(parser)
    parser.add_argument("--system", metavar="TEXT", type=streams.utf8, help="a system message before the conversation")
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options = sampling(args)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with (
        PassLine(quiet=args.quiet) as signs,
        load_watched(args, signs) as model,
        model.chat(args.system, **options) as chat,
    ):
        if terminal:
            _import_readline()
            streams.note("Ctrl-C stops an answer, Ctrl-D leaves, /help for more")
            _converse(chat, signs)
        else:
            _answer_lines(chat, signs)
    return 0


def _import_readline() -> None:
    """With it, input() has line editing and a history."""
    try:
        import readline  # noqa: F401
    except ImportError:
        pass


def _converse(chat: "Chat", signs: PassLine) -> None:
    """Turns on a terminal, until Ctrl-D or /exit. Neither Ctrl-C nor an error ends it."""
    going_on = True
    while going_on:
        try:
            going_on = _turn(chat, _read_message(), signs)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
        except ContextOverflowError as error:
            streams.tell(f"{error}; /reset forgets the conversation")
        except PyllamaError as error:
            streams.tell(error)
        except UnicodeDecodeError:
            streams.tell("what was typed is not in the encoding of this terminal")


def _answer_lines(chat: "Chat", signs: PassLine) -> None:
    """One turn for every line of standard input. The first error ends it, and so does Ctrl-C."""
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # text in files and pipes has no locale
    while line := _read_line():
        if not _turn(chat, line.rstrip("\r\n"), signs):
            return


def _read_line() -> str:
    """The next line of standard input, its end included; "" after the last."""
    most = streams.MAX_INPUT_NBYTES
    try:
        line = sys.stdin.readline(most)
    except UnicodeDecodeError:
        raise RequestError("standard input: not UTF-8, expected text") from None
    except OSError as error:
        raise RequestError(f"standard input: {reason_of(error)}") from None
    if len(line) == most:
        raise RequestError(f"standard input: a line of more than {most} characters, expected messages")
    return line


def _turn(chat: "Chat", message: str, signs: PassLine) -> bool:
    """Answers a message, or does what a /command says; whether to go on."""
    message = streams.utf8(message)
    if message.startswith("/"):
        return _command(chat, message.strip())
    if message.strip():
        _answer(chat, message, signs)
    return True


def _read_message() -> str:
    line = input(PROMPT)
    if line.strip() != '"""':
        return line
    lines = []
    while (line := input("")).strip() != '"""':
        lines.append(line)
    return "\n".join(lines)


def _answer(chat: "Chat", message: str, signs: PassLine) -> None:
    """Shows the answer as it comes. An interrupted one counts as far as it was shown."""
    with chat.send(message) as generation:
        try:
            for step in generation:
                signs.clear()
                sys.stdout.write(step.text)
                sys.stdout.flush()
        finally:
            signs.clear()
        if not generation.text.endswith("\n"):
            print(flush=True)
    if generation.finish_reason == "length":
        streams.note("[cut: --max-tokens reached, or the context is full]")


def _command(chat: "Chat", command: str) -> bool:
    """Does what a /command says; whether to go on."""
    if command == "/exit":
        return False
    if command == "/reset":
        chat.reset()
    elif command == "/help":
        print(HELP, flush=True)
    else:
        streams.note(f"{command.split()[0]}: no such command, /help lists them")
    return True
