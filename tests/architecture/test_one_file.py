"""One family, one file: no other part of the package asks which family a model is of, by name or by import."""

import ast
import re
from pathlib import Path

import pyllama
from pyllama.architecture import FAMILIES

PACKAGE = Path(pyllama.__file__).parent
#: What names a family all the same, and why that is no fact about a family's layers.
EXCEPTIONS = {
    "checkpoint/meta.py": "Meta's form of file has the models of one family, and says so nowhere",
    "checkpoint/meta_config.py": "the same",
    "cli/list_models.py": "the same, in a word for people",
    "cli/known_words.py": "ways to split text, as GGUF names them",
    "tokenizer/pre_tokenizers.py": "the same",
    "tokenizer/gguf.py": "values of tokenizer.ggml.model, which are kinds of tokenizers",
    "quantizing/gguf_tokenizer.py": "the same",
    "quantizing/words.py": "the same",
    "quantizing/types.py": "the mixtures of llama.cpp's quantizer, whose table this is",
    "server/tools/forms.py": "dialects in which calls are written, named after who began with them",
    "tokenizer/call_texts.py": "the same",
    "tokenizer/folder.py": "as AutoTokenizer has it: LlamaTokenizer's steps, and Llama 2's template, are one family's",
}


def _names() -> set[str]:
    found = set()
    for model_type, family in FAMILIES.items():
        found |= {model_type, family.architecture, *family.wrappers, *family.wrappers.values()}
        found |= {family.gguf_architecture} if family.gguf_architecture else set()
    return found


def _named(path: Path, names: set[str], files: set[str]) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            found.append((node.lineno, node.module))
    return found


def test_families_are_named_in_their_own_files():
    names, files = _names(), {type(family).__module__ for family in FAMILIES.values()}
    naming = {
        path.relative_to(PACKAGE).as_posix(): found
        for path in sorted(PACKAGE.rglob("*.py"))
        if "architecture" not in path.relative_to(PACKAGE).parts and (found := _named(path, names, files))
    }
    assert {name: found for name, found in naming.items() if name not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() == naming.keys()  # one that is no more leaves the list


def _words() -> set[str]:
    """Of our names of tensors within a layer, those that are no words of the language."""
    names = [
        name for family in FAMILIES.values() for of in (family.gguf.inner, family.gguf.stacks) for name in of.values()
    ]
    whole = [name for of in names for name in ((of,) if isinstance(of, str) else of)]
    return {word for name in whole for word in name.split(".") if "_" in word}


def test_tensors_are_named_where_layers_and_files_are_told():
    """Everybody else has them from the layers: shapes, order, bytes, operations, and what is multiplied with what."""
    words, naming = _words(), []
    assert {"q_proj", "input_layernorm"} <= words
    for path in sorted(PACKAGE.rglob("*.py")):
        if not {"architecture", "checkpoint"} & set(path.relative_to(PACKAGE).parts):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
            texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in told]
            if any(isinstance(text, str) and words & set(re.findall(r"\w+", text)) for text in texts):
                naming.append(path.relative_to(PACKAGE).as_posix())
    assert naming == []


def test_families_are_listed_under_their_own_model_type():
    assert [family.model_type for family in FAMILIES.values()] == list(FAMILIES)
    wrappers = {wrapper for family in FAMILIES.values() for wrapper in family.wrappers}
    assert FAMILIES.keys().isdisjoint(wrappers)  # config.json is read as one or as the other
