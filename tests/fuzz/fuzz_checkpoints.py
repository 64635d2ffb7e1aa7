"""Coverage-guided fuzzing of the checkpoint readers: `fuzz_checkpoints.py TARGET CORPUS [libFuzzer options]`.

Whatever the bytes, a reader raises a PyllamaError or opens a checkpoint whose every tensor can be read
in the shape the config implies; anything else is a finding, and libFuzzer keeps the input. An empty
CORPUS is filled with sound files first. Needs atheris; see README.md beside this file.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "support")]

with atheris.instrument_imports(include=["pyllama"]):
    import pyllama.checkpoint.gguf  # imported where they are used otherwise, which would be too late
    import pyllama.checkpoint.meta  # noqa: F401
    from pyllama.architecture.tensors import tensor_shapes
    from pyllama.checkpoint import open_checkpoint
    from pyllama.checkpoint.huggingface_config import huggingface_config
    from pyllama.checkpoint.meta_config import meta_config
    from pyllama.checkpoint.torch_records import read_records
    from pyllama.errors import PyllamaError
    from pyllama.strict_json import parse_object

    if "packed" in sys.argv[1:2]:  # needs a build
        from pyllama.checkpoint import packed as packed_files

import tiny

SIZES = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": 4,
}
TOTAL_NBYTES = 2 * (4 * 4 * 4 + 2 * 2 * 4 + 3 * 4 * 4 + 3 * 4)  # of the model of these sizes in bfloat16
PACKED_BLOCKS = bytearray()  # what follows the header of the sound packed model
SCRATCH = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


def check_open(path: Path, *, sound_blocks: bool = True) -> None:
    """sound_blocks: once a checkpoint is open, nothing in it can be refused any more."""
    checkpoint = check_error(open_checkpoint, path)
    if checkpoint is None:
        return
    with checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        assert shapes == tensor_shapes(checkpoint.config)
        for tensor in checkpoint.tensors.values():
            rows = check_error(checkpoint.read_rows, tensor, 0, tensor.rows)
            assert rows.nbytes == tensor.nbytes if rows is not None else not sound_blocks


def packed(data: bytes) -> None:
    """A header alone: length, checksum and blocks are put right, so that mutation gets past them."""
    text = data + b" " * (-(8 + len(data)) % packed_files.SECTOR)
    head = bytearray(len(text).to_bytes(8, "little") + text)
    head[packed_files.CRC_AT : packed_files.CRC_AT + 8] = b"%08x" % packed_files.header_crc32(head)
    (SCRATCH / "model.safetensors").write_bytes(head + PACKED_BLOCKS)
    check_open(SCRATCH, sound_blocks=False)  # which bytes are a block's is the header's word


def check_error(function, *arguments):
    """What the function returns; None if it raised an error, of one printable line."""
    try:
        return function(*arguments)
    except PyllamaError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        str(error).encode()
        return None


def model(**overrides):
    config = tiny.tiny_config(**(SIZES | overrides))
    return config, tiny.random_tensors(config)


def safetensors(data: bytes) -> None:
    if data.startswith(b"{"):  # a header alone: give it the length and the data, which mutation rarely gets right
        data = len(data).to_bytes(8, "little") + data + bytes(TOTAL_NBYTES)
    (SCRATCH / "model.safetensors").write_bytes(data)
    check_open(SCRATCH)


def gguf(data: bytes) -> None:
    (SCRATCH / "m.gguf").write_bytes(data)
    check_open(SCRATCH / "m.gguf")


def meta(data: bytes) -> None:
    (SCRATCH / "consolidated.00.pth").write_bytes(data)
    check_open(SCRATCH)


def pickle(data: bytes) -> None:
    check_error(read_records, data, "x.pth")


def config(data: bytes) -> None:
    check_error(lambda: huggingface_config(parse_object(data, "config.json")))


def params(data: bytes) -> None:
    def read() -> None:
        meta_config(parse_object(data, "params.json"), vocab_size=8, intermediate_size=8, tie_word_embeddings=True)

    check_error(read)


def index(data: bytes) -> None:
    (SCRATCH / "model.safetensors.index.json").write_bytes(data)
    check_open(SCRATCH)


def seeds(target: str) -> list[bytes]:
    """Sound inputs; also puts the other files a target needs into SCRATCH."""
    where = SCRATCH
    if target == "safetensors":
        tiny.write_huggingface(where, *model())
        whole = (where / "model.safetensors").read_bytes()
        return [whole, whole[8 : len(whole) - TOTAL_NBYTES]]
    if target == "index":
        tiny.write_huggingface(where, *model(), shards=2)
        return [(where / "model.safetensors.index.json").read_bytes()]
    if target == "gguf":
        found = []
        for model_type in ("llama", "qwen2", "qwen3"):
            extra = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 2}
            found.append(tiny.write_gguf(where / "m.gguf", *model(model_type=model_type), extra=extra).read_bytes())
        return found
    if target == "meta":
        tiny.write_meta(where, *model())
        return [(where / "consolidated.00.pth").read_bytes()]
    if target == "pickle":
        return [tiny.torch_pickle([("a", "F32", (2, 2)), ("b", "BF16", (3,))])]
    if target == "packed":
        tiny.write_huggingface(where / "source", *model())
        from pyllama.packing import pack

        pack(where / "source", where / "packed")
        whole = (where / "packed" / "model.safetensors").read_bytes()
        shutil.copy(where / "packed" / "config.json", where)
        end = 8 + int.from_bytes(whole[:8], "little")
        PACKED_BLOCKS.extend(whole[end:])
        return [whole[8:end].rstrip(b" ")]
    if target == "params":
        return [json.dumps(tiny.meta_params(tiny.tiny_config())).encode()]
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    more = [{}, {"rope_scaling": scaling}, {"model_type": "qwen2", "use_sliding_window": True}]
    return [json.dumps(tiny.tiny_config(**overrides)).encode() for overrides in more]


TARGETS = {f.__name__: f for f in (safetensors, packed, gguf, meta, pickle, config, params, index)}


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_checkpoints.py {'|'.join(TARGETS)} CORPUS [libFuzzer options]")
    target, corpus = sys.argv.pop(1), Path(sys.argv[1])
    for i, seed in enumerate(seeds(target)):
        if not corpus.is_file():  # a finding to be seen again
            corpus.mkdir(parents=True, exist_ok=True)
            (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup(sys.argv, TARGETS[target])
    atheris.Fuzz()


main()
