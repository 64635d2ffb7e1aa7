"""`architectures` of config.json: which class names mean a family's plain decoder.

`model_type` says what the mathematics is, and the tensors prove their names and shapes. The class is only who saved
them: training wraps classes and renames them, and a tool that takes the bare model writes that one's name. A name
that stands for other mathematics over the same tensors (an encoder, a classifier) is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Put before a class's name by what trained or sped it up. FSDP2 and DDP of torch make such subclasses when they wrap
# a module (huggingface/transformers#40750), Unsloth, PEFT and Liger by hand.
_WRAPPERS = re.compile(r"^(?:FSDP|DDP|Replicate|OptimizedModule|Unsloth|Liger|Peft|Flash)+(?=[A-Z])")
# Wrappers saved under their own name, whatever they hold.
_WRAPPED = {
    "OptimizedModule", "FullyShardedDataParallel", "DistributedDataParallel", "DataParallel", "DeepSpeedEngine",
    "PeftModel", "PeftModelForCausalLM", "AutoModel", "AutoModelForCausalLM", "AutoModelForCausalLMWithValueHead",
}  # fmt: skip


def other_class(names: object, expected: str) -> str | None:
    """The first of `names` that is another class than `expected`, such as LlamaForCausalLM; None if none is.

    names: a list, one name or nothing, as files have it.
    """
    if names is None:
        return None
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str):
            return type(name).__name__
        bare = expected.removesuffix("ForCausalLM") + "Model"
        if name and name not in _WRAPPED and _plain(name) not in (expected, bare):
            return name
    return None


def model_type_of(names: object, architectures: Mapping[str, str]) -> str | None:
    """The model_type whose class all of `names` are, for a file that does not say; None if there is no one."""
    if not isinstance(names, list) or not names:
        return None
    found: list[Any] = [
        model_type
        for model_type, expected in architectures.items()
        if all(isinstance(name, str) and name not in _WRAPPED and other_class(name, expected) is None for name in names)
    ]
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name).replace("LLaMA", "Llama")
