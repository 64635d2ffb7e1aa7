"""What is not a model pyllama runs, told by what it says of itself: names and first bytes in, a few words out.

The words complete a refusal, so that a person knows what was given and what to get instead. Knows no reader and
opens no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ENCODER = "an encoder, which makes vectors and writes no text"
_TRANSLATOR = "an encoder and decoder"
_EXPERTS = "a mixture of experts"
_IMAGES = "a model that sees images"
_PICTURES = "a model that makes pictures"
_SPEECH = "a model of speech"
_RECURRENT = "a recurrent model"
_MULTIMODAL_PART = "the part of a model that sees or hears: give the file of the language model"

# model_type of config.json, general.architecture of GGUF: what other families are
_KINDS = {
    _ENCODER: "bert roberta xlm-roberta xlm_roberta distilbert albert deberta deberta-v2 electra mpnet camembert "
    "modernbert modern-bert nomic_bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 eurobert neo-bert new "
    "longformer gemma-embedding splade clip_text_model",
    _TRANSLATOR: "t5 t5encoder mt5 umt5 bart mbart marian pegasus m2m_100 blenderbot led",
    _EXPERTS: "qwen2_moe qwen2moe qwen3next qwen3_next deepseek2 deepseek_v2 deepseek_v3 "
    "llama4 llama4_text olmoe phimoe granitemoeshared dbrx grok arctic glm4moe glm4_moe bailingmoe "
    "ernie4_5_moe hunyuan-moe",
    _IMAGES: "llava llava_next llava_llama llava_mistral llava_qwen mllama qwen2_vl qwen2vl qwen2_5_vl qwen3_vl "
    "qwen3vl internvl internvl_chat idefics idefics2 idefics3 smolvlm paligemma minicpmv pixtral mistral3 gemma3 "
    "gemma3n gemma3n_text lfm2_vl qwen3_vl_moe phi4_multimodal llama4_vision phi3_v moondream1 cogvlm chameleon",
    _PICTURES: "flux sd1 sd2 sd3 sdxl wan hunyuan_video ltxv aura lumina2 cosmos hidream qwen_image",
    _SPEECH: "whisper wav2vec2 hubert seamless_m4t speech_to_text bark musicgen csm encodec wavtokenizer-dec",
    _RECURRENT: "mamba mamba2 rwkv rwkv5 rwkv6 rwkv6qwen2 rwkv7 falcon_mamba recurrent_gemma jamba xlstm "
    "granitehybrid bamba zamba zamba2 nemotron_h nemotron_h_moe falcon_h1 falcon-h1 plamo2 kimi_linear olmo_hybrid",
    _MULTIMODAL_PART: "clip siglip siglip_vision_model clip_vision_model vit dinov2 mtmd",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}

_CLASSES = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a finder of answers in a text",
    "ForRewardModel": "a reward model",
    "ForProcessRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForConditionalGeneration": _IMAGES + " or " + _TRANSLATOR,
    "EncoderModel": _ENCODER,
    "BiModel": _ENCODER,
    "ForMaskedLM": _ENCODER,
    "ForCausalLMEagle": "a drafter for another model",
    "ForCausalLMEagle3": "a drafter for another model",
}

_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4",
            "hqq": "HQQ", "aqlm": "AQLM", "exl2": "EXL2", "quip": "QuIP"}  # fmt: skip


def described(name: str) -> str:
    """`, an encoder, ...` for a family's name, as it goes on after it; "" for one that is not known."""
    kind = _KIND_OF.get(name.lower())
    return f", {kind}," if kind else ""


def described_class(name: str) -> str:
    """The same for a class of transformers."""
    for end, kind in _CLASSES.items():
        if name.endswith(end):
            return f", {kind},"
    return ""


def quantization(key: str, value: Any) -> str:
    """What a quantization key of config.json says: the method, and bits a weight where it tells them."""
    if not isinstance(value, Mapping):
        return "without a name"
    method = value.get("quant_method") or value.get("quant_algo") or value.get("mode")
    if key == "quantization" or (method is None and "group_size" in value):
        name = "of MLX"
    elif isinstance(method, str):
        name = f"{_METHODS.get(method.lower(), '')} {method[:40]!r}".strip()
    else:
        name = "without a name"
    loaded = 4 if value.get("load_in_4bit") else 8 if value.get("load_in_8bit") else None
    bits = value.get("bits", value.get("w_bit", loaded))
    return f"{name}, {bits} bits" if type(bits) is int and 0 < bits <= 32 else name


# First bytes -> what they are, and what to do. The order matters: some begin as others do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file it stands for; fetch that by "
     "`git lfs pull` in its folder, or pyllama pull org/name"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"lmgg", "a GGML file of before August 2023; get a GGUF file of the model"),
    (b"fmgg", "a GGML file of before August 2023; get a GGUF file of the model"),
    (b"tjgg", "a GGML file of before August 2023; get a GGUF file of the model"),
    (b"algg", "a LoRA adapter in a GGML file of before August 2023; get a GGUF file of the merged model"),
    (b"\x89HDF\r\n\x1a\n", "weights for TensorFlow (HDF5); get the model as safetensors or GGUF"),
    (b"MZqFpD", "a llamafile; unzip the .gguf out of it"),
    (b"\x7fELF", "a program"),
    (b"\x80\x02", "a Python pickle; get the model as safetensors or GGUF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"<?xml", "a web page or a server's error message (XML), not the file; fetch it again"),
    (b"%PDF", "a PDF document"),
)  # fmt: skip
HEAD_NBYTES = 512


def described_bytes(head: bytes, nbytes: int) -> str | None:
    """What a file is by its first HEAD_NBYTES bytes and its size, and what to do; None for one that is not known."""
    if nbytes == 0:
        return "an empty file; its download has failed, or not ended"
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "a web page, not the file; fetch it again, from the link that downloads it (/resolve/, not /blob/)"
    if text.startswith((b'{"error', b'{"message', b"entry not found", b"repository not found", b"access to model",
                        b"invalid username", b"invalid credentials", b"unauthorized", b"not found")):  # fmt: skip
        return f"a server's error message ({text[:60].decode('ascii', 'replace')!r}), not the file; fetch it again"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if len(head) >= 64 and not head.strip(b"\0"):
        return "nothing but zeros at its start; its download has failed, or not ended"
    return None
