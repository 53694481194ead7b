//! How much work a JSON schema is, before anybody does it. llguidance bounds its lexer and its parser; building the
//! schema itself, where `allOf`, `anyOf`, `$ref` and what stands beside them are multiplied out, can take memory and time
//! out of proportion to the text.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Nodes of the built schema, and steps of comparing alternatives.
const MAX_SIZE: u64 = 500_000;
const MAX_WORK: u64 = 5_000_000;
/// One schema within another, through references too.
const MAX_DEPTH: usize = 300;
/// llguidance looks at four items for each property that may be left out, and at no more than 2000 in all.
const MAX_OPTIONAL: usize = 400;
const MAX_NAMES: usize = 5_000;
const MAX_ALTERNATIVES: usize = 2_000;
/// Arrays and objects among the values of an `enum`.
const MAX_STRUCTURES: usize = 1_000;
const MAX_PATTERN_BYTES: usize = 16 << 10;
/// A pattern that comes with a format.
const FORMAT_BYTES: usize = 50;

const MULTIPLE: &str = "multipleOf has too many digits";

/// Of one regular expression, as `weight_of_regex` counts.
pub const MAX_REGEX_WEIGHT: u64 = 200_000;

/// A long row of repeated parts takes time that grows with the square of their number.
pub fn weight_of_regex(text: &str) -> u64 {
    let repeats = text.bytes().filter(|byte| b"*+?{".contains(byte)).count();
    text.len() as u64 + 200 * repeats as u64
}

pub fn check(schema: &Value) -> Result<(), String> {
    let mut cost = Cost { root: schema, known: HashMap::new(), depth: 0, work: 0, names: 0, pattern_bytes: 0 };
    let size = cost.schema(schema)?;
    cost.spend(size.nodes, "it is too large")
}

/// An upper bound of what a schema is built to.
#[derive(Clone, Copy)]
struct Size {
    /// A reference is one of them: what it refers to is built once for all of them,
    nodes: u64,
    /// unless something else is to hold there, too.
    resolved: u64,
    /// It holds alternatives, or a schema for everything else, which are copied for each part of what they are combined
    /// with.
    copied: bool,
    /// It refers to itself: combined with something, it is unrolled up to llguidance's own limit.
    endless: bool,
    /// The largest `multipleOf`, without its decimal point: so many states it takes.
    multiple: u64,
}

const NONE: Size = Size { nodes: 0, resolved: 0, copied: false, endless: false, multiple: 1 };
const ONE: Size = Size { nodes: 1, resolved: 1, ..NONE };

impl Size {
    fn with(self, other: Size) -> Size {
        Size {
            nodes: self.nodes.saturating_add(other.nodes),
            resolved: self.resolved.saturating_add(other.resolved),
            copied: self.copied || other.copied,
            endless: self.endless || other.endless,
            multiple: self.multiple.max(other.multiple),
        }
    }

    /// Both hold at once.
    fn and(self, other: Size) -> Size {
        let multiple = self.multiple.saturating_mul(other.multiple);
        if self.resolved <= 1 || other.resolved <= 1 {
            return Size { multiple, ..self.with(other) };
        }
        let mut nodes = match self.copied || other.copied {
            true => self.resolved.saturating_mul(other.resolved),
            false => self.resolved.saturating_add(other.resolved),
        };
        if self.endless || other.endless {
            nodes = nodes.saturating_mul(50_000);
        }
        Size { nodes, resolved: nodes, multiple, ..self.with(other) }
    }
}

struct Cost<'a> {
    root: &'a Value,
    /// Of references; None: being looked at.
    known: HashMap<&'a str, Option<Size>>,
    depth: usize,
    work: u64,
    names: usize,
    pattern_bytes: usize,
}

impl<'a> Cost<'a> {
    fn spend(&mut self, work: u64, on: &str) -> Result<(), String> {
        self.work = self.work.saturating_add(work);
        if self.work > MAX_WORK {
            return Err(format!("the schema is too complex: {on}"));
        }
        Ok(())
    }

