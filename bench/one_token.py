"""One model kept in memory by one engine, which decodes a token whenever it is told to: what turns.py starts.

usage: one_token.py ENGINE MODEL THREADS     ENGINE is pyllama, plain (pyllama, nothing packed) or llama.cpp

Prints, as JSON, the bytes of weights that a token reads and what the engine was built for; then, for each line of its
input, the seconds a token took. The cache holds CONTEXT positions and starts over when it is full. llama.cpp comes
through the package llama-cpp-python, whose LLAMA_CPP_LIB_PATH names a folder with another build of its library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from pyllama import __version__, _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.measure import work
from pyllama.streaming import StreamedWeights, pinned

CONTEXT = 64
TOKEN = 5

Loaded = tuple[int, str, Callable[[int], None]]  # bytes, build, and what decodes at a position; 0 empties the cache


def load_pyllama(model: str, threads: int, packing: bool) -> Loaded:
    if not packing:
        pinned.PACKED_WORTH = 0.0
    _kernels.set_num_threads(threads)
    checkpoint = open_checkpoint(model)
    weights = StreamedWeights(checkpoint)  # not load(): beside another engine's model its budget would stream
    decoder = Decoder(checkpoint.config, weights, context_length=CONTEXT, rope_interleaved=checkpoint.rope_interleaved)
    sequence = decoder.new_sequence()

    def decode(position: int) -> None:
        sequence.truncate(position)
        decoder.forward([(sequence, [TOKEN])])

    decode(0)  # brings the weights into memory
    return weights.nbytes_pinned, f"pyllama {__version__}, {_kernels.isa()}", decode


def load_llama_cpp(model: str, threads: int) -> Loaded:
    try:
        import llama_cpp
    except ImportError as error:
        raise SystemExit("one_token.py: llama.cpp needs the package llama-cpp-python") from error

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    how = llama_cpp.llama_model_default_params()
    how.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # into its own memory, as pyllama's are
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), how)
    if not loaded:
        raise SystemExit("one_token.py: llama.cpp cannot load the model")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, 1, 1
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(loaded, options)
    memory = llama_cpp.llama_get_memory(context)
    token = (llama_cpp.llama_token * 1)(TOKEN)

    def decode(position: int, _alive=silent) -> None:  # llama.cpp calls it as long as it runs
        if position == 0:
            llama_cpp.llama_memory_clear(memory, True)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)):
            raise SystemExit("one_token.py: llama.cpp failed to decode")
        llama_cpp.llama_synchronize(context)

    decode(0)
    with open_checkpoint(model) as checkpoint:
        nbytes = work.decode_nbytes(checkpoint)
    features = llama_cpp.llama_print_system_info().decode().strip()
    return nbytes, f"llama-cpp-python {llama_cpp.__version__}, {features}", decode


def main() -> None:
    engine, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    load = {
        "pyllama": lambda: load_pyllama(model, threads, True),
        "plain": lambda: load_pyllama(model, threads, False),
        "llama.cpp": lambda: load_llama_cpp(model, threads),
    }[engine]
    nbytes, build, decode = load()
    print(json.dumps({"nbytes": nbytes, "build": build}), flush=True)
    for turn, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        decode((turn + 1) % CONTEXT)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
