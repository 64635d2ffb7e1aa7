"""A gap in a text to the prompt of a model that was trained to fill gaps: what is before it, what is after it.

Which models were is told by their control tokens.
"""

from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import Request

from pyllama.server import tools
from pyllama.server.conversation import Asked
from pyllama.server.errors import unsupported
from pyllama.server.json_object import JsonObject
from pyllama.server.sampling import wanted
from pyllama.server.service import Service

if TYPE_CHECKING:
    from pyllama.tokenizer import Tokenizer

# Before what precedes the gap, before what follows it, and before what fills it (Mistral's: none, and the other order).
_FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    (" <PRE>", " <SUF>", " <MID>"),  # Code Llama
    ("[PREFIX]", "[SUFFIX]", None),  # Codestral
)
_FILE = ("<|file_sep|>", "<file_sep>")
_ENDS = (*_FILE, "<|fim_pad|>", "<fim_pad>", "<|repo_name|>", "<|endoftext|>", "<|end_of_text|>", " <EOT>")


class Gap(NamedTuple):
    """What is asked to be filled. files: (name, text) of others that may help."""

    before: str
    after: str
    files: tuple[tuple[str, str], ...] = ()


def _marks(tokenizer: "Tokenizer") -> list[int | None] | None:
    for form in _FORMS:
        ids = [tokenizer.id_of(token) if token else None for token in form]
        if all(token_id is not None for token, token_id in zip(form, ids) if token):
            return ids
    return None


def can_fill_in(tokenizer: "Tokenizer") -> bool:
    """Whether the model knows how."""
    return _marks(tokenizer) is not None


def prompt_of(tokenizer: "Tokenizer", gap: Gap, param: str) -> tuple[list[int], list[int]]:
    """The prompt's token ids, and those that end what fills the gap. Raises ApiError naming the field param."""
    marks = _marks(tokenizer)
    if marks is None:
        raise unsupported(param, "this model has no tokens for filling a gap; Qwen2.5-Coder is one that has")

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False, parse_special=False)

    def known(names: tuple[str, ...]) -> list[int]:
        return [token_id for name in names if (token_id := tokenizer.id_of(name)) is not None]

    prefix, suffix, middle = marks
    ids, separator = tokenizer.encode(""), known(_FILE)[:1]  # the beginning of a text, if the model has a token for it
    for name, text in gap.files:
        ids += [*separator, *plain(f"{name}\n{text}\n")]
    if gap.files and separator:
        ids += [*separator, *plain("filename\n")]
    before, after = [prefix, *plain(gap.before)], [suffix, *plain(gap.after)]
    parts = [*before, *after, middle] if middle is not None else [*after, *before]
    ends = [mark for mark in marks if mark is not None]
    return [*ids, *(part for part in parts if part is not None)], ends + known(_ENDS)


async def fill_in(service: Service, request: Request, body: JsonObject, gap: Gap, param: str) -> Asked:
    """Queue what fills a gap.

    body   has sampling's fields as OpenAI names them
    param  the request's field that a gap is told by
    """
    ids, ends = await service.in_text_thread(request, prompt_of, service.tokenizer, gap, param)
    return continued(service, request, {**body, "stop_token_ids": [*(body.get("stop_token_ids") or ()), *ends]}, ids)


def continued(service: Service, request: Request, body: JsonObject, prompt_ids: list[int]) -> Asked:
    """Queue what follows a text: one answer without template or tools, for the shapes that a conversation's has."""
    want = wanted(body, body.get("max_tokens"), None, service.model.config.vocab_size, service.sampling_defaults)
    streams = service.submit([prompt_ids], want, request, body.get("user"), "prompt", continuation=True)
    return Asked(streams, want, tools.ToolChoice(None, []))
