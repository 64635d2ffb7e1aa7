"""`pyllama doctor`: what is set wrong on this machine, in a second; nothing is measured."""

import argparse
from typing import Any

from pyllama.cli import settings
from pyllama.cli.hints import commands_of
from pyllama.cli.options import add_json

# Variables that are no options.
_OTHERS = ("API_KEY", "CONFIG", "ISA")

HELP = "tell what is set wrong here"
DESCRIPTION = (
    "Tell what is set wrong on this machine for running models, with the remedy, and what commands "
    "start from: memory, disk, kernels, optional parts, settings. Takes a second and measures nothing; pyllama "
    "bench does. The exit code is 2 if something is wrong."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.report import print_report

    report = examine(args.command_line)
    print_report(report, _lines, as_json=args.json)
    return 2 if report["problems"] else 0


def examine(command_line: argparse.ArgumentParser) -> dict[str, Any]:
    """Everything `doctor --json` prints."""
    import os
    import platform
    import shutil
    from importlib.util import find_spec

    from pyllama import _kernels
    from pyllama.hub.cache import hub_cache
    from pyllama.machine.memory import default_budget
    from pyllama.machine.threads import default_threads
    from pyllama.measure import machine
    from pyllama.measure.advice import advice
    from pyllama.measure.rates import nearest
    from pyllama.measure.storage import storage
    from pyllama.measure.tree import Tree
    from pyllama.version import __version__

    cache = hub_cache()
    disk = storage(nearest(cache))
    parts = {"server": ("starlette", "uvicorn", "prometheus_client"), "grammar": ("llguidance",)}
    problems = [{"problem": found.problem, "remedy": found.remedy} for found in advice(disk)]
    problems += [
        {"problem": f"{variable} is set, and no option of any command", "remedy": _remedy(command_line, variable)}
        for variable in unknown_variables(command_line, list(os.environ))
    ]
    return {
        "pyllama": __version__,
        "python": platform.python_version(),
        "board": machine.board(Tree()) or platform.machine(),
        "isa": _kernels.isa(),
        "threads": default_threads(),
        "memory": default_budget(),
        "cache": str(cache),
        "disk": disk.kind,
        "disk_free": shutil.disk_usage(nearest(cache)).free,
        "parts": {name: all(map(find_spec, modules)) for name, modules in parts.items()},
        "config": str(settings.config_path()) if settings.config_path().is_file() else None,
        "problems": problems,
    }


def unknown_variables(command_line: argparse.ArgumentParser, names: list[str]) -> list[str]:
    """PYLLAMA_* variables that nothing here looks at."""
    known = _known_variables(command_line)
    return sorted(name for name in names if name.startswith(settings.PREFIX) and name not in known)


def _remedy(command_line: argparse.ArgumentParser, variable: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(variable, sorted(_known_variables(command_line)), 1, 0.85)
    return f"unset {variable}" + (f"; did you mean {near[0]}?" if near else "")


def _known_variables(command_line: argparse.ArgumentParser) -> set[str]:
    known = {settings.PREFIX + name for name in _OTHERS}
    for command, parser in commands_of(command_line).items():
        for option in settings.settable(parser):
            known |= {f"{settings.PREFIX}{option.upper()}", f"{settings.PREFIX}{command.upper()}_{option.upper()}"}
    return known


def _lines(report: dict[str, Any]):
    from pyllama.extras import how_to_install
    from pyllama.terminal.progress import format_nbytes

    def line(name: str, value: object) -> str:
        return f"{name:9} {value}"

    yield line("pyllama", f"{report['pyllama']}, Python {report['python']}, {report['board']}")
    yield line("kernels", f"{report['isa']}, {report['threads']} threads")
    yield line("memory", f"{format_nbytes(report['memory'])} for a model, unless --memory says otherwise")
    yield line(
        "models", f"{report['cache']} ({report['disk'] or 'unknown disk'}, {format_nbytes(report['disk_free'])} free)"
    )
    for name, there in report["parts"].items():
        yield line(name, "installed" if there else f"not installed: {how_to_install(name)}")
    yield line("settings", report["config"] or "no config.toml")
    yield ""
    for found in report["problems"]:
        yield f"wrong: {found['problem']}"
        yield f"       {found['remedy']}"
    if not report["problems"]:
        yield "nothing is set wrong, as far as can be seen without measuring"
