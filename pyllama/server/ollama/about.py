"""What Ollama's clients ask of a server: its version, its models, what one is."""

import math
from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.server.errors import invalid
from pyllama.server.fill_in import can_fill_in
from pyllama.server.json_object import JsonObject
from pyllama.server.ollama.chat import now
from pyllama.server.service import Service
from pyllama.version import __version__

_FOR_EVER = "9999-12-31T23:59:59Z"  # the model stays


async def version(service: Service, request: Request) -> JSONResponse:
    return JSONResponse({"version": __version__})


async def tags(service: Service, request: Request) -> JSONResponse:
    return JSONResponse({"models": [_model(service, name) for name in service.names]})


async def running(service: Service, request: Request) -> JSONResponse:
    more = {"expires_at": _FOR_EVER, "size_vram": 0, "context_length": service.model.context_length}
    return JSONResponse({"models": [_model(service, service.name) | more]})


async def show(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    name = body.get("model") or body.get("name")
    if name is None:
        raise invalid("model", "missing")
    service.check_name(name)
    config, template = service.model.config, service.tokenizer.chat_template
    kind = config.model_type
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
    }
    abilities = {
        "completion": True,
        "tools": service.tool_format is not None,
        "thinking": service.has_channels or "<think>" in (template or ""),
        "embedding": service.settings.embeddings,
        "insert": can_fill_in(service.tokenizer),
    }
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": f"num_ctx {service.model.context_length}",
            "template": template or "",
            "details": _details(service),
            "model_info": {
                "general.architecture": kind,
                "general.parameter_count": _parameters(service),
                **{f"{kind}.{name}": value for name, value in sizes.items()},
            },
            "capabilities": [name for name, able in abilities.items() if able],
            "modified_at": now(),
        }
    )


def _model(service: Service, name: str) -> JsonObject:
    return {
        "name": name,
        "model": name,
        "modified_at": now(),
        "size": service.model.checkpoint.nbytes,
        "digest": service.fingerprint.removeprefix("fp_"),
        "details": _details(service),
    }


def _parameters(service: Service) -> int:
    return sum(math.prod(tensor.shape) for tensor in service.model.checkpoint.tensors.values())


def _details(service: Service) -> JsonObject:
    checkpoint, kind = service.model.checkpoint, service.model.config.model_type
    dtypes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype] += tensor.nbytes
    return {
        "parent_model": "",
        "format": checkpoint.format,
        "family": kind,
        "families": [kind],
        "parameter_size": _short(_parameters(service)),
        "quantization_level": dtypes.most_common(1)[0][0],
    }


def _short(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"
