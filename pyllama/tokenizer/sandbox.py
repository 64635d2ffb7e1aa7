"""A Jinja environment for templates of strangers: no access to Python, and no more than a bounded amount of work.

Jinja's immutable sandbox keeps a template from Python's objects, but not from `range(10**9)`, nested loops,
`'a' * 10**9` or a string doubled forty times. Here every loop round, call, filter, test and attribute draws on one
budget, every operation that can grow a value is checked before it runs, and a clock is looked at on the way. Nothing
is traced and nothing runs in another process: the counting calls are put into the template's syntax tree.

Works as transformers' own environment does (trim_blocks, lstrip_blocks, loop controls, tojson without HTML
escapes, raise_exception, strftime_now, the generation tag). Imported only when a template is rendered.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from pyllama.tokenizer import marked_strings
from pyllama.tokenizer.marks import NO_MARKS, Marks

MAX_TEXT = 8 << 20  # characters of any one value, and of the result
MAX_WEIGHT = 500_000  # values in a list or object, those inside it and every 64 characters of text counted
MAX_STEPS = 1_000_000  # a chat of a thousand messages takes about 30,000; making 64 characters is a step as well
MAX_SECONDS = 10.0
MAX_NUMBER = 100_000  # widths, counts and ranges
_MAX_COMPILED = 4
_MAX_MESSAGE = 400
TEXT, REFUSED, BAD, SPENT = "text", "refused", "bad", "spent"

_FILTERS = (
    "abs attr batch capitalize count d default dictsort e escape first float forceescape format groupby indent int "
    "items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title trim truncate unique upper urlencode wordcount"
).split()
_STRING_METHODS = frozenset(
    "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase "
    "title upper zfill".split()
)
# Filters that look at no more than the size or an end of a value.
_CHEAP_FILTERS = frozenset("attr count d default first last length".split())
# Filters that pick or order items by what they are.
_CHOOSING_FILTERS = frozenset("dictsort groupby max min sort unique".split())
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
_LONG_NUMBER = re.compile(r"\d{5,}")


class TemplateLimit(jinja2.exceptions.TemplateRuntimeError):
    """The template asked for more work or memory than it may have."""


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """The template called raise_exception: the messages are not what it expects."""


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0


def _check_length(length: int) -> None:
    if length > MAX_TEXT:
        raise TemplateLimit(f"a value of {length} elements, expected at most {MAX_TEXT}")


def _check_number(value: Any) -> None:
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_number(item)
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise TemplateLimit("a number above 100000 as an argument")


def _check_format(template: str, arguments: tuple, keywords: Mapping[str, Any]) -> None:
    if _LONG_NUMBER.search(template):
        raise TemplateLimit("a format wider than 9999 characters")
    longest = 0
    for value in [*arguments, *keywords.values()]:
        longest = max(longest, _text_length(value))
    fields = template.count("{") + template.count("%")
    _check_length(len(template) + fields * max(longest, 9999 if fields < 100 else MAX_NUMBER))


def _join_length(separator: Any, items: list[Any]) -> int:
    return sum(_text_length(item) for item in items) + len(items) * _length(separator)


def _text_length(value: Any) -> int:
    """At least the length of str(value); containers are never above MAX_WEIGHT."""
    return len(value) if isinstance(value, str) else 64 * _weigh(value, {}, 4 * MAX_WEIGHT)


def _check_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _check_length(len(text) + text.count(old) * len(new))


def _weigh(value: Any, known: Mapping[int, tuple[Any, int]], limit: int) -> int:
    """Values inside a value, itself included. TemplateLimit above `limit`: [x, x] of [y, y] of ... grows as 2**depth.

    known  weights of containers by id, each with the container so that the id stays its own
    """
    weight = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        weight += 1
        if isinstance(item, str):
            weight += len(item) >> 6
        elif isinstance(item, (list, tuple, dict)):
            if id(item) in known:
                weight += known[id(item)][1]
            elif isinstance(item, dict):
                waiting += item.keys()
                waiting += item.values()
            else:
                waiting += item
        if weight + len(waiting) > limit:
            raise TemplateLimit(f"a list or object of more than {limit} values")
    return weight


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks the assistant's text for training; here it only wraps."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """One environment renders one template at a time; `start()` fills its budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=self.shown,
            optimized=False,  # or constants would be computed while compiling, where nothing is counted
            cache_size=0,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
        )
        self._steps = 0
        self._deadline = 0.0
        self._marks = NO_MARKS
        self._known: dict[int, tuple[Any, int]] = {}
        self.filters = {name: self._bounded_filter(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._bounded_filter("tojson", _to_json)
        self.tests = {name: self._bounded_test(test) for name, test in self.tests.items()}  # type: ignore[arg-type]
        self.globals = {
            "range": _bounded_range,
            "dict": _TemplateDict(),
            "namespace": _Namespace,
            "cycler": jinja2.utils.Cycler,
            "joiner": jinja2.utils.Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
        }

    def start(self, seconds: float = MAX_SECONDS, marks: Marks = NO_MARKS) -> None:
        """Fill the budget of work and time. marks: those of the strings the template is going to be given."""
        self._steps = MAX_STEPS
        self._known = {}
        self._marks = marks
        self._deadline = time.monotonic() + seconds

    def charge(self, steps: int = 1) -> bool:
        """Take from the budget; always true, so that it can stand in a condition."""
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimit(f"more than {MAX_STEPS} steps")
        if (self._steps & 0xFF == 0 or steps > 64) and time.monotonic() > self._deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS:g} seconds")
        return True

    def contained(self, value: Any) -> Any:
        """A new list, tuple or object, weighed."""
        weight = _weigh(value, self._known, MAX_WEIGHT)
        self.charge(weight // 8)
        if weight > 100:
            self._known[id(value)] = (value, weight)
        return value

    def _made(self, value: Any) -> Any:
        """A new value, charged for its size."""
        if isinstance(value, str):
            _check_length(len(value))
            self.charge(len(value) >> 6)
        elif isinstance(value, (list, tuple, dict)):
            self.contained(value)
        return value

    def _bounded_test(self, function: Callable) -> Callable:
        skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        def bounded(*args: Any, **kwargs: Any) -> Any:
            for value in args[skip:]:
                self._look_at(value)
            if self._marks:
                args = (*args[:skip], *map(self._marks.plain, args[skip:]))
            return function(*args, **kwargs)

        return _like(bounded, function)

    def _look_at(self, value: Any) -> None:
        """Charge for an operation that may read all of a value."""
        if isinstance(value, str):
            self.charge(1 + (len(value) >> 6))
        elif isinstance(value, (list, tuple, dict)):
            self.charge(1 + _weigh(value, self._known, MAX_WEIGHT) // 8)
        else:
            self.charge()

    def compare(self, left: Any, *rest: Any) -> Any:
        """left == right, left in right, left < right <= more, ...: operators by name, each before what it takes."""
        result: Any = True
        for name, right in zip(rest[::2], rest[1::2]):
            self._look_at(left)
            self._look_at(right)
            a, b = (self._marks.plain(left), self._marks.plain(right)) if self._marks else (left, right)
            result = _COMPARE[name](a, b)
            if not result:
                break
            left = right
        return result

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """value[start:stop:step]"""
        self.charge()
        return self._made(value[start:stop:step])

    def _bounded_filter(self, name: str, function: Callable) -> Callable:
        # Filters that want the environment or context get it as their first argument.
        skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        def bounded(*args: Any, **kwargs: Any) -> Any:
            value: Any = args[skip] if len(args) > skip else None
            rest = args[skip + 1 :]
            if name in _CHEAP_FILTERS:
                self.charge()
                return function(*args, **kwargs)
            self.charge(1 + _length(value) // (64 if isinstance(value, str) else 1))
            for argument in [*rest, *kwargs.values()]:
                _check_number(argument)
            if name == "join":
                value = list(value)
                if rest[1:] or "attribute" in kwargs:
                    raise TemplateLimit("join by attribute")
                _check_length(_join_length(rest[0] if rest else kwargs.get("d", ""), value))
                args = (*args[:skip], value, *rest)
            elif name == "replace" and len(rest) >= 2:
                _check_replace(str(value), rest[0], rest[1])
            elif name == "format":
                _check_format(str(value), rest, kwargs)
            elif name == "indent":
                width = rest[0] if rest else kwargs.get("width", 4)
                lines = str(value).count("\n") + 1
                _check_length(lines * (width if isinstance(width, int) else _length(width)))
            elif name == "sum" and (len(rest) > 1 or not isinstance(kwargs.get("start", 0), (int, float))):
                raise TemplateLimit("sum with a start")
            elif name in ("string", "urlencode", "tojson", "escape", "e", "forceescape", "trim", "title"):
                _check_length(_text_length(value))
            if self._marks:
                result = self._filter_marked(name, function, args[:skip], value, args[skip + 1 :], kwargs)
            else:
                result = function(*args, **kwargs)
            return result if result is value else self._made(result)

        return _like(bounded, function)

    def _filter_marked(
        self, name: str, function: Callable, context: tuple, value: Any, rest: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """A filter whose result depends on the characters of a value, for values with marks."""
        marks = self._marks

        def plainly(value: Any) -> Any:
            return function(*context, value, *rest, **kwargs)

        if name in _CHOOSING_FILTERS:
            return marked_strings.chosen(marks, value, plainly)
        if not isinstance(value, str):
            result = plainly(value)
            return marked_strings.json_unescaped(marks, result) if name == "tojson" else result
        if name == "replace" and len(rest) >= 2:
            return marked_strings.replace(marks, value, str(rest[0]), str(rest[1]), *rest[2:], **kwargs)
        if name == "trim":
            return marked_strings.strip(marks, value, "strip", *rest, **kwargs)
        if name in ("capitalize", "lower", "title", "upper"):
            return marked_strings.changed(marks, value, plainly)
        result = plainly(value)
        if name in ("e", "escape", "forceescape"):
            return marked_strings.escaped(marks, result)
        if name == "urlencode":
            return marked_strings.url_encoded(marks, result)
        return marked_strings.json_unescaped(marks, result) if name == "tojson" else result

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__self__", None) is self:  # the calls put in by _parse
            return obj(*args)  # without the _loop_vars and _block_vars that the compiler adds
        self.charge()
        for argument in [*args, *kwargs.values()]:
            _check_number(argument)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            self.charge(len(owner) // 64)
            name = getattr(obj, "__name__", "")
            if self._marks:
                for argument in args:
                    self._look_at(argument)
            if name == "join" and args:
                items = list(args[0])
                _check_length(_join_length(owner, items))
                args = (items, *args[1:])
            elif name == "replace" and len(args) >= 2:
                _check_replace(owner, args[0], args[1])
            if self._marks and name != "format":
                if not self.is_safe_callable(obj):
                    raise jinja2.exceptions.SecurityError(f"{obj!r} is not safely callable")
                plain_kwargs = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
                return self._made(marked_strings.call_method(self._marks, owner, name, args, plain_kwargs))
        elif self._marks and isinstance(owner, dict) and args and isinstance(args[0], str):
            args = (self._key(owner, args[0]), *args[1:])
        elif (text := _format_method_text(obj)) is not None:
            _check_format(text, args, kwargs)
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.charge()
        if operator == "+":
            if isinstance(left, (str, list, tuple)):
                _check_length(_length(left) + _length(right))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                if left.bit_length() + right.bit_length() > 4096:
                    raise TemplateLimit("a product of more than 4096 bits")
            elif isinstance(left, int) or isinstance(right, int):
                times, value = (left, right) if isinstance(left, int) else (right, left)
                if isinstance(value, (str, list, tuple)):
                    _check_length(times * len(value))
        elif operator == "**":
            if not (isinstance(right, (int, float)) and abs(right) <= 64 and abs(left) < 1 << 64):
                raise TemplateLimit("a power above 2**64 or an exponent above 64")
        elif isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            _check_number(values)
            _check_format(left, values, {})
        if self._marks and operator == "+":
            left, right = marked_strings.escaped_beside(self._marks, left, right)
        return self._made(super().call_binop(context, operator, left, right))

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """The error being handled, as it is: Jinja would put the template's lines into its traceback."""
        raise  # noqa: PLE0704 - called while one is handled

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.charge()
        if self._marks and isinstance(obj, dict) and not hasattr(obj, attribute):
            attribute = self._key(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.charge()
        if self._marks and isinstance(obj, dict) and isinstance(argument, str):
            argument = self._key(obj, argument)
        return super().getitem(obj, argument)

    def _key(self, mapping: dict, key: str) -> str:
        """The key that an object has this one as, marks aside."""
        if key in mapping:
            return key
        self.charge(1 + len(mapping) // 8)
        found = marked_strings.key_in(self._marks, mapping, key)
        return key if found is None else found

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def concatenated(self, *parts: Any) -> str:
        """a ~ b"""
        _check_length(sum(map(_text_length, parts)))
        return self._made("".join([part if isinstance(part, str) else str(part) for part in parts]))

    def shown(self, value: Any) -> Any:
        """{{ value }}"""
        if isinstance(value, (list, tuple, dict)):
            _check_length(_text_length(value))
        return value

    @staticmethod
    def concat(parts: Any) -> str:
        """The text of a block, macro or the whole template, from its pieces."""
        pieces, total = [], 0
        for piece in parts:
            total += len(piece)
            _check_length(total)
            pieces.append(piece)
        return "".join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in list(tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock))):
            line = node.lineno
            # A macro's call costs more than a loop's round.
            steps = [] if isinstance(node, jinja2.nodes.For) else [jinja2.nodes.Const(10, lineno=line)]
            charge = _environment_call("charge", steps, line)
            node.body.insert(  # type: ignore[attr-defined]
                0, jinja2.nodes.ExprStmt(charge, lineno=line)
            )
            if isinstance(node, jinja2.nodes.For) and node.test is not None:
                test = _environment_call("charge", [], line)
                node.test = jinja2.nodes.And(test, node.test, lineno=line)
        _replace_makers(tree)
        tree.set_environment(self)
        return tree


def _environment_call(name: str, arguments: list, line: int) -> jinja2.nodes.Call:
    function = jinja2.nodes.EnvironmentAttribute(name, lineno=line)
    return jinja2.nodes.Call(function, arguments, [], None, None, lineno=line)


def _replace_makers(node: jinja2.nodes.Node) -> None:
    """Put a check around everything in a tree that makes a value and is no call, filter or operator."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, field, [_checked(item) for item in value])
        else:
            setattr(node, field, _checked(value))


def _checked(value: Any) -> Any:
    if not isinstance(value, jinja2.nodes.Node):
        return value
    _replace_makers(value)
    if isinstance(value, jinja2.nodes.Compare):
        compared = [value.expr]
        for operand in value.ops:
            compared += [jinja2.nodes.Const(operand.op, lineno=value.lineno), operand.expr]
        return _environment_call("compare", compared, value.lineno)
    if isinstance(value, jinja2.nodes.Getitem) and isinstance(value.arg, jinja2.nodes.Slice):
        bounds = [
            jinja2.nodes.Const(None, lineno=value.lineno) if bound is None else bound
            for bound in (value.arg.start, value.arg.stop, value.arg.step)
        ]
        return _environment_call("sliced", [value.node, *bounds], value.lineno)
    if isinstance(value, jinja2.nodes.Concat):
        return _environment_call("concatenated", value.nodes, value.lineno)
    makes = isinstance(value, (jinja2.nodes.List, jinja2.nodes.Dict)) or (
        isinstance(value, jinja2.nodes.Tuple) and value.ctx == "load"
    )
    return _environment_call("contained", [value], value.lineno) if makes else value


def _like(wrapper: Callable, function: Callable) -> Callable:
    if (wants := getattr(function, "jinja_pass_arg", None)) is not None:
        wrapper.jinja_pass_arg = wants  # type: ignore[attr-defined]
    return wrapper


def _format_method_text(obj: Any) -> str | None:
    """The text that a `str.format` handed out by the sandbox belongs to (it comes wrapped)."""
    wrapped = getattr(obj, "__wrapped__", None)
    owner = getattr(wrapped, "__self__", None)
    return owner if isinstance(owner, str) else None


def _bounded_range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_NUMBER:
        raise TemplateLimit(f"a range of {len(numbers)} numbers, expected at most {MAX_NUMBER}")
    return numbers


def _raise_exception(message: Any) -> None:
    raise RaisedByTemplate(str(message)[:_MAX_MESSAGE])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 64 or isinstance(indent, str) and len(indent) > 64:
        raise TemplateLimit("tojson: an indent above 64")
    pieces, total = [], 0
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for piece in encoder.iterencode(value):
        total += len(piece)
        _check_length(total)
        pieces.append(piece)
    return "".join(pieces)


class _TemplateDict:
    """`dict(...)` without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)`; names that begin with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's would print what is inside, and that may be shared a thousandfold


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace attribute named {name!r}")


class Renderer:
    """Renders templates: compiles each once, and tells in one word and one line what came of it."""

    def __init__(self) -> None:
        self._compiled: dict[str, tuple[BoundedEnvironment, jinja2.Template]] = {}

    def render(
        self, source: str, variables: dict[str, Any], marks: Marks = NO_MARKS, seconds: float = MAX_SECONDS
    ) -> tuple[str, str]:
        """(TEXT, what the template makes of the variables); (REFUSED, why it will not have the messages); or what is
        wrong with the template: (BAD, why), or (SPENT, why) where memory ran out and some may be lost."""
        started = time.monotonic()
        try:
            if source not in self._compiled:
                environment = BoundedEnvironment()
                environment.start(seconds)
                template = environment.from_string(source)
                while len(self._compiled) >= _MAX_COMPILED:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[source] = environment, template
            environment, template = self._compiled[source]
            environment.start(seconds - (time.monotonic() - started), marks)
            try:
                return TEXT, environment.concat(template.generate(variables))
            finally:
                environment.start(0)  # what it still holds of the values goes
        except RaisedByTemplate as error:
            return REFUSED, _line(marks, error)
        except jinja2.TemplateSyntaxError as error:
            return BAD, f"line {error.lineno}: {_line(marks, error.message)}"
        except RecursionError:
            return BAD, "nested too deeply"
        except MemoryError:
            return SPENT, "more memory than it may take"
        except Exception as error:  # noqa: BLE001 - a template is a program: it can fail in any way a program can
            return BAD, f"{type(error).__name__}: {_line(marks, error)}"


def _line(marks: Marks, message: Any) -> str:
    text = marks.plain(str(message)[:_MAX_MESSAGE])
    return " ".join("".join([c if c.isprintable() else " " for c in text]).split())
