"""The pre-tokenizers that GGUF knows by name (tokenizer.ggml.pre): a name to the steps between text and BPE.

GGUF files carry no pattern, only the name of a model that has it. A name that is not here is refused: another pattern
would run, give plausible ids, and make the model quietly worse. Where a model's own tokenizer.json is known, the steps
are those of Hugging Face's tokenizers (classes of letters as it has them, its normalizer); else those of llama.cpp
(src/llama-vocab.cpp). Both give the ids of llama.cpp wherever its approximations of the classes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pyllama.errors import TokenizerError
from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer import pattern_syntax, steps

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|" + _SPACES
_ASCII_SIGN_AND_LETTERS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_DEEPSEEK_WORDS = _ASCII_SIGN_AND_LETTERS + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_START = r"[^\r\n\p{L}\p{N}]?"
_ANY_CASE = r"\p{Lm}\p{Lo}\p{M}"
# Words end where a lower-case letter is followed by an upper-case one.
_GPT4O = (
    rf"{_START}[\p{{Lu}}\p{{Lt}}{_ANY_CASE}]*[\p{{Ll}}{_ANY_CASE}]+{_CONTRACTIONS}?"
    rf"|{_START}[\p{{Lu}}\p{{Lt}}{_ANY_CASE}]+[\p{{Ll}}{_ANY_CASE}]*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_LINES}"
)
_EACH_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_POEMS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"  # BLOOM's: up to a sign of punctuation
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The letters of scripts with two cases, as DeepSeek LLM spells them out.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"


class PreTokenizer(NamedTuple):
    """What a name stands for.

    names          the names in GGUF files
    patterns       each splits what the ones before left: its matches, and what lies between them, are pieces. A step
                   that is no pattern stands here as itself
    nfc            text is normalized to NFC first
    ignore_merges  a piece that is a token as a whole is that token
    add_bos        BOS goes before a text where the file does not say
    """

    names: str
    patterns: tuple[str | steps.PreTokenizer, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def steps(self, where: str) -> tuple[steps.Normalizer | None, steps.PreTokenizer]:
        """Normalizer and pre-tokenizer."""
        found = [
            steps.split_isolated(patterns.compile_pattern(step, where)) if isinstance(step, str) else step
            for step in self.patterns
        ]
        normalizer = steps.unicode_form("NFC") if self.nfc else None
        return normalizer, steps.in_turn(found)


def digits(pieces: list[str], first: bool) -> list[str]:
    """Each digit by itself, by the table of the step of that name in tokenizers."""
    return steps.split_isolated(patterns.compile_class("NUMERIC"))(pieces, first)


_ALL = (
    PreTokenizer("gpt-2 gpt2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat "
                 "a.x-4.0 mellum modern-bert jais trillion granite-docling exaone4", (patterns.GPT2,)),
    PreTokenizer("mpt olmo", (patterns.GPT2,), nfc=True),  # the tokenizer of GPT-NeoX
    PreTokenizer("smollm starcoder refact codeshell exaone minerva-7b mellum2", (digits, patterns.GPT2)),
    PreTokenizer("command-r", (digits, patterns.GPT2), nfc=True),
    PreTokenizer("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", (patterns.LLAMA3,),
                 ignore_merges=True, add_bos=True),
    PreTokenizer("smaug-bpe dbrx glm4 chatglm-bpe", (patterns.LLAMA3,)),
    PreTokenizer("minicpm5", (_THREE_DIGITS, rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS}[\r\n]*|{_LINES}"),
                 ignore_merges=True),
    PreTokenizer("jais-2", (
        rf"{_CONTRACTIONS}|{_WORD}|{_THREE_DIGITS}|{_SIGNS}[\r\n]*|\s*[\r\n]+|"
        + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}",)),
    PreTokenizer("qwen2 deepseek-r1-qwen kormo f2llmv2", (patterns.QWEN2,), nfc=True),
    PreTokenizer("stablelm2 megrez hunyuan solar-open grok-2", (patterns.QWEN2,)),
    PreTokenizer("qwen35", (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",), nfc=True),
    PreTokenizer("ufakzeka", (rf"{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|{_LINES}",)),
    PreTokenizer("laguna", (r"[^\n]+|[\n]+", patterns.QWEN2)),
    PreTokenizer("seed-coder", (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}",)),
    PreTokenizer("bailingmoe bailingmoe2 llada-moe", (
        rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|\s*[\r\n]|{_SPACES}",)),
    PreTokenizer("exaone-moe", (
        # Letters with their marks, one space between neighbours at most.
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}\p{{M}}*(?: ?\p{{L}}\p{{M}}*)*|\p{{N}}"
        rf"|{_SIGNS}[\r\n/]?|\s*[\r\n]|{_SPACES}",)),
    PreTokenizer("tekken", (patterns.TEKKEN,), ignore_merges=True, add_bos=True),
    PreTokenizer("gpt-4o llama4 kanana2 talkie minimax-m2", (_GPT4O,)),
    PreTokenizer("granite-embed-multi-97m", (_GPT4O,), ignore_merges=True),
    PreTokenizer("deepseek-llm", (r"[\r\n]", rf"\s?[{_CASED}]+", _DEEPSEEK_SIGNS, steps.spaces_at_end_apart,
                                  _IDEOGRAPHS, r"\p{N}+")),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, digits)),
    PreTokenizer("deepseek-v3 hunyuan-dense joyai-llm hy_v4", (
        _THREE_DIGITS, _CJK, rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}")),
    PreTokenizer("spark2_5", (_THREE_DIGITS, _CJK, rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}",
                              _EACH_DIGIT)),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", patterns.GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer("poro-chat bloom gpt3-finnish", (_POEMS,)),
    PreTokenizer("viking", (_POEMS, _EACH_DIGIT)),
    PreTokenizer("superbpe", (r"\p{N}+", steps.thousands)),
    PreTokenizer("chameleon", ("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", _EACH_DIGIT,
                               r"[\p{P}!-/:-@\[-`{-~]", patterns.GPT2), add_bos=True),
)  # fmt: skip
_BY_NAME = {name: entry for entry in _ALL for name in entry.names.split()}
NAMES = tuple(_BY_NAME)


def pre_tokenizer(name: str, where: str) -> PreTokenizer:
    """The pre-tokenizer of a name. Raises TokenizerError for one that is not known here.

    where  the file, for the error
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre: pre-tokenizer {name[:40]!r} is not supported, expected one of those of "
            f"docs/tokenizers.md (llama-bpe, qwen2, gpt-2, ...); if its model splits as one of them, name that by "
            f"--pre-tokenizer (file {where})"
        )
    return found


def name_of(found: Sequence[str | steps.PreTokenizer], *, nfc: bool, ignore_merges: bool) -> str | None:
    """The name of the pre-tokenizer that is made of these steps, of those that share them the best known; or None.

    found  patterns, or steps that are none, as PreTokenizer has them
    """
    for entry in _ALL:
        same = (entry.nfc, entry.ignore_merges, len(entry.patterns)) == (nfc, ignore_merges, len(found))
        if same and all(map(_same_step, entry.patterns, found)):
            return entry.names.split()[0]
    return None


def _same_step(one: str | steps.PreTokenizer, other: str | steps.PreTokenizer) -> bool:
    """Whether two steps are one; of patterns, whether they mean the same however they are written."""
    if not isinstance(one, str) or not isinstance(other, str):
        return one is other
    try:
        return one == other or pattern_syntax.parse(one, "") == pattern_syntax.parse(other, "")
    except TokenizerError:
        return False
