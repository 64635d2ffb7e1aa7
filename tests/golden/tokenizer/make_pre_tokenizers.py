"""Writes pre_tokenizers.json: what llama.cpp makes of hard texts under every pre-tokenizer name that is read here.

    python tests/golden/tokenizer/make_pre_tokenizers.py        needs xllamacpp, tokenizers, gguf and numpy

The vocabulary is trained without any splitting, so its merges run across words, digits and lines: another split gives
other ids. Each name is one tiny model, loaded by llama.cpp's server. What llama.cpp knows only roughly (marks, cased
letters outside ASCII, U+3000 as an ideograph of DeepSeek's) is none of these texts' business: test_tokenizer_oracle.py
holds the steps against those of Hugging Face's tokenizers.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
TEXTS = [
    "Sum 31 and x_2:\nok",
    "sayHello don't 1234.\n\nOK",
    "It's I'LL we'Ve they'd'x 'tis 'S",
    "  two   three    four     \n   \n\n tabs\t\tand \r\n lines\r\r\n  ",
    "1 12 123 1234 12345 123456 1234567 a1b22c333d4444 3.14159 1,000,000 007",
    "camelCase HTTPServer XMLHttpRequest snake_case CONSTANT_CASE kebab-case iPhone McDonald",
    "f(x[0]) -> {a: b}; /* c */ // d\n#include <x.h>\n\tif (a != b && c || !d) { return ++i; }\n",
    "a$b+c<=d>e^f~g|h`i` \"quoted\" 'single' (paren) [brace] {curly} <tag/> & * % @ # ! ?",
    "https://example.org/a/b?c=d&e=f#g user@host.tld /usr/bin/x C:\\dir\\file ./a/../b",
    "...!!!??? -- --- ___ === *** /// \\\\\\ ;;; ,,, :)",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 123\u4e2a "
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u3067\u3059\u3002 \ud55c\uad6d\uc5b4 \ubb38\uc7a5 a\u4e2db",
    "\u201cquotes\u201d \u2018single\u2019 \u2014 dash \u2026 \uff08full\uff09\uff1a\u3010x\u3011 wide",
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u00e5\u00e4\u00f6 \u00f1and\u00fa",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 "
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u060c \u0643\u064a\u0641",
    "emoji \U0001f600\U0001f389 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f x\U0001f600y",
    "Moi, maa 12! No. Se on (hyv\u00e4), eik\u00f6? Kyll\u00e4|ei.",
    "a  b\n\n\n  c\n \n d   ",
    "\n\n\n",
    "     ",
    " ",
    "x     1",
    "<sentinel:12>IMGIMGABCZ 1.2",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)  # fib\n",
]
CORPUS = [*TEXTS, *(" ".join(pair) for pair in itertools.pairwise(TEXTS)), *(f"{n} {n * 37}" for n in range(99))]


def trained():
    """(tokens in id order, merges) of a byte-level BPE whose merges know no words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1500, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def write_model(path, pre, tokens, merges):
    """A LLaMA of one layer with this vocabulary."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 256), (writer.add_embedding_length, 32),
                       (writer.add_feed_forward_length, 32), (writer.add_head_count, 1), (writer.add_head_count_kv, 1),
                       (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, 32),
                       (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, pre),
                       (writer.add_token_list, tokens), (writer.add_token_merges, merges),
                       (writer.add_token_types, [1] * len(tokens)), (writer.add_bos_token_id, 0),
                       (writer.add_eos_token_id, 1), (writer.add_sep_token_id, 2)):  # fmt: skip
        add(value)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in
               ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids_of(path, texts):
    """llama.cpp's ids. In a process of its own: its server does not end."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
    server = xllamacpp.Server(params)  # lives as long as this name
    address = server.listening_address
    found = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            found.append(json.load(answer)["tokens"])
    return found


def main():
    if len(sys.argv) == 2:
        print(json.dumps(ids_of(sys.argv[1], TEXTS)), flush=True)
        os._exit(0)
    from pyllama.tokenizer.pre_tokenizers import NAMES

    tokens, merges = trained()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = os.path.join(folder, "model.gguf")
            write_model(path, name, tokens, merges)
            run = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, timeout=60)
            if run.returncode:
                print(f"{name}: not known to this llama.cpp", file=sys.stderr)
            else:
                found[name] = json.loads(run.stdout)
    # Many names share their ids: each list is written once.
    texts = {json.dumps(ids): ids for ids in found.values()}
    lists = list(texts)
    content = {
        "texts": TEXTS,
        "tokens": tokens,
        "merges": merges,
        "names": {name: lists.index(json.dumps(ids)) for name, ids in found.items()},
        "ids": [texts[key] for key in lists],
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    (HERE / "pre_tokenizers.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
