"""Tokens known by their names: what ends a text or a turn, and the markers of the chat template.

Files get the types of tokens wrong: conversions store <|im_end|> as user-defined or normal and leave the eos of the
base model, and the answer runs on into an invented next turn. Changes the parts of a tokenizer before it is made; knows
no file format. The names are those at which llama.cpp ends (src/llama-vocab.cpp, special_eog_ids) and some more; it
also ends at those of ordinary text (`</s>` in Qwen's and Gemma's vocabularies is HTML), which this does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from pyllama.errors import PyllamaError
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.tokenizer import Parts

ENDS = (
    # of a turn
    "<|eot_id|>", "<|eom_id|>",  # Llama 3
    "<|eot|>", "<|eom|>",  # Llama 4
    "<|im_end|>",  # ChatML
    "<|end|>",  # Phi; not in harmony, below
    "<|end_of_turn|>",  # OpenChat
    "<end_of_turn>",  # Gemma
    "<turn|>", "<|tool_response>",  # Gemma 4
    "<|return|>", "<|call|>",  # harmony (gpt-oss)
    "<|calls|>", "<|flush|>",  # Solar Open
    "<|END_OF_TURN_TOKEN|>",  # Command R
    "[|endofturn|]", "<|endofturn|>",  # EXAONE, HyperCLOVA X
    "<end_of_utterance>",  # SmolVLM, SmolDocling
    "<EOT>", "_<EOT>", "\u2581<EOT>", "[EOT]",  # CodeLlama, Kimi K2
    "[e~[",  # MiniMax
    # of a text
    "</s>", "<eos>", "[EOS]", "<|eos|>",
    "<|endoftext|>", "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek
    # of what is filled into a file or a repository
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>",
)  # fmt: skip
_TEMPLATE_BRACKETS = (b"<[]", b">][")  # what a marker begins and ends with
_MARKER = re.compile(r"[<\[\]]\S+[>\]\[]")
_TAG = re.compile(r"</?(\w+)>")
_PUT_TOGETHER = re.compile(r"(?:<[|\uff5c]?|\[\|)['\"]")  # '<|' + role + '|>'
_TAGS_OF_HTML = ("</td>", "</strong>", "</sub>", "</table>")
_TALKS = tuple(
    [{"role": role, "content": "x"} for role in roles]
    for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",))
)


def settle(parts: Parts) -> None:
    """Makes ends and template markers special tokens, whatever they were; completes parts.eos_token_ids.

    A token that merges make is ordinary text, whatever it is called; unless the files name it as an end. Markers of the
    template that were no special tokens (DeepSeek's <｜User｜> is user-defined) stay to be seen in an answer.
    """
    tokens = _Tokens(parts)
    explicit = [token_id for token_id in parts.eos_token_ids if token_id < parts.size]
    found = {name: token for name in ENDS if (token := tokens.find(name)) is not None}
    by_name = [name for name, token in found.items() if tokens.is_marker(token) or token.id in explicit]
    for name in _exceptions(set(by_name), tokens):
        by_name.remove(name)
    named_ids = [found[name].id for name in by_name]
    parts.eos_token_ids = tuple(dict.fromkeys([*explicit, *named_ids]))
    tokens.make_special([found[name] for name in by_name])
    outer = [*explicit] if parts.bos_token_id is None else [*explicit, parts.bos_token_id]
    tokens.make_special(
        token
        for token in map(tokens.of, outer)
        if token is not None and _MARKER.fullmatch(token.content) and tokens.is_marker(token)
    )
    if parts.chat_template is not None:
        candidates = [*tokens.not_added(), *tokens.user_defined()]
        written = _of_template(parts.chat_template, candidates)
        markers = [token for token in candidates if token.content in written]
        tokens.make_special(token._replace(shown=True) for token in markers if not tokens.is_tag(token))
        tokens.cut_first(token for token in markers if tokens.is_tag(token))


def _exceptions(ends: set[str], tokens: _Tokens) -> set[str]:
    """Names that are no ends beside others, though they are there."""
    calls = ends & {"<|call|>", "<|calls|>"}
    no_ends = set()
    if calls and ends & {"<|return|>", "<|flush|>"}:
        no_ends.add("<|end|>")  # ends a message there, and the next one follows
    token = tokens.find("</s>")
    if "<|tool_response>" in ends or token is not None and not token.special and tokens.has_html():
        no_ends.add("</s>")  # strikes text through
    explicit = {tokens.content(token_id) for token_id in tokens.parts.eos_token_ids}
    return (no_ends & ends) - explicit


def _of_template(template: ChatTemplate, candidates: list[AddedToken]) -> set[str]:
    """Those of the tokens that the template writes."""
    text = template.source
    if any(token.content not in text for token in candidates) and _PUT_TOGETHER.search(text):
        text += _rendered(template)
    return {token.content for token in candidates if token.content in text}


def _rendered(template: ChatTemplate) -> str:
    """What the template makes of a short talk; "" if it fails."""
    for talk in _TALKS:
        try:
            return template.render(talk)
        except PyllamaError:
            continue
    return ""


class _Tokens:
    """The tokens of `parts` by name and id, added or not."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._added = {token.content: token for token in parts.added}
        added_ids = {token.id for token in parts.added}
        # Tokens that are in no merge's alphabet, "<\uff5cUser\uff5c>", have their text here.
        self._texts = {
            data.decode("utf-8", "replace"): token_id
            for token_id, data in parts.decoded.items()
            if token_id not in added_ids and len(data) > 1 and token_id < parts.size
        }

    def find(self, name: str) -> AddedToken | None:
        """The token of that name, an added token or as it would be added."""
        token = self._added.get(name)
        if token is None:
            token_id = self._texts.get(name, self.parts.vocabulary.find(name.encode()))
            if 0 <= token_id < self.parts.size:
                token = AddedToken(token_id, name, special=False)
        return token

    def content(self, token_id: int) -> str:
        data = self.parts.decoded.get(token_id)
        if data is None:
            data = self.parts.vocabulary.bytes_of(token_id) if token_id < self.parts.vocabulary.size else b""
        return data.decode("utf-8", "replace")

    def of(self, token_id: int) -> AddedToken | None:
        """The token of an id."""
        return self.find(self.content(token_id)) if 0 <= token_id < self.parts.size else None

    def is_marker(self, token: AddedToken) -> bool:
        """Whether no text becomes this token unless it is cut out: it is added, or no merge makes it."""
        return token.content in self._added or not self.parts.model.makes(np.array([token.id]))[0]

    def has_html(self) -> bool:
        return any((token := self.find(tag)) is not None and not token.special for tag in _TAGS_OF_HTML)

    def not_added(self) -> list[AddedToken]:
        """Tokens in the brackets of a marker that are no added tokens and that no merge makes."""
        ids = self.parts.vocabulary.between(*_TEMPLATE_BRACKETS)
        ids = ids[ids < self.parts.size]
        ids = ids[~self.parts.model.makes(ids)]
        texts = dict.fromkeys([*map(self.content, ids.tolist()), *self._texts])
        tokens = [self.find(text) for text in texts if text not in self._added and _MARKER.fullmatch(text)]
        return [token for token in tokens if token is not None]

    def user_defined(self) -> list[AddedToken]:
        """Added tokens in the brackets of a marker that are not special."""
        return [token for token in self.parts.added if not token.special and _MARKER.fullmatch(token.content)]

    def is_tag(self, token: AddedToken) -> bool:
        """Whether an added token is one of a pair, <think> and </think>: messages hold these, and they are no roles."""
        tag = _TAG.fullmatch(token.content)
        pair = (f"<{tag[1]}>", f"</{tag[1]}>") if tag else ()
        return bool(pair) and all(name in self._added and not self._added[name].special for name in pair)

    def make_special(self, tokens: Iterable[AddedToken]) -> None:
        """Added tokens that user text never becomes."""
        changed = [self._cut_first(token)._replace(special=True) for token in tokens if not token.special]
        if changed:
            self._replace(changed)
            self.parts.model.forbid(frozenset(token.id for token in changed))

    def cut_first(self, tokens: Iterable[AddedToken]) -> None:
        """SentencePiece's user-defined tokens, searched before the text gets its space prefix."""
        self._replace([self._cut_first(token) for token in tokens])

    def _cut_first(self, token: AddedToken) -> AddedToken:
        return token._replace(normalized=token.normalized and self.parts.normalized_contents is None)

    def _replace(self, tokens: list[AddedToken]) -> None:
        if tokens:
            self._added |= {token.content: token for token in tokens}
            self.parts.added = tuple(sorted(self._added.values(), key=lambda token: token.id))
            self.parts.decoded |= {token.id: token.content.encode() for token in tokens}
