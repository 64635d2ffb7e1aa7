"""Texts to vectors: the mean of the model's final hidden states over a text's tokens, scaled to length 1.

Models that write text were not trained for it: it serves who has nothing else, and is off unless --embeddings asks.
"""

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from pyllama.engine import Stream
from pyllama.engine.engine import MAX_RUNNING
from pyllama.errors import ContextOverflowError
from pyllama.generation import Embedding
from pyllama.generation.sampler import SamplingParams
from pyllama.server.answers import unless_hung_up
from pyllama.server.errors import ApiError, unsupported
from pyllama.server.service import Service, end_turn

MAX_TEXTS = 256


def refuse_unless_asked(service: Service, dimensions: int | None = None) -> None:
    """Raises ApiError 400 where --embeddings was not given, or vectors have other dimensions than are asked for."""
    if not service.settings.embeddings:
        raise ApiError(
            400,
            "embeddings: not served unless --embeddings is given; the models here were trained to write text, and "
            "their hidden states make poor embeddings",
            code="unsupported",
        )
    size = service.model.config.hidden_size
    if dimensions not in (None, size):
        raise unsupported("dimensions", f"got {dimensions}, expected {size}")


async def vectors_of(
    service: Service, request: Request, texts: Sequence[str | list[int]], param: str
) -> tuple[list[np.ndarray], int]:
    """A float32 (hidden_size,) for each text or list of token ids, and how many tokens they had. Raises ApiError.

    param  the request's field that they come from
    """
    prompts = await service.in_text_thread(request, _encode, service, texts, param)
    end_turn(request.scope)
    return await unless_hung_up(request, _computed(service, request, prompts, param), service.settings.timeout_s)


def _encode(service: Service, texts: Sequence[str | list[int]], param: str) -> list[list[int]]:
    size, found = service.model.config.vocab_size, []
    for index, text in enumerate(texts):
        ids = service.tokenizer.encode(text, parse_special=False) if isinstance(text, str) else text
        wrong = next((token_id for token_id in ids if token_id >= size), None)
        if wrong is not None or not ids:
            got = "no tokens, expected at least one" if wrong is None else f"token id {wrong}, expected 0 to {size - 1}"
            raise ApiError(400, f"{param}[{index}]: {got}", param, "invalid_value")
        found.append(ids)
    return found


async def _computed(
    service: Service, request: Request, prompts: list[list[int]], param: str
) -> tuple[list[np.ndarray], int]:
    vectors: list[np.ndarray] = []
    # A few at a time: one request does not fill the queue.
    for first in range(0, len(prompts), MAX_RUNNING):
        streams: list[Stream] = []
        try:
            for ids in prompts[first : first + MAX_RUNNING]:
                streams.append(
                    service.engine.submit_ids(ids, SamplingParams(), client=request.state.client, kind=Embedding)
                )
            for stream in streams:
                await stream.read()
                answer = stream.request.answer
                if isinstance(answer, Embedding) and answer.vector is not None:
                    vectors.append((answer.vector / max(np.linalg.norm(answer.vector), 1e-30)).astype(np.float32))
        except ContextOverflowError as error:
            raise ApiError(400, str(error), param, "context_length_exceeded") from None
        finally:
            for stream in streams:
                stream.close()
    return vectors, sum(map(len, prompts))
