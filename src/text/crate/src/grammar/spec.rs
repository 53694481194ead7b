//! From what a client asked for to llguidance's grammar.

use llguidance::api::TopLevelGrammar;
use llguidance::{regex_to_lark, JsonCompileOptions};
use serde_json::Value;

use super::{cost, lark};

/// White space between the tokens of JSON: at most one piece, and a bounded one, so that a model that likes white space
/// cannot write it for ever. It allows the compact form, the one-line form with spaces, and indented lines, which
/// are what clients know from other servers and what models have learnt to write.
const JSON_SPACE: &str = r"\x20|\n(?:\x20{0,24}|\t{1,8})";

const MAX_TEXT: usize = 256 << 10;
const MAX_REGEX: usize = 8 << 10;
const MAX_CHOICES: usize = 10_000;

pub fn json_object() -> TopLevelGrammar {
    json(serde_json::json!({"type": "object"}))
}

pub fn json_schema(text: &str) -> Result<TopLevelGrammar, String> {
    bounded(text, MAX_TEXT)?;
    let schema: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let schema = checked(schema)?;
    match schema {
        Value::Object(_) => Ok(json(schema)),
        Value::Bool(true) => Ok(json(serde_json::json!({}))),
        Value::Bool(false) => Err("the schema `false` allows nothing".to_string()),
        _ => Err("a schema is an object, or true".to_string()),
    }
}

fn json(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_options(schema))
}

/// The schema, bounded, and such that llguidance understands more of it.
pub fn checked(mut schema: Value) -> Result<Value, String> {
    cost::check(&schema)?; // also that it is safe to go down in it
    settle_bounds(&mut schema)?;
    let root = schema.clone();
    resolve_one_of(&mut schema, &root);
    cost::check(&schema)?;
    Ok(schema)
}

/// Numbers beyond it are not exact in the double precision that llguidance keeps bounds in.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// Bounds of numbers as llguidance keeps them to the letter: an open bound of a fraction becomes the closed one beside it
/// (llguidance would let the bound itself through where it is whole), and bounds of integers that it would round are
/// refused.
fn settle_bounds(schema: &mut Value) -> Result<(), String> {
    let Value::Object(object) = schema else { return Ok(()) };
    for (key, value) in object.iter_mut() {
        match (key.as_str(), value) {
            ("enum" | "const" | "default" | "examples", _) => {}
            ("properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas", Value::Object(map)) => {
                map.values_mut().try_for_each(settle_bounds)?;
            }
            (_, Value::Array(list)) => list.iter_mut().try_for_each(settle_bounds)?,
            (_, value) => settle_bounds(value)?,
        }
    }
    let is = |kind: &str| match object.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        _ => kind == "number",
    };
    let (fractions, integers) = (is("number"), is("integer"));
    for (open, closed, step) in [
        ("exclusiveMinimum", "minimum", f64::next_up as fn(f64) -> f64),
        ("exclusiveMaximum", "maximum", f64::next_down as fn(f64) -> f64),
    ] {
        let bound = |key: &str| object.get(key).and_then(Value::as_f64);
        for key in [open, closed] {
            if integers && bound(key).is_some_and(|bound| bound.abs() > EXACT) {
                return Err(format!("{key} of an integer is beyond 2^53"));
            }
        }
        let Some(bound) = bound(open).filter(|bound| fractions && bound.abs() < EXACT) else { continue };
        // Around zero the neighbour has three hundred digits.
        const NEAR_ZERO: f64 = 1e-16;
        let upwards = open == "exclusiveMinimum";
        let beside = match bound.abs() < NEAR_ZERO {
            true if upwards => NEAR_ZERO,
            true => -NEAR_ZERO,
            false => step(bound),
        };
        let tighter = match object.get(closed).and_then(Value::as_f64) {
            Some(other) if upwards => other.max(beside),
            Some(other) => other.min(beside),
            None => beside,
        };
        object.remove(open);
        object.insert(closed.to_string(), Value::from(tighter));
    }
    Ok(())
}

/// llguidance takes a oneOf whose alternatives exclude each other, which it finds by looking at them but not through
/// references. A reference beside a type that its target has anyway is resolved, and means the same.
fn resolve_one_of(value: &mut Value, root: &Value) {
    let Value::Object(object) = value else {
        return value.as_array_mut().into_iter().flatten().for_each(|value| resolve_one_of(value, root));
    };
    for (key, value) in object.iter_mut() {
        for option in value.as_array_mut().filter(|_| key == "oneOf").into_iter().flatten() {
            let Some(option) = option.as_object_mut() else { continue };
            let target = option.get("$ref").and_then(Value::as_str).and_then(|name| cost::target(root, name));
            let kind = target.and_then(|target| target.get("type")).filter(|kind| kind.is_string()).cloned();
            if let Some(kind) = kind {
                option.entry("type").or_insert(kind);
            }
        }
        resolve_one_of(value, root);
    }
}

/// The schema with our options, in place of those that a client might have put there.
pub fn with_options(mut schema: Value) -> Value {
    let space = Some(JSON_SPACE.to_string());
    if schema.is_object() {
        JsonCompileOptions { whitespace_pattern: space, ..JsonCompileOptions::default() }.apply_to(&mut schema);
    }
    schema
}

pub fn regex(text: &str) -> Result<TopLevelGrammar, String> {
    bounded(text, MAX_REGEX)?;
    if text.is_empty() {
        return Err("it is empty".to_string());
    }
    if cost::weight_of_regex(text) > cost::MAX_REGEX_WEIGHT {
        return Err("it repeats too many parts".to_string());
    }
    let backslashes = text.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if backslashes % 2 == 1 {
        return Err("it ends in a backslash".to_string());
    }
    if text.contains("<stop>") {
        // llguidance reads a group of this name as the end of a lazy match.
        return Err("a group may not be called `stop`".to_string());
    }
    Ok(TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(text, ""))))
}

pub fn choice(choices: &[&str]) -> Result<TopLevelGrammar, String> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        return Err(format!("{} choices: expected 1 to {MAX_CHOICES}", choices.len()));
    }
    if choices.iter().any(|choice| choice.is_empty()) {
        return Err("a choice is empty".to_string());
    }
    if choices.iter().map(|choice| choice.len()).sum::<usize>() > MAX_TEXT {
        return Err(format!("more than {MAX_TEXT} bytes of choices"));
    }
    let quoted: Vec<String> = choices.iter().map(|choice| Value::from(*choice).to_string()).collect();
    Ok(TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | "))))
}

pub fn lark(text: &str) -> Result<TopLevelGrammar, String> {
    bounded(text, MAX_TEXT)?;
    Ok(TopLevelGrammar::from_lark(lark::prepared(text)?))
}

fn bounded(text: &str, limit: usize) -> Result<(), String> {
    if text.len() > limit {
        return Err(format!("{} bytes long: expected at most {limit}", text.len()));
    }
    Ok(())
}
