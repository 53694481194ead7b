"""Random JSON Schemas whose answers are short, the same ones for a seed."""

import random

NAMES = ["name", "age", "kind", "tags", "size", "home", "note", "left", "a b", "größe", "x"]
WORDS = ["red", "green", "ok", "no", "yes", "fox", "", "é", 'a"b', "\\"]
MOST_STRING = 6


def _string(rng):
    schema = {"type": "string", "maxLength": rng.randint(0, MOST_STRING)}
    if rng.random() < 0.3:
        schema["minLength"] = rng.randint(0, schema["maxLength"])
    return schema


def _integer(rng):
    low = rng.choice([rng.randint(-50, 50), rng.randint(-(10**6), 10**6), 0])
    return {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 1, 9, 250, 12345])}


def _number(rng):
    low = rng.choice([0, -1, -2.5, 0.125, 10])
    kind = rng.choice(["closed", "open"])
    names = ("minimum", "maximum") if kind == "closed" else ("exclusiveMinimum", "exclusiveMaximum")
    return {"type": "number", names[0]: low, names[1]: low + rng.choice([0.5, 1, 7.25, 100])}


def _constant(rng):
    return rng.choice([*WORDS, 0, -3, 2.5, True, False, None, [1, "a"], {"k": 1}])


def _enum(rng):
    values = []
    for _ in range(rng.randint(1, 4)):
        value = _constant(rng)
        # Python takes 0 and False for one; a schema does not.
        if not any(type(value) is type(other) and value == other for other in values):
            values.append(value)
    return {"enum": values}


def _array(rng, depth):
    low = rng.randint(0, 2)
    return {"type": "array", "items": schema(rng, depth - 1), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _object(rng, depth):
    names = rng.sample(NAMES, rng.randint(0, 4))
    properties = {name: schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def schema(rng, depth):
    leaves = [
        _string,
        _integer,
        _number,
        _enum,
        lambda rng: {"type": "boolean"},
        lambda rng: {"type": "null"},
        lambda rng: {"const": _constant(rng)},
    ]
    if depth <= 0 or rng.random() < 0.35:
        return rng.choice(leaves)(rng)
    kind = rng.random()
    if kind < 0.5:
        return _object(rng, depth)
    if kind < 0.8:
        return _array(rng, depth)
    return {"anyOf": [schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def schemas(count, seed=1):
    """`count` schemas of objects, as response_format wants them."""
    rng = random.Random(seed)
    return [_object(rng, rng.randint(1, 3)) for _ in range(count)]
