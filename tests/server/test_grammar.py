"""Schemas of clients: what they allow is allowed, what they forbid is not, and a refusal says why."""

import json
from functools import partial

import pytest

pytest.importorskip("starlette")
pytest.importorskip("llguidance")

import pyllama
from pyllama.errors import RequestError
from pyllama.server import grammar, tools
from pyllama.server.errors import ApiError
from pyllama.server.grammar import Grammars
from pyllama.server.json_schema import enforceable


@pytest.fixture(scope="module")
def model(chat_folder):
    with pyllama.load(chat_folder, context_length=64) as model:
        yield model


TEXTS = 64  # that a test tries at most: a guide is copied for each


@pytest.fixture(scope="module")
def grammars(model):
    made = Grammars(model)
    made.json, made.lark = partial(made.json, answers=TEXTS), partial(made.lark, answers=TEXTS)
    return made


def fits(model, guide, text):
    """Whether a text may be written, and be all."""
    guide, complete = guide.copy(), False
    for token_id in model.tokenizer.encode(text, add_special_tokens=False):
        if complete or token_id not in guide.allowed():
            return False
        complete = guide.accept(token_id)
    return complete or bool(set(guide.allowed()) & set(model.tokenizer.eos_token_ids))


def obj(properties, **more):
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return closed | {"required": list(properties)} | more


def defined(properties, **definitions):
    return obj(properties, **{"$defs": definitions})


RED_BLUE = {"enum": ["red", "blue"]}
FIVE = {"enum": [1, 2, 3, 4, 5]}
ONE_OF = {"oneOf": [{"type": "object", "properties": {"a": {"enum": [1]}}},
                    {"type": "object", "properties": {"b": {"enum": [2]}}}]}  # fmt: skip

