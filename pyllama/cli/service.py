"""`pyllama service`: a server that systemd starts at boot, watches, and restarts."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.cli import streams
from pyllama.cli.options import add_loading
from pyllama.cli.serve import KEY_VARIABLE, add_serving, name_of, settings_of
from pyllama.drafting import WORDS
from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint
    from pyllama.service.unit import Service

NAME = "pyllama"
# What the unit says in its own way, and what is no option of `serve`.
_OWN = ("help", "model", "memory", "session_dir", "api_key_file", "user", "name", "dry_run")

HELP = "let systemd run a server"
DESCRIPTION = (
    "Let systemd run `pyllama serve`: from boot on, watched, restarted when it hangs, and locked up "
    "in a sandbox. See docs/service.md."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        metavar="ACTION", required=True, help="install, status, logs or uninstall; each has a --help of its own"
    )
    action = actions.add_parser(
        "install",
        help="write a unit for a model, and start it",
        description="Write a systemd unit that serves a model, enable it and start it; returns when it answers. "
        "The same command with other options changes it. All options of `pyllama serve` go into the unit.",
    )
    add_install_options(action)
    action.set_defaults(run=install)
    action = actions.add_parser("status", help="tell how a service does, as systemctl does; the same exit codes")
    _add_which(action)
    action.set_defaults(run=status)
    action = actions.add_parser("logs", help="show what a service wrote")
    _add_which(action)
    action.add_argument("--lines", type=int, default=100, metavar="N", help="the last N; default: 100")
    action.add_argument("--follow", action="store_true", help="go on with what it will write")
    action.set_defaults(run=logs)
    action = actions.add_parser("uninstall", help="stop a service and remove its unit")
    _add_which(action)
    action.add_argument("--purge", action="store_true", help="remove what it saved of conversations as well")
    action.set_defaults(run=uninstall)


def add_install_options(parser: argparse.ArgumentParser) -> None:
    add_loading(parser)
    add_serving(parser)
    group = parser.add_argument_group("the service")
    _add_which(group)
    group.add_argument("--dry-run", action="store_true", help="print the unit and change nothing")


def _add_which(group: argparse._ActionsContainer) -> None:
    group.add_argument("--user", action="store_true", help="a service of yours, not of the system; needs no root")
    group.add_argument("--name", default=NAME, metavar="NAME", help="of the service; default: pyllama")


def install(args: argparse.Namespace) -> int:
    from pyllama.service import memory_control
    from pyllama.service.systemd import Units
    from pyllama.service.unit import render
    from pyllama.terminal.progress import format_nbytes

    units = Units(args.user)
    path = units.path(args.name)
    service = service_of(args)
    text = render(service)
    if args.dry_run:
        print(text, end="")
        return 0
    units.check_allowed("install")
    if service.nbytes and (why := memory_control.why_not(os.getuid() if args.user else None)) is not None:
        streams.tell(
            f"MemoryMax has no effect here: {why}; --memory {format_nbytes(service.nbytes)} is kept all the same"
        )
    if not units.lingers():
        streams.tell("it runs while you are logged in; `loginctl enable-linger` lets it run from boot on")
    streams.tell(f"starting {path}")
    units.install(args.name, text)
    print(f"{args.name} is ready; pyllama service status{_which(args)} tells how it does")
    return 0


def status(args: argparse.Namespace) -> int:
    from pyllama.service.systemd import Units

    sys.stdout.flush()
    return Units(args.user).status(args.name)


def logs(args: argparse.Namespace) -> int:
    from pyllama.service.systemd import Units

    if not 0 <= args.lines <= 10**9:
        raise RequestError(f"--lines: got {args.lines}, expected 0 or more")
    sys.stdout.flush()
    return Units(args.user).logs(args.name, args.lines, args.follow)


def uninstall(args: argparse.Namespace) -> int:
    from pyllama.service.systemd import Units

    units = Units(args.user)
    units.check_allowed("uninstall")
    units.uninstall(args.name, args.purge)
    print(f"{args.name} is gone" + ("" if args.purge else "; what it saved of conversations is still there"))
    return 0


def service_of(args: argparse.Namespace) -> "Service":
    """What the unit is made for. Opens the model, so that a wrong one is told now and not at every boot.

    Raises RequestError, HubError and CheckpointError.
    """
    from dataclasses import replace

    from pyllama.checkpoint import open_checkpoint
    from pyllama.machine.memory import default_budget, parse_size
    from pyllama.service import needs
    from pyllama.service.unit import Service

    if args.api_key_file is None and os.environ.get(KEY_VARIABLE):
        raise RequestError(f"{KEY_VARIABLE}: a service does not see it; write the key to a file for --api-key-file")
    settings = settings_of(args)
    if args.session_dir and not args.user:
        raise RequestError("--session-dir: a system service has a place of its own, /var/lib/NAME; leave it out")
    nbytes = default_budget() if args.memory is None else parse_size(args.memory)
    if args.chat_template:
        args.chat_template = os.path.abspath(args.chat_template)
    plain = Service(
        name=args.name,
        model=args.model,
        nbytes=nbytes,
        user=args.user,
        host=args.host,
        port=args.port,
        stop_timeout_s=settings.stop_timeout_s,
        max_connections=settings.max_connections,
        api_key_file=args.api_key_file and os.path.abspath(args.api_key_file),
        session_dir=args.session_dir and os.path.abspath(args.session_dir),
        python_path=needs.package_folders(),
    )
    if args.hosts:
        return _of_boards(args, plain)
    model = os.path.abspath(_found(args.model))
    with open_checkpoint(model) as checkpoint:
        paths = needs.model_paths(checkpoint)
        drafter = _drafter(args.draft, checkpoint)
    if drafter is not None:
        args.draft = args.draft if args.draft == "auto" else drafter
        with open_checkpoint(drafter) as checkpoint:
            paths += needs.model_paths(checkpoint)
    if args.chat_template:
        paths.append(Path(args.chat_template))
    if not args.user:
        needs.check_readable(paths)
    return replace(
        plain,
        model=model,
        options=[*serve_options(args), *_as_typed(args.model, model)],
        readable=needs.hidden([*needs.python_folders(), *plain.python_path, *paths]),
    )


def _of_boards(args: argparse.Namespace, plain: "Service") -> "Service":
    """The same for `--hosts`: as whoever types it, or has typed sudo, since the boards are reached by his ssh key."""
    import getpass
    from dataclasses import replace

    from pyllama.checkpoint import open_checkpoint
    from pyllama.cluster.hosts import parse_hosts
    from pyllama.cluster.own_part import open_front
    from pyllama.errors import HubError

    hosts = parse_hosts(args.hosts)
    try:
        open_front(args.model, hosts).close()
    except HubError:
        open_checkpoint(_found(args.model)).close()
    if os.path.isfile(args.hosts):
        args.hosts = os.path.abspath(args.hosts)
    if args.draft not in WORDS:
        args.draft = os.path.abspath(_found(args.draft))
    return replace(
        plain,
        model=os.path.abspath(args.model) if os.path.exists(args.model) else args.model,
        nbytes=None if args.memory is None else plain.nbytes,
        options=serve_options(args),
        boards=True,
        runs_as=os.environ.get("SUDO_USER") or getpass.getuser(),
    )


def _found(name: str) -> str:
    """A model's path; under sudo also one in the cache of whoever typed sudo, for root's is empty."""
    from pyllama.hub import resolve
    from pyllama.hub.find import NotInCacheError

    try:
        return str(resolve(name))
    except NotInCacheError:
        user = os.environ.get("SUDO_USER")
        if os.geteuid() != 0 or not user or user == "root":
            raise
        given = dict(os.environ)
        try:
            os.environ["HOME"] = os.path.expanduser(f"~{user}")
            for variable in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
                os.environ.pop(variable, None)
            return str(resolve(name))
        finally:
            os.environ.clear()
            os.environ.update(given)


def _drafter(draft: str, checkpoint: "Checkpoint") -> str | None:
    """The path of what is to draft, as far as it is known now: the service finds look-up, and nobody, by itself.

    Raises RequestError for `self` without a copy.
    """
    from pyllama.drafting.copies import copy_of

    if draft in ("off", "lookup"):
        return None
    if draft not in ("auto", "self"):
        return os.path.abspath(_found(draft))
    copy = copy_of(checkpoint.path)
    if copy is None and draft == "self":
        raise RequestError("--draft self: no copy is here that could draft; pyllama quantize MODEL --draft makes one")
    return None if copy is None else str(copy)


def _as_typed(typed: str, path: str) -> list[str]:
    """The unit has the model's path; clients call it what was typed all the same."""
    name = name_of(typed)
    return [] if name == name_of(path) else [f"--alias={name}"]


def serve_options(args: argparse.Namespace) -> list[str]:
    """The options of `serve` that differ from their defaults, as words."""
    parser = argparse.ArgumentParser()
    add_install_options(parser)
    words: list[str] = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in _OWN or value == action.default:
            continue
        option = action.option_strings[-1]
        if isinstance(action, argparse._StoreTrueAction):
            words.append(option)
        else:
            # One word, so that a value may begin with a dash.
            words += [f"{option}={one}" for one in (value if isinstance(value, list) else [value])]
    return words


def _which(args: argparse.Namespace) -> str:
    """The options that name this service again."""
    return (" --user" if args.user else "") + (f" --name {args.name}" if args.name != NAME else "")
