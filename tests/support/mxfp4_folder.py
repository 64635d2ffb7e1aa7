"""gpt-oss's experts as published: MXFP4 in codes and scales apart, gate and up row by row in turn. NumPy only.

`stored` makes seeded ones of the tensors that the class in transformers has, `widened` the values that they stand for.
"""

from __future__ import annotations

import numpy as np
import reference

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
EXPERTS = (".gate_up_proj", ".down_proj")


def stored(name: str, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """What holds one of the class's tensors: of experts (N, in, out), uint8 blocks (N, out, in / 32, 16) and scales."""
    if not name.endswith(EXPERTS):
        return {name: reference.random_tensor(name, shape, seed)}
    count, cols, rows = shape
    noise = np.abs(reference.random_tensor(f"{name}_blocks.bias", (count, rows, cols // 32, 17), seed))
    numbers = (noise * 65536).astype(np.int64)  # what random_tensor gives is exact in bfloat16: its low bits are zeros
    numbers = (numbers ^ numbers >> 7) % 251
    scales = (121 + numbers[..., 16] % 4 + 3 * name.endswith(".down_proj")).astype(np.uint8)
    return {f"{name}_blocks": numbers[..., :16].astype(np.uint8), f"{name}_scales": scales}


def stored_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """All tensors of a folder, float32 or uint8."""
    return {key: values for name, shape in shapes.items() for key, values in stored(name, shape, seed).items()}


def widened(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same as the class in transformers holds them, float32."""
    found = {}
    for name, values in tensors.items():
        if name.endswith("_blocks"):
            scales = tensors[name.replace("_blocks", "_scales")].astype(np.int32) - 127
            levels = np.stack([LEVELS[values & 15], LEVELS[values >> 4]], axis=-1)
            levels = levels.reshape(*values.shape[:-1], 32) * np.exp2(scales.astype(np.float32))[..., None]
            found[name.removesuffix("_blocks")] = levels.reshape(*values.shape[:2], -1).transpose(0, 2, 1).copy()
        elif not name.endswith("_scales"):
            found[name] = values
    return found
