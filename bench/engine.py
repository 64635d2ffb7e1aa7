"""One model kept in memory by one engine, which times a prompt or some tokens whenever it is told to.

usage: engine.py MODEL THREADS [ENGINE]

Started by quantized.py with the Python that has the engine. Unless it is named, what can be imported there says which
one: xllamacpp, llama_cpp (llama-cpp-python, whose LLAMA_CPP_LIB_PATH names a folder with another build of its library)
or pyllama. Needs nothing else. Prints what the engine is, as JSON; then, for each line of its input, {"prefill": [token
ids]} or {"decode": how many}, the seconds it took: a prompt from an empty cache until the logits of its last token, or
so many tokens one by one after a first, from an empty cache too. The cache is in float16, the weights in the engine's
own memory.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable

CONTEXT = 1024
PASS = 512  # tokens of a prompt that are computed at once
TOKEN = 5

Timed = Callable[[list[int]], float]  # seconds of a prompt
Loaded = tuple[str, Timed, Callable[[int], float]]  # build, and what times a prompt and a number of tokens


def load_pyllama(model: str, threads: int) -> Loaded:
    from pyllama import __version__, _kernels
    from pyllama.checkpoint import open_checkpoint
    from pyllama.decoder import Decoder
    from pyllama.streaming import StreamedWeights

    _kernels.set_num_threads(threads)
    checkpoint = open_checkpoint(model)
    weights = StreamedWeights(checkpoint)  # not load(): beside other engines' models its budget would stream
    decoder = Decoder(
        checkpoint.config,
        weights,
        context_length=CONTEXT,
        max_pass_tokens=PASS,
        rope_interleaved=checkpoint.rope_interleaved,
    )

    def prefill(ids: list[int]) -> float:
        with decoder.new_sequence() as sequence:
            started = time.perf_counter()
            decoder.prefill(sequence, ids)
            return time.perf_counter() - started

    def decode(count: int) -> float:
        with decoder.new_sequence() as sequence:
            decoder.forward([(sequence, [TOKEN])])
            started = time.perf_counter()
            for _ in range(count):
                decoder.forward([(sequence, [TOKEN])])
            return time.perf_counter() - started

    return f"pyllama {__version__}, {_kernels.isa()}", prefill, decode


def load_llama_cpp(model: str, threads: int) -> Loaded:
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    how = llama_cpp.llama_model_default_params()
    how.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), how)
    if not loaded:
        raise SystemExit("engine.py: llama.cpp cannot load the model")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, PASS, PASS
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(loaded, options)
    memory = llama_cpp.llama_get_memory(context)

    def run(ids: list[int], _alive=silent) -> None:  # llama.cpp calls it as long as it runs
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("engine.py: llama.cpp failed to decode")
        llama_cpp.llama_synchronize(context)

    def prefill(ids: list[int]) -> float:
        llama_cpp.llama_memory_clear(memory, True)
        started = time.perf_counter()
        run(ids)
        return time.perf_counter() - started

    def decode(count: int) -> float:
        prefill([TOKEN])
        started = time.perf_counter()
        for _ in range(count):
            run([TOKEN])
        return time.perf_counter() - started

    features = llama_cpp.llama_print_system_info().decode().strip()
    return f"llama-cpp-python {llama_cpp.__version__}, {features}", prefill, decode


def load_xllamacpp(model: str, threads: int) -> Loaded:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = CONTEXT, PASS, PASS, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def timings(ids: list[int], count: int) -> dict:
        """Of its own clock: milliseconds of the prompt, and of all tokens but the first."""
        asked = {"prompt": ids, "n_predict": count, "cache_prompt": False, "ignore_eos": True}
        # Sampling is not what is measured: the most probable token, and no chain of samplers before it.
        answer = server.handle_completions(asked | {"temperature": 0, "samplers": ["temperature"]})
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        if "timings" not in answer:
            raise SystemExit(f"engine.py: xllamacpp: {answer}")
        return answer["timings"]

    def prefill(ids: list[int]) -> float:
        return timings(ids, 1)["prompt_ms"] / 1e3

    def decode(count: int) -> float:
        return timings([TOKEN], count + 1)["predicted_ms"] / 1e3

    features = str(xllamacpp.get_system_info()).strip()
    return f"xllamacpp {xllamacpp.__version__}, {features}", prefill, decode


ENGINES = {"xllamacpp": load_xllamacpp, "llama_cpp": load_llama_cpp, "pyllama": load_pyllama}


def main() -> None:
    model, threads = sys.argv[1], int(sys.argv[2])
    name = next((name for name in sys.argv[3:] or ENGINES if importlib.util.find_spec(name)), None)
    if name is None:
        raise SystemExit(f"engine.py: {sys.executable} has none of {', '.join(ENGINES)}")
    build, prefill, decode = ENGINES[name](model, threads)
    decode(1)  # brings the weights into memory
    print(json.dumps({"build": build}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(prefill(asked["prefill"]) if "prefill" in asked else decode(asked["decode"]), flush=True)


if __name__ == "__main__":
    main()
