"""What a prompt may be: text to go on with, token ids, or messages for the chat template."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | np.ndarray


def is_chat(prompt: Prompt) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt is messages, for the chat template."""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and all(isinstance(item, Mapping) for item in prompt)
