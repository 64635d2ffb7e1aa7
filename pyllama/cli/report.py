"""A command's report on standard output: one JSON object for programs, lines for people."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from pyllama.printable import one_line


def print_report(report: dict[str, Any], lines: Callable[[dict[str, Any]], Iterable[str]], *, as_json: bool) -> None:
    """lines(report), or the report itself as JSON on one line."""
    if as_json:
        print(json.dumps(report))
        return
    for line in lines(report):
        print(one_line(line))
