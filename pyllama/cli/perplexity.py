"""`pyllama perplexity`: how well a model knows a text, and how far it is from another model."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from pyllama.cli import streams
from pyllama.cli.options import add_budget, add_json, add_model, add_quiet, add_threads
from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.measure.perplexity import Estimate
    from pyllama.measure.scoring import Scoring

HELP = "measure how well a model knows a text, and how far it is from another"
DESCRIPTION = (
    "Measure the perplexity of a text: exp of the mean of -log p of its tokens. With --against also "
    "how far the model is from a reference, such as the one it was quantized from: the mean KL divergence, and how "
    "often both find the same token most probable. The text is cut into windows, and the second half of each is "
    "scored, as llama.cpp's perplexity tool does it."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("file", metavar="FILE", help="a file with the text; - for standard input")
    parser.add_argument("--against", metavar="MODEL", help="the reference: a model with the same tokens")
    group = parser.add_argument_group("the windows")
    group.add_argument("--chunks", metavar="N", type=int, help="windows to compute; default: all of the text")
    group.add_argument(
        "--stride",
        metavar="N",
        type=int,
        help="a window every N tokens, whose last N tokens are scored; default: one after the other, second halves",
    )
    group = parser.add_argument_group("the model")
    promise = "the figures do not depend on it"
    add_budget(group, "tokens of a window; default: 512", promise)
    add_threads(group, promise)
    group = parser.add_argument_group("output")
    add_json(group)
    add_quiet(group)


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.report import print_report
    from pyllama.measure.scoring import Scoring
    from pyllama.terminal.status_line import StatusLine

    text = _read_text(args.file)
    with StatusLine(quiet=args.quiet) as signs:
        signs.show("loading")
        status = _Status()
        with Scoring(
            args.model,
            text,
            against=args.against,
            context=args.context_length,
            stride=args.stride,
            chunks=args.chunks,
            memory=args.memory,
            kv_dtype=args.kv_dtype,
            threads=args.threads,
            pre_tokenizer=args.pre_tokenizer,
            on_layer=status.on_layer,
        ) as scoring:
            status.begin(scoring)
            signs.show(status.line)
            for estimate in scoring:
                status.estimate = estimate
            signs.clear()
            print_report(_report(args, scoring, estimate, status.seconds), _lines, as_json=args.json)
    return 0


def _read_text(path: str) -> str:
    text = streams.read_text(sys.stdin.buffer, "standard input") if path == "-" else streams.read_file(path)
    text = text.removesuffix("\n")  # llama.cpp takes no more, and figures are to compare
    if not text:
        raise RequestError(f"{'standard input' if path == '-' else path}: empty, expected a text to score")
    return text


class _Status:
    """The line that a terminal shows meanwhile."""

    def __init__(self) -> None:
        self.estimate: Estimate | None = None
        self._scoring: Scoring | None = None
        self._started_s = 0.0
        self._layer = 0

    def begin(self, scoring: "Scoring") -> None:
        self._scoring = scoring
        self._started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started_s

    def on_layer(self, layer: int) -> None:
        self._layer = layer

    def line(self) -> str:
        from pyllama.terminal.progress import format_seconds

        assert self._scoring is not None
        done, all_of_them = self.estimate.chunks if self.estimate else 0, self._scoring.windows.count
        parts = [
            f"chunk {min(done + 1, all_of_them)} of {all_of_them}",
            f"layer {self._layer + 1} of {self._scoring.model.config.num_hidden_layers}",
        ]
        if self.estimate:
            parts.append(f"perplexity {_shown(self.estimate.perplexity, self.estimate.perplexity_error)}")
            parts.append(f"{format_seconds(self.seconds / done * (all_of_them - done))} left")
        return "  ".join(parts)


def _report(args: argparse.Namespace, scoring: "Scoring", estimate: "Estimate", seconds: float) -> dict[str, Any]:
    from dataclasses import asdict

    from pyllama.machine.memory import peak_resident_nbytes

    models = [model for model in (scoring.model, scoring.against) if model]
    report = {
        "model": str(args.model),
        "tokens": scoring.tokens,
        "context": scoring.windows.context,
        "stride": scoring.windows.stride,
        "chunks": estimate.chunks,
        "positions": estimate.positions,
        "perplexity": estimate.perplexity,
        "perplexity_error": estimate.perplexity_error,
        "against": None,
        "seconds": seconds,
        "passes": sum(model.passes for model in models),
        "bytes_read": sum(model.bytes_read for model in models),
        "peak_rss_bytes": peak_resident_nbytes(),
    }
    if estimate.against:
        report["against"] = {"model": str(args.against), **_finite(asdict(estimate.against))}
    return _finite(report)


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """What is no number in JSON is null: the perplexity of a model that finds a text impossible."""
    import math

    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def _lines(report: dict[str, Any]) -> list[str]:
    windows = "window" if report["chunks"] == 1 else "windows"
    how = f"{windows} of {report['context']}" + (f", every {report['stride']}" if report["stride"] else "")
    lines = [
        f"{report['tokens']} tokens, {report['chunks']} {how}, {report['positions']} tokens scored",
        f"perplexity       {_shown(report['perplexity'], report['perplexity_error'])}",
    ]
    against = report["against"]
    if against:
        ratio = _shown(against["log_ratio"], against["log_ratio_error"])
        share = _shown(100 * against["same_best"], 100 * against["same_best_error"])
        lines += [
            f"of the reference {_shown(against['perplexity'], against['perplexity_error'])}",
            f"log of the ratio {ratio}",
            f"KL divergence    {_shown(against['kl'], against['kl_error'])}, largest {against['kl_largest']:.4g}",
            f"same best token  {share} %",
        ]
    return lines


def _shown(value: float | None, error: float | None) -> str:
    """A figure to the digits that its error leaves it, at least four."""
    if value is None or error is None:
        return "beyond what a number can hold"
    import math

    digits = 4 if not error else min(8, max(4, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} +/- {error:.{digits}f}"
