"""Write pyllama/tokenizer/known_templates.py: digests of published chat templates, which may run in pyllama's process.

    python tools/known_templates.py FOLDER...

Every *.jinja file below the folders is rendered, each in a process of its own, with chats that a stranger could send:
many short messages, few long ones, much to escape, tools with many parameters, deep objects. A template is known if
none took more than MAX_SECONDS or MAX_NBYTES; whatever else it may say, and a refusal is an answer too. Templates that
were known before stay known.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from pyllama.tokenizer import chat_template, known_templates

MAX_SECONDS = 4.0
MAX_NBYTES = 96 << 20
TARGET = Path(known_templates.__file__)
HEAD = '''"""Chat templates that are known to be harmless, by digest: published ones, measured.

Written by tools/known_templates.py. Any other works as well, in a process of its own (template_process.py).
"""

#: The first 128 bits of SHA-256 of a template's text, without white space at its ends.
DIGESTS = frozenset(
    """
'''
TAIL = '''""".split()
)


def digest(source: str) -> str:
    """What a template is known by."""
    import hashlib  # brings OpenSSL along, 3.5 MB, which whoever renders nothing can do without

    return hashlib.sha256(source.replace("\\r\\n", "\\n").strip().encode("utf-8", "replace")).hexdigest()[:32]


def is_known(source: str) -> bool:
    """Whether a template may be rendered in this process."""
    return digest(source) in DIGESTS
'''


def chats():
    """(messages, variables) that a stranger could send, within what the server takes."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    yield turn * 2000, {}
    yield [*turn, {"role": "user", "content": "<think>é</think> \n" * 20_000}], {}
    yield [{"role": "system", "content": " \n" * 100_000}, {"role": "user", "content": "</think>" * 40_000}, *turn], {}
    properties = {f"p<{i}>": {"type": ["string", "null"], "description": '"\\<é>' * 20} for i in range(500)}
    function = {"name": "f", "description": "<" * 10_000, "parameters": {"type": "object", "properties": properties}}
    deep: object = "x"
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep, "items": [deep] if _ < 3 else 1}}
    for arguments in ({"a": deep, "b": ["<x>"] * 3000}, json.dumps({"a": "<x>" * 10_000})):
        call = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": arguments}}
        result = {"role": "tool", "name": "f", "tool_call_id": "call12345", "content": "<r>" * 1000}
        calls = {"role": "assistant", "content": "", "tool_calls": [call]}
        tools = [{"type": "function", "function": function}]
        user = {"role": "user", "content": "a"}
        yield [user, *[calls, result] * 20, user], {"tools": tools}


def measure(path: Path) -> None:
    """Exit code 0 if a template stays within bounds."""
    chat_template.is_known = lambda source: True  # here is where it is found out
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    template = chat_template.ChatTemplate(path.read_text(encoding="utf-8"), variables, "")
    before, slowest, rendered = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0
    for messages, given in chats():
        started = time.process_time()
        try:
            template.render_adapted(messages, {"add_generation_prompt": True, **given}, ("<s>", "</s>", "<think>"))
            rendered += 1
        except chat_template.RequestError:
            rendered += 1
        except chat_template.TokenizerError as error:
            print(f"  {str(error)[:100]}")
        slowest = max(slowest, time.process_time() - started)
    nbytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(f"{slowest:.2f} s, {nbytes >> 20} MB, {rendered} chats: {path}")
    sys.exit(not (slowest <= MAX_SECONDS and nbytes <= MAX_NBYTES and rendered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.folders[0])
    known = set(known_templates.DIGESTS)
    known |= {known_templates.digest(own) for own in (chat_template.LLAMA2, chat_template.LLAMA3)}
    for path in sorted(path for folder in arguments.folders for path in folder.rglob("*.jinja")):
        if subprocess.run([sys.executable, __file__, "--measure", str(path)]).returncode == 0:
            known.add(known_templates.digest(path.read_text(encoding="utf-8")))
    lines = [" ".join(sorted(known)[at : at + 3]) for at in range(0, len(known), 3)]
    TARGET.write_text(HEAD + "\n".join(lines) + "\n" + TAIL, encoding="utf-8")
    print(f"{len(known)} templates are known")


if __name__ == "__main__":
    main()
