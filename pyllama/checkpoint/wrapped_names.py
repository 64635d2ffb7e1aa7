"""Names of tensors as wrappers saved them -> the names Hugging Face's class for causal language models has.

What wraps a module for training puts its own name before or between the module's, and a bare model is saved without
the `model.` that its place in the whole model would give it. Neither changes a weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# DataParallel and DDP; torch.compile; FSDP1; activation checkpointing; PEFT, once its adapters are merged.
_BEFORE = re.compile(
    r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.|_forward_module\.|base_model\.model\.(?=model\.|lm_head\.))+"
)
_BETWEEN = re.compile(r"(?<=\.)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|base_layer)\.")
# The text model in one that sees: transformers 4 had it outside the model, 5 has it within.
_TEXT_MODEL = re.compile(r"^(?:language_model\.(?=model\.|lm_head\.)|model\.language_model\.)")
_IN_MODEL = re.compile(r"model\.language_model\.")
_BARE = re.compile(r"(?:embed_tokens|norm|layers\.[0-9]{1,4}|rotary_emb)\.")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """stored name -> plain name, of those that differ; {} where two would become one, or nothing is wrapped."""
    names = list(names)
    unwrapped = {name: _TEXT_MODEL.sub("", _BETWEEN.sub("", _BEFORE.sub("", name)), count=1) for name in names}
    unwrapped = {name: f"model.{new}" if _IN_MODEL.match(name) else new for name, new in unwrapped.items()}
    if not any(name.startswith("model.") for name in unwrapped.values()):
        unwrapped = {name: f"model.{new}" if _BARE.match(new) else new for name, new in unwrapped.items()}
    if len(set(unwrapped.values())) < len(names) or any(".lora_" in name for name in names):
        return {}
    return {name: new for name, new in unwrapped.items() if name != new}
