"""A Jinja environment for templates of strangers: no access to Python, and no more than a bounded number of steps.

Jinja's immutable sandbox keeps a template from Python's objects, but not from nested loops. Here every loop round,
call, filter, test, comparison and attribute draws on one budget, and a clock is looked at on the way: the counting
calls are put into the template's syntax tree. What it shows is bounded as well: a published template may repeat the
first message with each, or indent all of a caller's objects. What else a step takes of memory, or of time inside a
library, is not known here: the kernel bounds that for the process in which strangers' templates run
(template_process.py).

Works as transformers' own environment does (trim_blocks, lstrip_blocks, loop controls, tojson without HTML
escapes, raise_exception, strftime_now, the generation tag). Imported only when a template is rendered.
"""

from __future__ import annotations

import json
import operator
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from pyllama.tokenizer import marked_strings
from pyllama.tokenizer.marks import NO_MARKS, Marks

MAX_TEXT = 8 << 20  # characters
MAX_STEPS = 1_000_000  # a chat of a thousand messages takes about 30,000
MAX_SECONDS = 10.0
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


class TemplateLimit(jinja2.exceptions.TemplateRuntimeError):
    """The template asked for more work than it may have."""


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """The template called raise_exception: the messages are not what it expects."""


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks the assistant's text for training; here it only wraps."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """One environment renders one template at a time; `start()` fills its budget."""

    intercepted_binops = frozenset(["+"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constants would be computed while compiling, where nothing is counted
            cache_size=0,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
        )
        self._steps = 0
        self._deadline = 0.0
        self._marks = NO_MARKS
        filters = {**{name: self.filters[name] for name in _FILTERS}, "tojson": self._to_json}
        self.filters = {
            name: self._counted(function, partial(self._filter_marked, name)) for name, function in filters.items()
        }
        self.tests = {
            name: self._counted(test, self._test_marked)  # type: ignore[arg-type]
            for name, test in self.tests.items()
        }
        self.globals = {
            "range": jinja2.sandbox.safe_range,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # without the class behind it
            "namespace": jinja2.utils.Namespace,
            "cycler": jinja2.utils.Cycler,
            "joiner": jinja2.utils.Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
        }

    def start(self, seconds: float = MAX_SECONDS, marks: Marks = NO_MARKS) -> None:
        """Fill the budget of work and time. marks: those of the strings the template is going to be given."""
        self._steps = MAX_STEPS
        self._marks = marks
        self._deadline = time.monotonic() + seconds

    def charge(self, steps: int = 1) -> bool:
        """Take from the budget; always true, so that it can stand in a condition."""
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimit(f"more than {MAX_STEPS} steps")
        if self._steps & 0xFF == 0 and time.monotonic() > self._deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS:g} seconds")
        return True

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return encoder.encode(value)
        return self.concat(encoder.iterencode(value))  # each value on a line, as far in as it is deep

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """The text of a block, of a macro or of the whole template: what a known one may repeat for every message."""
        pieces, length = [], 0
        for piece in parts:
            length += len(piece)
            if length > MAX_TEXT:
                raise TemplateLimit(f"a text of more than {MAX_TEXT} characters")
            pieces.append(piece)
        return "".join(pieces)

    def _counted(self, function: Callable, marked: Callable[..., Any]) -> Callable:
        """A filter or test that draws on the budget.

        marked  calls it while there are marks: given the function, its context if it wants one, and the other arguments
        """
        wants = getattr(function, "jinja_pass_arg", None)  # the environment or context, before the value
        skip = 0 if wants is None else 1

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            if not self._marks:
                return function(*args, **kwargs)
            return marked(function, args[:skip], args[skip:], kwargs)

        if wants is not None:
            counted.jinja_pass_arg = wants  # type: ignore[attr-defined]
        return counted

    def _test_marked(self, function: Callable, context: tuple, args: tuple, kwargs: dict[str, Any]) -> Any:
        return function(*context, *map(self._marks.plain, args), **kwargs)

    def compare(self, left: Any, *rest: Any) -> Any:
        """left == right, left in right, left < right <= more, ...: operators by name, each before what it takes."""
        result: Any = True
        for name, right in zip(rest[::2], rest[1::2]):
            self.charge()
            a, b = (self._marks.plain(left), self._marks.plain(right)) if self._marks else (left, right)
            result = _COMPARE[name](a, b)
            if not result:
                break
            left = right
        return result

    def _filter_marked(self, name: str, function: Callable, context: tuple, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A filter whose result depends on the characters of a value, for values with marks."""
        marks = self._marks
        value, *rest = args

        def plainly(value: Any) -> Any:
            return function(*context, value, *rest, **kwargs)

        if name in _CHOOSING_FILTERS:
            return marked_strings.chosen(marks, value, plainly)
        if name == "tojson":
            return marked_strings.json_unescaped(marks, plainly(value))
        if not isinstance(value, str):
            return plainly(value)
        if name == "replace" and len(rest) >= 2:
            return marked_strings.replace(marks, value, str(rest[0]), str(rest[1]), *rest[2:], **kwargs)
        if name == "trim":
            return marked_strings.strip(marks, value, "strip", *rest, **kwargs)
        if name in ("capitalize", "lower", "title", "upper"):
            return marked_strings.changed(marks, value, plainly)
        if name in ("e", "escape", "forceescape"):
            return marked_strings.escaped(marks, plainly(value))
        if name == "urlencode":
            return marked_strings.url_encoded(marks, plainly(value))
        return plainly(value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if owner is self:  # the calls put in by _parse
            return obj(*args)  # without the _loop_vars and _block_vars that the compiler adds
        self.charge()
        if self._marks and isinstance(owner, str) and obj.__name__ != "format":
            if not self.is_safe_callable(obj):
                raise jinja2.exceptions.SecurityError(f"{obj!r} is not safely callable")
            plain_kwargs = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
            return marked_strings.call_method(self._marks, owner, obj.__name__, args, plain_kwargs)
        if self._marks and isinstance(owner, dict) and args and isinstance(args[0], str):
            args = (self._key(owner, args[0]), *args[1:])
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.charge()
        if self._marks:
            left, right = marked_strings.escaped_beside(self._marks, left, right)
        return super().call_binop(context, operator, left, right)

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

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = _Counting().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


class _Counting(jinja2.visitor.NodeTransformer):
    """Puts calls of the environment into a template's tree: charge() where it loops, compare() where it compares."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        if node.test is not None:
            node.test = jinja2.nodes.And(_call("charge", [], node.lineno), node.test, lineno=node.lineno)
        return self._charged(node, [])

    def visit_Macro(self, node: Any) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return self._charged(node, [jinja2.nodes.Const(10, lineno=node.lineno)])  # costs more than a loop's round

    visit_CallBlock = visit_Macro

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:
        self.generic_visit(node)
        compared = [node.expr]
        for operand in node.ops:
            compared += [jinja2.nodes.Const(operand.op, lineno=node.lineno), operand.expr]
        return _call("compare", compared, node.lineno)

    @staticmethod
    def _charged(node: Any, steps: list) -> jinja2.nodes.Node:
        node.body.insert(0, jinja2.nodes.ExprStmt(_call("charge", steps, node.lineno), lineno=node.lineno))
        return node


def _call(name: str, arguments: list, line: int) -> jinja2.nodes.Call:
    function = jinja2.nodes.EnvironmentAttribute(name, lineno=line)
    return jinja2.nodes.Call(function, arguments, [], None, None, lineno=line)


def _raise_exception(message: Any) -> None:
    raise RaisedByTemplate(str(message)[:_MAX_MESSAGE])


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
