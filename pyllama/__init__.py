"""LLaMA-family models on boards with little memory, at the precision they were published in.

    import pyllama

    with pyllama.load("models/SmolLM2-135M-Instruct") as model:
        for step in model.generate("Once upon a time", max_tokens=40):
            print(step.text, end="", flush=True)

What is below is imported when it is first used: `import pyllama` itself loads nothing.
"""

import os
from typing import TYPE_CHECKING

from pyllama.version import __version__

# Threads that wait for each other may spin for as long as a kernel's threads drift apart, some 15 us (a pause is 15
# ns on x86_64 and next to nothing on ARM), and must sleep after that. libgomp's own default is milliseconds: with
# another busy process on the board, every one of a token's 200 waits would burn the time slice that the thread
# waited for needs, and a token takes 60 times as long (measured: docs/bench.md, "A busy machine"). It reads this
# once, when the kernels are loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000" if os.uname().machine == "x86_64" else "10000")

if TYPE_CHECKING:
    from pyllama.errors import (
        BudgetError,
        BusyError,
        CheckpointError,
        ContextOverflowError,
        HubError,
        PackError,
        PyllamaError,
        RequestError,
        TokenizerError,
        UnsupportedError,
    )
    from pyllama.generation import Generation, Step
    from pyllama.generation.chat import Chat
    from pyllama.generation.sampler import SamplingParams
    from pyllama.loading import load
    from pyllama.model import Model

# Where what is below is defined; what is not here is in errors.
_HOME = {
    "load": "loading",
    "Model": "model",
    "Chat": "generation.chat",
    "Generation": "generation",
    "Step": "generation",
    "SamplingParams": "generation.sampler",
}

__all__ = [
    "BudgetError",
    "BusyError",
    "Chat",
    "CheckpointError",
    "ContextOverflowError",
    "Generation",
    "HubError",
    "Model",
    "PackError",
    "PyllamaError",
    "RequestError",
    "SamplingParams",
    "Step",
    "TokenizerError",
    "UnsupportedError",
    "__version__",
    "load",
]


if not TYPE_CHECKING:  # which knows the names above: any other is an error

    def __getattr__(name: str):
        if name not in __all__:
            raise AttributeError(f"module 'pyllama' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"pyllama.{_HOME.get(name, 'errors')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