# schema, texts that fit, texts that do not
SCHEMAS = {
    "a set of one": ({"type": "array", "items": {"enum": ["red"]}, "uniqueItems": True},
                     ["[]", '["red"]'], ['["red", "red"]']),
    "a set of two": ({"type": "array", "items": RED_BLUE, "uniqueItems": True},
                     ["[]", '["blue"]', '["blue", "red"]'], ['["red", "red"]', '["red", "blue", "red"]']),
    "a set of two, one at least": ({"type": "array", "items": RED_BLUE, "uniqueItems": True, "minItems": 1},
                                   ['["blue"]'], ["[]"]),
    "a set of booleans": ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
                          ["[true, false]"], ["[true, true]"]),
    "a set of 1 and true": ({"type": "array", "items": {"enum": [1, True]}, "uniqueItems": True},
                            ["[true, 1]"], ["[1, 1]"]),
    "a set of many": ({"type": "array", "items": FIVE, "uniqueItems": True},
                      ["[5, 4, 3, 2, 1]"], ["[1, 2, 3, 4, 5, 1]", "[6]"]),
    "a set of texts": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ['["a", "b"]'], ["[1]"]),
    "a set that is none": ({"type": "array", "items": {"enum": [1]}, "uniqueItems": False}, ["[1, 1]"], ["[2]"]),
    "a set by reference": (obj({"a": {"type": "array", "items": RED_BLUE, "uniqueItems": True},
                                "b": {"$ref": "#/properties/a/items"}}),
                           ['{"a": ["red"], "b": "blue"}'], ['{"a": ["red", "red"], "b": "blue"}']),
    "open oneOf": (ONE_OF, ['{"a": 1}', '{"b": 2}'], ['{"a": 1, "b": 2}', '{"a": 2}']),
    "oneOf of types": ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, ["7", "true"], ['"x"']),
    "oneOf beside properties": ({"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": [2]}},
                                 "additionalProperties": False, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                                ['{"a": 1}', '{"b": 2}'], ["{}"]),
    "names of an enum": ({"type": "object", "propertyNames": {"enum": ["a", "b"]},
                          "additionalProperties": {"enum": [1]}}, ['{"a": 1}', "{}"], ['{"c": 1}', '{"a": 2}']),
    "names of a pattern": ({"type": "object", "propertyNames": {"pattern": "^x[0-9]$"},
                            "additionalProperties": {"enum": [1]}}, ['{"x1": 1}'], ['{"y1": 1}']),
    "any names": ({"type": "object", "propertyNames": {"type": "string"}}, ['{"c": 1}'], ["1"]),
    "nothing unevaluated": ({"type": "object", "properties": {"a": {"enum": [1]}}, "unevaluatedProperties": False},
                            ['{"a": 1}'], ['{"b": 1}']),
    "a format nobody knows": ({"type": "string", "format": "color"}, ['"red"'], ["1"]),
    "a format that is known": ({"type": "string", "format": "date"}, ['"2026-11-28"'], ['"red"']),
    "huge bounds": ({"type": "integer", "minimum": -(10**300), "maximum": 10**300}, ["5", "-5"], ["1.5"]),
    "bounds of a double": ({"type": "number", "minimum": -1e300, "maximum": 1e308}, ["5"], ['"x"']),
    "a huge maxLength": ({"type": "string", "maxLength": 10**30}, ['"a"'], ["1"]),
    "definitions": (obj({"a": {"$ref": "#/definitions/d"}}, definitions={"d": {"enum": [1]}}),
                    ['{"a": 1}'], ['{"a": 2}']),
    "an id": (obj({"a": {"$ref": "#/$defs/d"}}, **{"$id": "item", "$defs": {"d": {"enum": [1]}}}),
              ['{"a": 1}'], ['{"a": 2}']),
    "an anchor": (defined({"a": {"$ref": "#d"}}, e={"$anchor": "d", "enum": [1]}), ['{"a": 1}'], ['{"a": 2}']),
    "an escaped pointer": (obj({"a": {"$ref": "#/$defs/x~1y%20z"}}, **{"$defs": {"x/y z": {"enum": [1]}}}),
                           ['{"a": 1}'], ['{"a": 2}']),
    "$defs that are none": ({"type": "object", "$defs": 5}, ["{}"], ["1"]),
    "the client's own switches": ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, ["{}"], ["{  }"]),
    "600 optional properties": ({"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)},
                                 "additionalProperties": False}, ['{"k7": 1, "k599": 2}'], ['{"k600": 1}']),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_followed(name, model, grammars):
    schema, right, wrong = SCHEMAS[name]
    before = json.dumps(schema)
    guide = grammars.json(schema, "response_format")
    assert [fits(model, guide, text) for text in right] == [True] * len(right)
    assert [fits(model, guide, text) for text in wrong] == [False] * len(wrong)
    assert json.dumps(schema) == before  # the client's own is not changed


