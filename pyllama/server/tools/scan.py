"""Says of a text that comes in pieces, as early as it can, that it will be no call.

Whatever reading.py takes keeps a scan alive; what it does not take usually ends it within a few characters: prose at
once, JSON at its first key that a call does not have, a call at the first letter that no offered name has there.
"""

from collections.abc import Callable, Iterable

from pyllama.server.tools.reading import KEYS, LANGUAGES, PYTHON_TAG, TAGS

_SPACE = " \t\r\n"
_LITERAL = frozenset("+-.0123456789eEtrufalsn")
_MARKER = "[TOOL_CALLS]"
_PARAMETER, _END = "<parameter=", "</function>"
_FREE = 64  # characters of a call's id, and of what is looked back on


class Scan:
    """One text. `feed` until it says False.

    names    of the functions that are offered
    mistral  whether calls may be name[ARGS]{...}
    closing  the family's own marker that ends a call, if it has one
    open     whether a block or a tag is still to be closed
    """

    def __init__(self, names: Iterable[str], *, mistral: bool = False, closing: str | None = None):
        self._names = frozenset(names)
        self._mistral = mistral
        self._tags = {f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")} | {PYTHON_TAG}
        self._tags |= {closing} if closing else set()
        self._closing = closing
        self._functions = {f"<function={name}>" for name in self._names}
        self._state: Callable[[str], bool] = self._between
        self._word = ""  # of the fence, tag or name that is being read
        self._fenced = False
        self._opened = 0  # tags
        self._items = 0
        self._python = self._in_parameter = False
        self._extra = 0  # braces that were doubled, and may be closed twice
        # JSON: for each object or list (bracket, whether it is or holds calls, its present key)
        self._stack: list[tuple[str, bool, str]] = []
        self._wants_key = self._empty = self._escaped = self._colon = False
        self._depth, self._quote = 0, ""  # of Python's arguments
        self._tracked: frozenset[str] | None = None  # what the string that is being read may be

    @property
    def open(self) -> bool:
        return self._fenced or self._opened > 0

    @property
    def between(self) -> bool:
        """Whether no call, tag or block is half read."""
        return self._state == self._between

    def feed(self, text: str) -> bool:
        """Whether it may still be a call."""
        return all(self._state(char) for char in text)

    # --- between calls ---

    def _between(self, char: str) -> bool:
        if char in _SPACE or char in ",;":
            return True
        if char == "[" and self._mistral and self._items:
            return self._begin(self._marker, char)
        if char in "{[":
            return self._open(char, True)
        if char == "`":
            return self._begin(self._fence, char)
        if char == "<":
            return self._begin(self._tag, char)
        if char == "}" and self._extra:
            self._extra -= 1
            return True
        if self._mistral:
            return self._begin(self._mistral_name, "") and self._state(char)
        if self._python:
            return self._begin(self._python_name, "") and self._state(char)
        return False

    def _begin(self, state: Callable[[str], bool], word: str) -> bool:
        self._state, self._word = state, word
        return True

    def _fence(self, char: str) -> bool:
        if len(self._word) >= 3 and (char in _SPACE or char in "{[<"):
            self._fenced, self._state = True, self._between
            return self._word[3:].lower() in LANGUAGES and self._between(char)
        self._word += char
        if self._word == "```" and self._fenced:
            self._fenced, self._state = False, self._between
            return True
        return any(f"```{known}".startswith(self._word.lower()) for known in LANGUAGES)

    def _tag(self, char: str) -> bool:
        self._word += char
        if self._word in self._functions:
            self._items += 1
            return self._begin(self._function, "")
        if self._word in self._tags:
            if not (self._word == self._closing and "|" in self._word):  # whose opening the scan has not seen
                self._opened += -1 if self._word[1] == "/" else self._word != PYTHON_TAG
            self._python = self._python or self._word == PYTHON_TAG
            return self._begin(self._between, "")
        return any(known.startswith(self._word) for known in self._tags | self._functions)

    # --- <function=name> ---

    def _function(self, char: str) -> bool:
        self._word = (self._word + char)[-_FREE:]
        head = self._word.lstrip()
        if len(self._word) < _FREE and head:
            known = ("{", _PARAMETER, _END)
            if not any(head.startswith(text) or text.startswith(head) for text in known):
                return False
        if char == "=" and self._word.endswith(_PARAMETER):
            self._in_parameter = True
        elif char == ">" and self._word.endswith("</parameter>"):
            self._in_parameter = False
        # In the text of a parameter the same words may stand, and in a string of JSON.
        elif (
            char == ">"
            and self._word.endswith(_END)
            and not self._in_parameter
            and self._word[: -len(_END)].rstrip()[-1:] in ("", ">", "}")
        ):
            self._state = self._between
        return True

    # --- name[ARGS]{...}, [name(key=value)] ---

    def _marker(self, char: str) -> bool:
        self._word += char
        if self._word == _MARKER:
            self._state = self._between
        return _MARKER.startswith(self._word)

    def _mistral_name(self, char: str) -> bool:
        if char in "[{":
            if self._word.strip() not in self._names:
                return False
            self._word = ""
            self._state = self._mistral_arguments
            return self._state(char)
        self._word += char
        return any(name.startswith(self._word.rstrip()) for name in self._names)

    def _mistral_arguments(self, char: str) -> bool:
        if char == "{":
            return self._open(char, False)
        self._word += char
        return len(self._word) <= _FREE

    def _python_name(self, char: str) -> bool:
        self._word += char
        word = self._word.lstrip(" \t\r\n,")
        if char == "(":
            self._word, self._depth, self._quote, self._escaped = "", 1, "", False
            self._state = self._python_arguments
            return word.removesuffix("(").removesuffix(".call").rstrip() in self._names
        return not word or any(f"{name}.call".startswith(word) for name in self._names)

    def _python_arguments(self, char: str) -> bool:
        if self._quote:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == self._quote:
                self._quote = ""
        elif char in "\"'":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            if not self._depth:
                self._items += 1
                self._state = self._python_next
        return True

    def _python_next(self, char: str) -> bool:
        if char in _SPACE:
            return True
        if char == "," and self._stack:
            return self._begin(self._python_name, "")
        if char == "]" and self._stack:
            self._stack.pop()
            self._state = self._between
            return True
        return not self._stack and self._between(char)

    # --- JSON ---

    def _json(self, char: str) -> bool:
        if char in _SPACE:
            return True
        bracket, call, key = self._stack[-1]
        empty, self._empty = self._empty, False
        if char == '"':
            return self._begin_string(bracket, call, key)
        if char in "}]":
            return self._close(char, empty)
        if bracket == "{" and self._wants_key:
            if char == "{" and empty:
                self._extra += 1
                self._empty = True
                return True
            return False
        if char == ":":
            expected, self._colon = bracket == "{" and not self._colon, True
            return expected
        if char == ",":
            self._wants_key, self._colon = bracket == "{", False
            return True
        if char in "{[":
            if (
                call
                and bracket == "{"
                and key != "function"
                and (char == "[" or key not in ("arguments", "parameters"))
            ):
                return False
            return self._open(char, call and (bracket == "[" or key == "function"))
        if call and bracket == "[":
            if not empty:
                return False
            self._begin(self._python_name, "")
            return self._state(char)
        if call and key in ("name", "function", "type"):
            return False
        return char in _LITERAL and not (call and key in ("arguments", "parameters") and char not in "nul")

    def _open(self, bracket: str, call: bool) -> bool:
        self._state = self._json
        self._stack.append((bracket, call, ""))
        self._empty, self._wants_key, self._colon = True, bracket == "{", False
        return True

    def _begin_string(self, bracket: str, call: bool, key: str) -> bool:
        self._word = ""
        self._tracked = None
        if bracket == "{" and self._wants_key:
            self._tracked = KEYS if call else None
        elif call and (bracket == "[" or key == "function"):
            return False
        elif call and key == "name":
            self._tracked = self._names
        self._state = self._string
        return True

    def _string(self, char: str) -> bool:
        if self._escaped or char == "\\":
            self._escaped = not self._escaped
            # A name may be written with escapes: reading.py will tell.
            self._tracked = None
            self._word += char
            return True
        if char != '"':
            if self._tracked is None and not self._wants_key:
                return True
            self._word += char
            return self._tracked is None or any(known.startswith(self._word) for known in self._tracked)
        self._state = self._json
        if self._wants_key:
            bracket, call, _ = self._stack[-1]
            self._stack[-1] = (bracket, call, self._word)
            self._wants_key = False
            self._colon = False
        return self._tracked is None or self._word in self._tracked

    def _close(self, char: str, empty: bool) -> bool:
        bracket, call, _ = self._stack[-1]
        if (bracket == "{") != (char == "}"):
            if char == "}" and self._extra:
                self._extra -= 1
                return True
            return False
        if call and empty:
            return False
        self._stack.pop()
        self._wants_key, self._colon = False, True
        if not self._stack:
            self._items += 1
            self._state = self._between
        return True