    fn schema(&mut self, value: &'a Value) -> Result<Size, String> {
        let Value::Object(object) = value else { return Ok(ONE) };
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("the schema is nested more than {MAX_DEPTH} deep, references included"));
        }
        let mut size = self.own(object)?;
        let mut multiple = size.multiple;
        for (key, value) in object {
            let part = match key.as_str() {
                "const" => constant(value),
                "enum" => {
                    let values = value.as_array().into_iter().flatten();
                    let structures = values.clone().filter(|value| value.is_array() || value.is_object()).count();
                    at_most(structures, MAX_STRUCTURES, "arrays and objects in an enum")?;
                    Size { copied: true, ..values.map(constant).fold(NONE, Size::with) }
                }
                "anyOf" | "oneOf" => {
                    let options = self.each(value.as_array().into_iter().flatten())?;
                    let count = value.as_array().map_or(0, Vec::len);
                    at_most(count, MAX_ALTERNATIVES, "alternatives in one place")?;
                    if key == "oneOf" {
                        // Each is compared with each other one.
                        self.spend(options.nodes.saturating_mul(count as u64), "too many alternatives of oneOf")?;
                    }
                    Size { copied: true, ..options }
                }
                "allOf" => {
                    let mut all = ONE;
                    for schema in value.as_array().into_iter().flatten() {
                        all = all.and(self.schema(schema)?);
                    }
                    all
                }
                "$ref" => self.reference(value)?,
                _ => continue,
            };
            size = size.and(part);
            multiple = multiple.max(part.multiple);
        }
        self.depth -= 1;
        if size.multiple > multiple {
            self.spend(size.multiple.saturating_mul(100), MULTIPLE)?;
        }
        if size.nodes > MAX_SIZE {
            return Err("the schema is too complex: its parts combine to too many alternatives".to_string());
        }
        Ok(size)
    }

    /// What a schema says itself, without the keywords that refer to other schemas for the same value.
    fn own(&mut self, object: &'a Map<String, Value>) -> Result<Size, String> {
        let mut size = ONE;
        for key in ["properties", "patternProperties"] {
            size = size.with(self.each(object.get(key).and_then(Value::as_object).into_iter().flat_map(Map::values))?);
        }
        for key in ["items", "prefixItems"] {
            match object.get(key) {
                Some(Value::Array(items)) => size = size.with(self.each(items)?),
                Some(item) => size = size.with(self.rest(item)?),
                None => {}
            }
        }
        for key in ["additionalProperties", "additionalItems"] {
            if let Some(value) = object.get(key) {
                size = size.with(self.rest(value)?);
            }
        }
        self.own_names(object)?;
        if let Some(Value::Object(patterns)) = object.get("patternProperties") {
            // Each pattern is checked to be disjoint with each other one, and is tried on each property.
            let count = patterns.len() as u64;
            let names = object.get("properties").and_then(Value::as_object).map_or(0, Map::len) as u64;
            self.spend(count * (count * 5_000 + names), "too many patternProperties")?;
            for pattern in patterns.keys() {
                self.pattern(pattern)?;
            }
            size.copied |= count > 0;
        }
        if let Some(Value::String(pattern)) = object.get("pattern") {
            self.pattern(pattern)?;
        }
        if object.get("format").is_some_and(Value::is_string) {
            self.pattern_bytes += FORMAT_BYTES;
            at_most(self.pattern_bytes, MAX_PATTERN_BYTES, "bytes of patterns and formats")?;
        }
        if let Some(Value::Number(number)) = object.get("multipleOf") {
            let digits = number.to_string().split('e').next().unwrap_or_default().replace(['.', '-'], "");
            size.multiple = digits.parse().unwrap_or(u64::MAX);
            self.spend(size.multiple.saturating_mul(100), MULTIPLE)?;
        }
        let typed = object.get("type").is_some_and(Value::is_string);
        if !typed && size.nodes > 1 {
            size = Size { copied: true, ..size.with(Size { nodes: 6, resolved: 6, ..NONE }) };
        }
        Ok(size)
    }

    /// A schema for everything that no other one is for.
    fn rest(&mut self, value: &'a Value) -> Result<Size, String> {
        let size = self.schema(value)?;
        Ok(Size { copied: size.copied || value.is_object(), ..size })
    }

    fn own_names(&mut self, object: &'a Map<String, Value>) -> Result<(), String> {
        let properties = object.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        let required = object.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        self.names += properties + required;
        at_most(properties.saturating_sub(required), MAX_OPTIONAL, "properties of an object that are not required")?;
        at_most(self.names, 2 * MAX_NAMES, "names of properties, required ones counted twice")
    }

    fn pattern(&mut self, pattern: &str) -> Result<(), String> {
        if weight_of_regex(pattern) > MAX_REGEX_WEIGHT {
            return Err("a pattern repeats too many parts".to_string());
        }
        self.pattern_bytes += pattern.len();
        at_most(self.pattern_bytes, MAX_PATTERN_BYTES, "bytes of patterns")
    }

    fn each(&mut self, schemas: impl IntoIterator<Item = &'a Value>) -> Result<Size, String> {
        schemas.into_iter().try_fold(NONE, |size, schema| Ok(size.with(self.schema(schema)?)))
    }

    fn reference(&mut self, value: &'a Value) -> Result<Size, String> {
        let Some(name) = value.as_str() else { return Ok(ONE) };
        match self.known.get(name) {
            Some(Some(size)) => return Ok(Size { nodes: 1, ..*size }),
            Some(None) => return Ok(Size { endless: true, ..ONE }),
            None => {}
        }
        // What leads nowhere is an error that llguidance will tell.
        let Some(target) = target(self.root, name) else { return Ok(ONE) };
        self.known.insert(name, None);
        let size = self.schema(target)?;
        self.known.insert(name, Some(size));
        self.spend(size.nodes, "it is too large")?;
        Ok(Size { nodes: 1, ..size })
    }
}

/// What a reference refers to, as llguidance follows it.
pub fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let path = reference.strip_prefix('#')?.strip_prefix('/').unwrap_or_default();
    if path.is_empty() {
        return Some(root);
    }
    path.split('/').try_fold(root, |value, segment| match value {
        Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
        value => value.get(segment),
    })
}

fn at_most(count: usize, limit: usize, what: &str) -> Result<(), String> {
    match count > limit {
        true => Err(format!("{count} {what}: expected at most {limit}")),
        false => Ok(()),
    }
}

fn constant(value: &Value) -> Size {
    let nested = match value {
        Value::Array(items) => items.iter().map(|item| constant(item).nodes).sum(),
        Value::Object(fields) => fields.values().map(|field| constant(field).nodes).sum(),
        _ => 0,
    };
    Size { nodes: 1 + nested, resolved: 1 + nested, ..ONE }
}
