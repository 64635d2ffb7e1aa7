"""`pyllama serve`: one model over HTTP, for the clients of OpenAI, Anthropic and Ollama, and for a browser."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllama.cli import streams
from pyllama.cli.options import add_loading, load_model
from pyllama.errors import RequestError, reason_of

if TYPE_CHECKING:
    import logging

    from pyllama.model import Model
    from pyllama.server.hooks import Hooks
    from pyllama.server.service import Settings

KEY_VARIABLE = "PYLLAMA_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

HELP = "answer over HTTP, as OpenAI, Anthropic and Ollama do, and in a browser"
DESCRIPTION = (
    "Serve a model over HTTP for clients of OpenAI's API, Anthropic's and Ollama's, and for a "
    "browser. Requests share passes over the weights, and what was computed for one is kept "
    "for the next. Anything but this machine needs an API key. Ctrl-C or SIGTERM lets running answers finish."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_loading(parser)
    add_serving(parser)


def add_serving(parser: argparse.ArgumentParser) -> None:
    """All but the model and how to load it."""
    group = parser.add_argument_group("the server")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; default: 127.0.0.1")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000")
    group.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the model, or a pattern such as gpt-*; may be repeated",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text where its request names none; may be repeated",
    )
    group.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="until an answer is complete, queue included; default: none"
    )
    group.add_argument(
        "--stop-timeout",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="for running answers to finish when the server stops; default: 20",
    )
    group.add_argument(
        "--embeddings", action="store_true", help="make vectors of texts, by the mean of the final hidden states"
    )
    group.add_argument("--log-requests", action="store_true", help="a line on standard error for each request")
    group.add_argument(
        "--no-warm-up", action="store_true", help="read no weights before the first request; default: one pass at once"
    )
    group = parser.add_argument_group("who may use it")
    group.add_argument(
        "--api-key-file",
        metavar="PATH",
        help=f"a file with the key that clients must send; default: the environment's {KEY_VARIABLE}, or none",
    )
    group.add_argument("--insecure", action="store_true", help="listen beyond this machine without a key")
    group.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="a web page's origin that may use it, or *"
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="without a key: a name the server goes by besides localhost, or *",
    )
    group.add_argument(
        "--max-body", metavar="SIZE", help="of a request; default: 256K, and 64 bytes for each position of the context"
    )
    group.add_argument("--max-connections", type=int, default=256, metavar="N", help="open at once; default: 256")
    group = parser.add_argument_group("the engine")
    group.add_argument("--max-running", type=int, default=8, metavar="N", help="requests that share passes; default: 8")
    group.add_argument("--max-waiting", type=int, default=64, metavar="N", help="requests beyond them; default: 64")
    group.add_argument("--session-dir", metavar="DIR", help="where conversations survive a restart; default: nowhere")
    group.add_argument("--session-size", default="2G", metavar="SIZE", help="what they may take there; default: 2G")


def run(args: argparse.Namespace, hooks: "Hooks | None" = None) -> int:
    settings = settings_of(args)  # complains before minutes are spent on loading
    _import_server()
    import logging

    from pyllama.engine import AsyncEngine
    from pyllama.machine.malloc import return_freed_memory
    from pyllama.machine.memory import parse_size
    from pyllama.server.run import bind, serve
    from pyllama.terminal.status_line import StatusLine
    from pyllama.tokenizer.missing import MissingTokenizer

    handler = logging.StreamHandler()
    handler.setFormatter(_lines_of_the_log())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if args.log_requests:
        logging.getLogger("pyllama.requests").setLevel(logging.INFO)
    return_freed_memory()
    session_nbytes = parse_size(args.session_size)
    bound = bind(args.host, args.port)
    with StatusLine(quiet=args.quiet) as signs:
        model = load_model(args, signs, contexts=max(2, args.max_running))
    with model:
        if isinstance(model.tokenizer, MissingTokenizer):
            model.tokenizer.refuse()  # what is served is text
        engine = AsyncEngine(
            model,
            max_running=args.max_running,
            max_waiting=args.max_waiting,
            session_dir=args.session_dir,
            session_nbytes=session_nbytes,
        )
        names = (name_of(args.model), *args.alias)
        return serve(engine, bound, names=names, settings=settings, hooks=hooks or _telling(model, names[0]))


def _lines_of_the_log() -> "logging.Formatter":
    """One line a message, whatever a request or a file wrote into it; a bug's traceback keeps its lines."""
    import logging

    from pyllama.printable import one_line

    class OneLine(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:
            return one_line(f"pyllama: {record.message}")

        def formatException(self, ei: Any) -> str:
            return "\n".join(map(one_line, super().formatException(ei).split("\n")))

    return OneLine()


def name_of(model: str) -> str:
    """What clients call a model: its name, or that of its file or folder."""
    if not os.path.exists(model):
        return model
    path = Path(os.path.abspath(model))  # not where links lead: in the Hugging Face cache that is a hash
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name.removesuffix(".gguf")


def settings_of(args: argparse.Namespace) -> "Settings":
    """The options as the server takes them. Raises RequestError, also for a server anybody could use unasked."""
    from pyllama.machine.memory import parse_size

    key = _api_key(args.api_key_file)
    if args.host not in LOOPBACK and key is None and not args.insecure:
        raise RequestError(
            f"--host {args.host}: others could use it; give --api-key-file or set {KEY_VARIABLE}, or say --insecure"
        )
    for name, low, high in (("port", 0, 65535), ("max_connections", 1, 100_000), ("max_running", 1, 4096),
                            ("max_waiting", 0, 100_000)):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise RequestError(f"--{name.replace('_', '-')}: got {getattr(args, name)}, expected {low} to {high}")
    for name in ("timeout", "stop_timeout"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1e7:
            raise RequestError(f"--{name.replace('_', '-')}: got {value}, expected 0 seconds or more")
    max_body = None if args.max_body is None else parse_size(args.max_body)
    _import_server()
    from pyllama.server.service import Settings

    return Settings(
        api_key=key,
        cors_origins=tuple(args.cors),
        # Whoever says --insecure, or asks for a key, is reached by whatever name he likes.
        allowed_hosts=("*",) if args.insecure else tuple(args.allow_host),
        max_body_nbytes=max_body,
        timeout_s=args.timeout or None,
        stop_timeout_s=args.stop_timeout,
        max_connections=args.max_connections,
        embeddings=args.embeddings,
        session_dir=args.session_dir,
        stop=tuple(args.stop),
        warm_up=not args.no_warm_up,
    )


def _api_key(path: str | None) -> str | None:
    if path is not None:
        try:
            key = Path(path).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "not text"
            raise RequestError(f"--api-key-file {path}: {reason}") from None
        where = f"--api-key-file {path}"
    else:
        key, where = os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key:
            return None
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise RequestError(f"{where}: expected a key of at least 8 printable ASCII characters without spaces")
    return key


def _import_server() -> None:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        from pyllama.extras import how_to_install

        raise RequestError(f"serve: {error.name} is not installed; {how_to_install('server')}") from None


def _telling(model: "Model", name: str) -> "Hooks":
    """Hooks that tell a person on a terminal, and the service manager if one has started this."""
    from pyllama.server.hooks import Hooks
    from pyllama.service.notify import Notifier
    from pyllama.service.watchdog import Watched

    class Printing(Hooks):
        def ready(self, url: str) -> None:
            drafting = f", drafted by {model.drafting.name}" if model.drafting else ""
            streams.announce(f"pyllama: {name} at {url}/v1, context {model.context_length}{drafting}")
            streams.announce(f"pyllama: a page to chat with it is at {_reachable(url)}/")

        def stopping(self) -> None:
            streams.announce("pyllama: stopping; Ctrl-C again to stop at once")

    notifier = Notifier.from_environment()
    return Watched(notifier, Printing(), name) if notifier.enabled else Printing()


def _reachable(url: str) -> str:
    """The URL, with an address that a browser can open where it names all of this machine's."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
