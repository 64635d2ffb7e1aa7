"""Runs of a model -> lines of a machine's CSV file, one a model, engine and run; the format of bench/results/."""

import csv
from pathlib import Path
from typing import Any

COLUMNS = (
    "date", "commit", "isa", "kernel", "threads", "rounds", "others", "model", "engine", "read_gb_s", "peak_gflop_s",
    "decode_tok_s", "decode_gb_s", "decode_of_read", "prefill_64_tok_s", "prefill_64_gflop_s", "prefill_64_of_peak",
    "prefill_512_tok_s", "prefill_512_gflop_s", "prefill_512_of_peak",
    "disk_gb_s", "budget", "kept_nbytes", "streamed_nbytes", "decode_of_ceiling", "peak_rss_bytes",
)  # fmt: skip


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add lines to a file, with the header if it is new. What a row lacks stays empty."""
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow(rounded({name: row.get(name, "") for name in COLUMNS}))


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each run of the model, or one without a model."""
    about, rates = report["machine"], report["ceilings"][str(report["threads"])]
    common = {
        "date": report["date"], "commit": about.get("commit", about["pyllama"]), "isa": about["isa"],
        "kernel": about["kernel"], "threads": report["threads"], "rounds": 1, "others": report["others"],
        "read_gb_s": rates["read_gb_s"],
        "peak_gflop_s": rates["peak_gflop_s"], "disk_gb_s": report["disk"]["read_gb_s"]["3"],
    }  # fmt: skip
    rows = []
    for run in report["models"]:
        if "skipped" in run:
            continue
        decode = run["decode"]
        row = common | {
            "model": run["model"], "engine": f"pyllama {run['kind']}", "decode_tok_s": decode["tok_s"],
            "decode_gb_s": decode["gb_s"], "decode_of_read": decode["gb_s"] / rates["read_gb_s"],
            "budget": run["budget"], "kept_nbytes": run["pinned_nbytes"], "streamed_nbytes": run["streamed_nbytes"],
            "decode_of_ceiling": decode["of_ceiling"], "peak_rss_bytes": run["peak_rss_bytes"],
        }  # fmt: skip
        for length, prompt in run["prefill"].items():
            if f"prefill_{length}_tok_s" in COLUMNS:
                row |= {
                    f"prefill_{length}_tok_s": prompt["tok_s"],
                    f"prefill_{length}_gflop_s": prompt["gflop_s"],
                    f"prefill_{length}_of_peak": prompt["gflop_s"] / rates["peak_gflop_s"],
                }
        rows.append(row)
    return rows or [common]


def rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
