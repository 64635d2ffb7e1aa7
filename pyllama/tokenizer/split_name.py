"""The steps of a tokenizer.json before its byte-level BPE -> the name that GGUF has for them, if it has one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer import pre_tokenizers, steps


def split_name(rest: Mapping[str, Any]) -> str | None:
    """The name for tokenizer.ggml.pre; None where GGUF has none.

    rest: what TokenizerFile has besides vocabulary and merges, of a file that TokenizerJson takes
    """
    normalizers = [step.get("type") for step in _list(rest.get("normalizer"), "normalizers")]
    found: list[str | steps.PreTokenizer] = []
    for step in _list(rest.get("pre_tokenizer"), "pretokenizers"):
        own = _steps(step)
        if own is None:
            return None
        found += own
    if normalizers not in ([], ["NFC"]):
        return None
    ignore_merges = bool((rest.get("model") or {}).get("ignore_merges"))
    return pre_tokenizers.name_of(found, nfc=bool(normalizers), ignore_merges=ignore_merges)


def _list(step: Any, key: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return list(step[key]) if step.get("type") == "Sequence" else [step]


def _steps(step: Mapping[str, Any]) -> list[str | steps.PreTokenizer] | None:
    """One step in the words of pre_tokenizers.py; None for one that has none there."""
    kind = step["type"]
    if kind == "ByteLevel" and step.get("add_prefix_space") is False:
        return [patterns.GPT2] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [pre_tokenizers.digits]
    if kind == "Split":
        # The matches of an inverted one that removes are all of the text in every pattern that is known by a name.
        ((how, text),) = step["pattern"].items()
        return [text if how == "Regex" else re.escape(text)]
    return None
