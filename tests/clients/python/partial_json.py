"""Whether a text is the beginning of a JSON document that a schema of schemas.py allows."""

import decimal
import json
import re

import jsonschema

NUMBER_SO_FAR = re.compile(r"-?(0|[1-9][0-9]*)?((?<=[0-9])\.[0-9]*)?((?<=[0-9])[eE][+-]?[0-9]*)?$")
SPACE = " \t\r\n"
SCALARS = ("true", "false", "null")


def loads(text):
    """With the numbers as they are written: 10.0000000000000000001 is above 10."""
    return json.loads(text, parse_float=decimal.Decimal)


class Broken(Exception):
    """The text cannot be continued to JSON."""


class Parser:
    """Nodes: ("done", value), ("nothing",), ("string", text so far), ("scalar", text so far), ("array", nodes),
    ("object", [(name, node)], name so far or None). All but the first are cut off by the end of the text."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def space(self):
        while self.at < len(self.text) and self.text[self.at] in SPACE:
            self.at += 1

    def peek(self):
        return self.text[self.at] if self.at < len(self.text) else ""

    def document(self):
        node = self.value()
        self.space()
        if self.at < len(self.text):
            raise Broken(f"text after the end of the document, at {self.at}")
        return node

    def value(self):
        self.space()
        first = self.peek()
        if first == "":
            return ("nothing",)
        if first == "{":
            return self.object()
        if first == "[":
            return self.array()
        if first == '"':
            return self.string()
        return self.scalar()

    def string(self):
        """The strict decoder of the standard library for a whole one; what is cut off is closed before it."""
        begin = end = self.at
        end += 1
        escape = None  # where one begins that the end of the text cuts off
        while end < len(self.text) and self.text[end] != '"':
            step = 1 if self.text[end] != "\\" else 6 if self.text[end + 1 : end + 2] == "u" else 2
            if end + step > len(self.text):
                escape = end
            end += step
        closed = end < len(self.text)
        self.at = min(end + 1, len(self.text))
        text = self.text[begin : self.at] if closed else self.text[begin:escape] + '"'
        try:
            return ("done" if closed else "string", json.loads(text))
        except ValueError as error:
            raise Broken(f"no string: {text!r}: {error}") from None

    def scalar(self):
        found = re.compile(r"[-+.0-9a-zA-Z]+").match(self.text, self.at)
        if not found:
            raise Broken(f"{self.peek()!r} at {self.at} begins no value")
        word = found.group()
        self.at = found.end()
        if self.at == len(self.text):
            if any(scalar.startswith(word) for scalar in SCALARS) or NUMBER_SO_FAR.match(word):
                return ("scalar", word)
        try:
            return ("done", loads(word))
        except ValueError:
            raise Broken(f"{word!r} is no value") from None

    def array(self):
        self.at += 1
        nodes = []
        while True:
            self.space()
            if self.peek() == "]" and not nodes:
                self.at += 1
                return ("done", [])
            node = self.value()
            nodes.append(node)
            if node[0] != "done":
                return ("array", nodes)
            self.space()
            if self.peek() == "":
                return ("array", nodes)
            if self.peek() == "]":
                self.at += 1
                return ("done", [value for _, value in nodes])
            self.expect(",")

    def object(self):
        self.at += 1
        members = []
        while True:
            self.space()
            if self.peek() == "":
                return ("object", members, None)
            if self.peek() == "}" and not members:
                self.at += 1
                return ("done", {})
            if self.peek() != '"':
                raise Broken(f"no name at {self.at}")
            kind, name = self.string()
            if kind == "string":
                return ("object", members, name)
            self.space()
            if self.peek() == "":
                return ("object", [*members, (name, ("nothing",))], None)
            self.expect(":")
            members.append((name, self.value()))
            if members[-1][1][0] != "done":
                return ("object", members, None)
            self.space()
            if self.peek() == "":
                return ("object", members, None)
            if self.peek() == "}":
                self.at += 1
                return ("done", {name: node[1] for name, node in members})
            self.expect(",")

    def expect(self, char):
        if self.peek() != char:
            raise Broken(f"{self.peek()!r} at {self.at}, expected {char!r}")
        self.at += 1


def is_valid(value, schema):
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def may_become(node, value):
    """Whether what is there may go on to be `value`."""
    kind = node[0]
    if kind == "done":
        return is_valid(node[1], {"const": value})
    if kind == "nothing":
        return True
    if kind == "string":
        return isinstance(value, str) and value.startswith(node[1])
    if kind == "scalar":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return bool(NUMBER_SO_FAR.match(node[1]))
        return not isinstance(value, (str, list, dict)) and json.dumps(value).startswith(node[1])
    if kind == "array":
        return isinstance(value, list) and len(node[1]) <= len(value) and all(map(may_become, node[1], value))
    return isinstance(value, dict) and all(name in value and may_become(part, value[name]) for name, part in node[1])


def fits(node, schema):
    """Whether what is there may go on to be valid by `schema`."""
    kind = node[0]
    if kind == "done":
        return is_valid(node[1], schema)
    if kind == "nothing":
        return True
    if "anyOf" in schema:
        return any(fits(node, branch) for branch in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(may_become(node, value) for value in schema.get("enum", [schema.get("const")]))
    wanted = schema.get("type")
    if kind == "string":
        return wanted == "string" and len(node[1]) <= schema["maxLength"]
    if kind == "scalar":
        return scalar_fits(node[1], wanted, schema)
    if kind == "array":
        items = node[1]
        return wanted == "array" and len(items) <= schema["maxItems"] and all(fits(item, schema["items"]) for item in items)
    if wanted != "object":
        return False
    names = [name for name, _ in node[1]]
    properties = schema["properties"]
    if len(set(names)) != len(names) or not set(names) <= set(properties):
        return False
    if node[2] is not None and not any(name.startswith(node[2]) for name in properties if name not in names):
        return False
    return all(fits(part, properties[name]) for name, part in node[1])


def scalar_fits(text, wanted, schema):
    if wanted == "boolean":
        return "true".startswith(text) or "false".startswith(text)
    if wanted == "null":
        return "null".startswith(text)
    if wanted not in ("integer", "number") or not NUMBER_SO_FAR.match(text):
        return False
    if wanted == "integer" and re.fullmatch(r"-?[0-9]+", text):
        # Further digits only lead away from zero.
        so_far = int(text)
        return so_far <= schema["maximum"] if so_far > 0 else so_far >= schema["minimum"] if so_far < 0 else True
    return True


def is_prefix(text, schema):
    """Error: why not."""
    try:
        node = Parser(text).document()
    except Broken as error:
        return str(error)
    return None if fits(node, schema) else f"{node} cannot become valid"
