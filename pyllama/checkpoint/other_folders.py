"""A folder without weights pyllama reads -> the error that says what is there instead, and what would help.

Looks at names of files, and into the small ones that tell where their weights are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyllama.checkpoint.files import read_small
from pyllama.checkpoint.strict_json import MAX_NBYTES, parse_object
from pyllama.errors import CheckpointError, UnsupportedError, shown

EXPECTED = "config.json with *.safetensors, one *.gguf, or params.json with consolidated.*.pth"
ADAPTER = "adapter_config.json"
MAX_ENTRIES = 10_000  # of a folder that is looked through
SHOWN = 4

_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
_INSTEAD = "get the model as safetensors or GGUF"
# Names of files that are the weights of other programs, and how to call them.
_OTHERS = (
    (r"(pytorch_model|model).*\.(bin|pt|ckpt)", "weights only as {name}, a Python pickle; convert them to safetensors "
     "(model.save_pretrained in transformers) or get a repository that has them"),
    (r".*\.onnx", f"weights only for ONNX ({{name}}); {_INSTEAD}"),
    (r"(tf_model|model|keras).*\.(h5|keras)", f"weights only for TensorFlow ({{name}}); {_INSTEAD}"),
    (r"flax_model.*\.msgpack", f"weights only for Flax ({{name}}); {_INSTEAD}"),
    (r"openvino.*\.xml", f"weights only for OpenVINO ({{name}}); {_INSTEAD}"),
    (r".*\.(tflite|task|litertlm)", f"weights only for LiteRT ({{name}}); {_INSTEAD}"),
    (r".*\.(mlpackage|mlmodelc)", f"weights only for Core ML ({{name}}); {_INSTEAD}"),
    (r"weights.*\.npz", f"weights only of an early MLX ({{name}}); {_INSTEAD}"),
    (r"ggml.*\.bin|.*\.ggml.*", "a GGML file of before August 2023 ({name}); get a GGUF file of the model"),
    (r".*\.(pt|pth|ckpt|bin)", f"weights only as {{name}}, which pyllama does not read; {_INSTEAD}"),
)  # fmt: skip


def refusal(folder: Path) -> CheckpointError:
    """The error for a folder in which no reader has found a model."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry, _ in zip(found, range(MAX_ENTRIES), strict=False))
    except OSError as error:
        return CheckpointError(f"cannot read {folder}: {str(error).lower()}")
    names = [name for name, is_folder in entries if not is_folder]
    folders = [name for name, is_folder in entries if is_folder]
    if not entries:
        return CheckpointError(f"{folder}: no model in an empty folder, expected {EXPECTED}")
    if ADAPTER in names or any(name.startswith("adapter_model.") for name in names):
        return _adapter(folder, names)
    mistral = [name for name in names if name.startswith("consolidated") and name.endswith(".safetensors")]
    if mistral:
        return UnsupportedError(
            f"{folder}: weights only as {mistral[0]}, Mistral's own form, which is not supported; get the repository's "
            "config.json and model*.safetensors, or a GGUF file of the model"
        )
    if "model_index.json" in names:
        return UnsupportedError(f"{folder}: a pipeline that makes pictures (model_index.json), no language model")
    if any(name.endswith(".safetensors") for name in names):
        return CheckpointError(
            f"{folder}: *.safetensors but no config.json, expected both; get it from where they are from"
        )
    inside = [name for name in folders if is_model(folder / name)] if "config.json" not in names else []
    if inside:
        return CheckpointError(
            f"{folder}: no model, but in folders of it; give {' or '.join(str(folder / n) for n in inside[:SHOWN])}"
        )
    snapshots = sorted((folder / "snapshots").glob("*")) if "snapshots" in folders else []
    if snapshots:
        return CheckpointError(f"{folder}: a repository in the Hub's cache; give its name, or {snapshots[-1]}")
    for pattern, what in _OTHERS:
        for name in (*names, *folders):
            if re.fullmatch(pattern, name):
                return UnsupportedError(f"{folder}: {what.format(name=name)}")
    if "onnx" in folders or "openvino" in folders:
        kind = "ONNX" if "onnx" in folders else "OpenVINO"
        return UnsupportedError(f"{folder}: weights only for {kind}; get the model as safetensors or GGUF")
    if "config_sentence_transformers.json" in names or "modules.json" in names:
        return UnsupportedError(f"{folder}: a model of sentence embeddings, which writes no text")
    if "config.json" in names:
        return CheckpointError(
            f"{folder}: config.json but no *.safetensors, expected the model's weights; has the download ended?"
        )
    if "params.json" in names:
        return CheckpointError(f"{folder}: params.json but no consolidated.*.pth, expected both")
    return CheckpointError(f"{folder}: no model, expected {EXPECTED}")


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model's, by the names in it."""
    try:
        return any(
            name == "config.json" or name.endswith((".gguf", ".safetensors")) or name.startswith("consolidated.")
            for name in os.listdir(folder)
        )
    except OSError:
        return False


def missing_shards(names: list[str]) -> list[str]:
    """The files that would make shards without an index whole: model-00002-of-00003.safetensors."""
    missing: list[str] = []
    have = set(names)
    for name in names:
        match = _SHARD.fullmatch(name)
        if match and int(match[3]) <= MAX_ENTRIES:
            wanted = (f"{match[1]}-{i:05}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1))
            missing += [other for other in wanted if other not in have]
    return list(dict.fromkeys(missing))


def _adapter(folder: Path, names: list[str]) -> UnsupportedError:
    base = None
    if ADAPTER in names:
        try:
            base = parse_object(read_small(folder / ADAPTER, MAX_NBYTES), ADAPTER).get("base_model_name_or_path")
        except CheckpointError:
            pass  # the folder is an adapter's all the same
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    file = next(name for name in names if name.startswith("adapter_"))
    return UnsupportedError(
        f"{folder}: a LoRA adapter{of} ({file}), no model of its own; merge it into that model (merge_and_unload and "
        "save_pretrained in peft) and give the merged folder"
    )
