"""`pyllama chat`: a conversation on a terminal, or one turn a line through a pipe."""

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama.cli import streams
from pyllama.cli.options import add_loading, add_sampling, load_watched, sampling
from pyllama.cli.pass_line import PassLine
from pyllama.errors import ContextOverflowError, PyllamaError, RequestError, reason_of

if TYPE_CHECKING:
    from pyllama.cli.conversation import Conversation

PROMPT = "> "

HELP = "have a conversation"
DESCRIPTION = (
    "Have a conversation with a model that has a chat template. Its history stays in the "
    "cache: a turn costs only what is new. Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest. "
    "Through a pipe, every line is a turn."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_loading(parser)
    group = parser.add_argument_group("the conversation")
    group.add_argument("--system", metavar="TEXT", type=streams.utf8, help="a system message before the conversation")
    add_no_think(group)
    group.add_argument("--fold-thinking", action="store_true", help="show of thinking only how long it took")
    group.add_argument("--no-history", action="store_true", help="keep no messages for the next time")
    group.add_argument("--verbose", action="store_true", help="how tokens are chosen, and each answer's timings")
    add_sampling(parser, greedy=False)


def add_no_think(group: argparse._ActionsContainer) -> None:
    group.add_argument("--no-think", action="store_true", help="ask the model not to think first, if it can be asked")


def run(args: argparse.Namespace) -> int:
    """The options may be those of `pyllama run`, which has fewer."""
    from pyllama.cli.conversation import Conversation

    options = sampling(args)
    with PassLine(quiet=args.quiet) as signs, load_watched(args, signs) as model:
        signs.clear()
        with Conversation(model, args, options, signs) as conversation:
            if streams.is_conversation():
                _converse(conversation, signs, keep_history=not vars(args).get("no_history"))
            else:
                _answer_lines(conversation)
    return 0


def _converse(conversation: "Conversation", signs: PassLine, *, keep_history: bool) -> None:
    """Turns on a terminal, until Ctrl-D or /exit. Neither Ctrl-C nor an error ends it."""
    from pyllama.cli.folders import state_folder
    from pyllama.cli.warm_up import WarmUp
    from pyllama.terminal.line_editor import LineEditor

    streams.note("Ctrl-C stops an answer, Ctrl-D leaves, /help for more")
    history = state_folder() / "history" if keep_history else None
    editor = LineEditor(PROMPT, history, conversation.complete)
    warm_up = WarmUp(conversation.chat, signs.clear)
    going_on = True
    while going_on:
        try:
            try:
                message = editor.read(conversation.unsent)
            finally:
                warm_up.stop()
            going_on = conversation.turn(message)
        except KeyboardInterrupt:
            conversation.unsent = ""
            print()
        except EOFError:
            print()
            return
        except ContextOverflowError as error:
            streams.tell(f"{error}; /clear forgets the conversation")
        except PyllamaError as error:
            streams.tell(error)
        except UnicodeDecodeError:
            streams.tell("what was typed is not in the encoding of this terminal")


def _answer_lines(conversation: "Conversation") -> None:
    """One turn for every line of standard input. The first error ends it, and so does Ctrl-C."""
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # text in files and pipes has no locale
    while line := _read_line():
        if not conversation.turn(line.rstrip("\r\n")):
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