REFUSED = {
    "look-ahead": ({"type": "string", "pattern": "^(?!b)a$"}, "look-around"),
    "look-behind": ({"type": "string", "pattern": "(?<=b)a"}, "look-around"),
    "a broken pattern": ({"type": "string", "pattern": "a("}, "pattern"),
    "a back reference": ({"type": "string", "pattern": r"(a)\1"}, "pattern"),
    "not": ({"not": {"type": "string"}}, '"not"'),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 1}}, '"if"'),
    "contains": ({"type": "array", "contains": {"enum": [1]}}, '"contains"'),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
    "a dynamic reference": ({"$dynamicRef": "#d"}, '"[$]dynamicRef"'),
    "a pointer to nothing": ({"$ref": "#/$defs/nothing"}, "/\\$defs/nothing"),
    "another document": ({"$ref": "http://example.com/x.json"}, "http://example.com/x.json"),
    "only itself": ({"$ref": "#"}, "nothing fits"),
    "a circle": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
                 "nothing fits"),
    "an empty enum": ({"enum": []}, "nsatisfiable"),
    "bounds crossed": ({"type": "integer", "minimum": 5, "maximum": 1}, "nsatisfiable"),
    "a bound beyond 64 bits": ({"type": "integer", "minimum": 10**30}, "64 bits"),
    "a huge multipleOf": ({"type": "integer", "multipleOf": 10**30 + 7}, "multipleOf"),
    "multiples of nothing": ({"type": "integer", "multipleOf": 0}, "multiple"),
    "a type that is none": ({"type": "strin"}, "strin"),
    "properties that are none": ({"type": "object", "properties": [1]}, "properties"),
    "an enum that is none": ({"enum": 5}, "enum"),
    "items that are none": ({"type": "array", "items": 5}, "schema must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_and_names_no_switch_of_ours(name, grammars):
    schema, reason = REFUSED[name]
    for inside in (schema,) if "$ref" in schema else (schema, obj({"deep": schema})):
        with pytest.raises((ApiError, RequestError), match=reason) as caught:
            grammars.json(inside, "response_format")
        message = str(caught.value)
        assert message.startswith("response_format: ") and "\n" not in message and len(message) < 400
        assert not message.endswith(":")
        assert not any(word in message for word in ("coerce", "x-guidance", "%json", "at 1("))


def test_a_schema_too_deep_is_refused(grammars):
    schema = {"type": "integer"}
    for _ in range(200):
        schema = obj({"a": schema})
    with pytest.raises(ApiError, match="too large or too deep"):
        grammars.json(schema, "response_format")


def test_a_schema_that_grows_too_large_as_it_is_followed(model, grammars, monkeypatch):
    """Found only when the object is open: an error of the request, not of the server."""
    monkeypatch.setitem(grammar._LIMITS, "max_items_in_row", 200)
    guide = grammars.json({"properties": {f"k{i}": {} for i in range(60)}, "type": "object"}, "response_format")
    with pytest.raises(RequestError, match="response_format: the schema is too large"):
        fits(model, guide, '{"k1": 1, "k2": 2}')


def test_annotations_go_and_positions_stay():
    schema = {"type": "object", "properties": {"format": {"type": "string", "format": "color"}}, "maximum": 10**30}
    assert enforceable(schema) == {"type": "object", "properties": {"format": {"type": "string"}}}
    assert enforceable(True) is True and enforceable(5) == 5


# --- calls ---


def tool(name, properties, **more):
    return {"name": name, "parameters": obj(properties, **more)}


def item(values):
    return {"item": {"$ref": "#/$defs/Item"}}, {"$defs": {"Item": obj({"x": {"enum": values}})}}


def text_of(form, *calls):
    bodies = [json.dumps({"name": name, form.arguments: arguments}, ensure_ascii=False) for name, arguments in calls]
    if form is tools.HERMES:
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    return f"[TOOL_CALLS][{', '.join(bodies)}]" if form is tools.MISTRAL else "; ".join(bodies)


ITEM = {"x": {"$ref": "#/$defs/Item"}}
FUNCTIONS = [
    tool("a", item(["Faust"])[0], **item(["Faust"])[1]),
    tool("b", item([4])[0], **item([4])[1]),
    tool("again", {"value": {"enum": [7]}, "next": {"anyOf": [{"$ref": "#"}, {"enum": ["z"]}]}}),
    tool("same", {"one": {"enum": [1]}, "two": {"$ref": "#/properties/one"}}),
    tool("old", {"x": {"$ref": "#/definitions/Item"}}, definitions={"Item": {"enum": ["old"]}}),
    tool("named", ITEM, **{"$id": "http://example.com/a", "$defs": {"Item": {"enum": ["id"]}}}),
    tool("named_too", ITEM, **{"$id": "http://example.com/a", "$defs": {"Item": {"enum": [2]}}}),
    tool("anchored", {"x": {"$ref": "#Item"}}, **{"$defs": {"Other": {"$anchor": "Item", "enum": ["anchor"]}}}),
    tool("anchored_too", {"x": {"$ref": "#Item"}}, **{"$defs": {"Other": {"$anchor": "Item", "enum": [3]}}}),
    tool("deep", {"x": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"enum": [9]}}}),
    {"name": "anything"},
    {"name": 'größe "x" \\', "parameters": {}},
]
RIGHT = [
    ("a", {"item": {"x": "Faust"}}), ("b", {"item": {"x": 4}}),
    ("again", {"value": 7, "next": {"value": 7, "next": "z"}}), ("same", {"one": 1, "two": 1}), ("old", {"x": "old"}),
    ("named", {"x": "id"}), ("named_too", {"x": 2}), ("anchored", {"x": "anchor"}), ("anchored_too", {"x": 3}),
    ("deep", {"x": 9}), ("anything", {"of": ["it"]}), ('größe "x" \\', {}),
]  # fmt: skip
WRONG = [
    ("a", {"item": {"x": 4}}), ("b", {"item": {"x": "Faust"}}), ("again", {"name": "again", "arguments": {}}),
    ("same", {"one": 1, "two": 2}), ("old", {"x": "id"}), ("named", {"x": 2}), ("named_too", {"x": "id"}),
    ("anchored", {"x": 3}), ("deep", {"x": 1}), ("anything", [1]), ("nothing", {}),
]  # fmt: skip
FORMS = [tools.HERMES, tools.MISTRAL, tools.LLAMA]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("order", [1, -1])
def test_each_function_has_its_own_definitions(form, order, model, grammars):
    guide = grammars.lark(tools.calls_grammar(form, FUNCTIONS[::order], None), "tools")
    for call in RIGHT:
        assert fits(model, guide, text_of(form, call)), call
    for call in WRONG:
        assert not fits(model, guide, text_of(form, call)), call


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_several_calls_only_where_they_may_be(form, model, grammars):
    one = grammars.lark(tools.calls_grammar(form, FUNCTIONS, None), "tools")
    many = grammars.lark(tools.calls_grammar(form, FUNCTIONS, None, parallel=True), "tools")
    text = text_of(form, *RIGHT[:3])
    assert fits(model, many, text) and fits(model, many, text_of(form, RIGHT[0]))
    assert not fits(model, one, text) and not fits(model, many, text_of(form, RIGHT[0], WRONG[0]))
    assert not fits(model, many, "")
    parser = tools.ToolParser(form, {function["name"]: function for function in FUNCTIONS})
    calls = parser.push(text)[1] + parser.finish()[1]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == RIGHT[:3]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_or_json_of_a_format(form, model, grammars):
    schema = obj({"answer": {"$ref": "#/$defs/Item"}}, **{"$defs": {"Item": {"enum": ["yes"]}}})
    anything = grammars.lark(tools.calls_grammar(form, FUNCTIONS, None, {"type": "object"}, parallel=True), "tools")
    for text in ('{"name": "x", "n": [1]}', "{}", text_of(form, RIGHT[0]), text_of(form, *RIGHT[:2])):
        assert fits(model, anything, text)
    guide = grammars.lark(tools.calls_grammar(form, FUNCTIONS, None, schema, parallel=True), "tools")
    for text in ('{"answer": "yes"}', text_of(form, RIGHT[0]), text_of(form, *RIGHT[:2])):
        assert fits(model, guide, text)
    for text in ('{"answer": "Faust"}', "yes", text_of(form, WRONG[0]), text_of(form, RIGHT[0]) + ' {"answer": "yes"}'):
        assert not fits(model, guide, text)


# --- what may be proposed ---


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_fits_is_what_could_be_taken(name, model, grammars):
    schema, right, wrong = SCHEMAS[name]
    start = grammars.json(schema, "response_format")
    for text in (*right, *wrong):
        ids, guide, taken = model.tokenizer.encode(text, add_special_tokens=False), start.copy(), 0
        told = guide.fitting(ids)
        while taken < len(ids) and ids[taken] in guide.allowed():
            assert guide.fitting(ids[taken:]) == told - taken  # nothing was taken by asking
            taken += 1
            if guide.accept(ids[taken - 1]):
                break
        assert told == taken
        assert (text in wrong) or taken == len(ids)


def test_ids_that_are_no_tokens_fit_nothing(model, grammars):
    guide = grammars.json({"type": "integer"}, "response_format")
    assert guide.fitting([]) == 0
    assert guide.fitting([model.config.vocab_size, 2**32 - 1]) == 0
    seven = model.tokenizer.encode("7", add_special_tokens=False)
    assert guide.fitting([*seven, 2**32 - 1, *seven]) == len(seven)
    assert set(seven) & set(guide.allowed())


def test_a_grammar_whose_process_is_gone_lets_nothing_be_proposed(model, grammars):
    guide = grammars.json({"type": "integer"}, "response_format").copy()
    seven = model.tokenizer.encode("7", add_special_tokens=False)
    guide._process._connection.close()
    assert guide.fitting(seven) == 0
    with pytest.raises(RequestError, match="response_format"):
        guide.accept(seven[0])
