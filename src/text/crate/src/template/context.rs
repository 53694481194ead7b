//! The variables of a rendering, put in order as transformers does before it renders.

use serde_json::{Map, Value};

/// What a message's reasoning may be called; templates read the first or, gpt-oss, the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Keys without a value go; reasoning is given under the names that templates read.
fn message(message: Value) -> Result<Value, String> {
    let Value::Object(fields) = message else {
        return Err("messages: each message must be an object".to_string());
    };
    let fields: Map<String, Value> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return Ok(Value::Object(fields));
    };
    let mut named = Map::new();
    named.insert("thinking".to_string(), reasoning.clone());
    named.extend(fields);
    named.insert("reasoning_content".to_string(), reasoning);
    Ok(Value::Object(named))
}

/// Adds `context` to `variables`, over what is there. `tools` and `documents` are always defined.
pub fn add(variables: &mut Map<String, Value>, context: Value) -> Result<(), String> {
    let Value::Object(context) = context else {
        return Err("the variables of a chat template must be an object".to_string());
    };
    for name in ["tools", "documents"] {
        variables.insert(name.to_string(), Value::Null);
    }
    variables.insert("add_generation_prompt".to_string(), Value::Bool(false));
    for (name, value) in context {
        let value = match (name.as_str(), value) {
            ("messages", Value::Array(messages)) => {
                Value::Array(messages.into_iter().map(message).collect::<Result<_, _>>()?)
            }
            ("messages", _) => return Err("messages: expected a list".to_string()),
            (_, value) => value,
        };
        variables.insert(name, value);
    }
    Ok(())
}

/// A value of JSON as one of minijinja.
pub fn to_value(json: Value) -> minijinja::Value {
    match json {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(truth) => minijinja::Value::from(truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => minijinja::Value::from(number),
            (_, Some(number), _) => minijinja::Value::from(number),
            (_, _, number) => minijinja::Value::from(number.unwrap_or(f64::NAN)),
        },
        Value::String(text) => minijinja::Value::from(text),
        Value::Array(items) => items.into_iter().map(to_value).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            minijinja::Value::from_pairs(fields.into_iter().map(|(name, value)| (name, to_value(value))))
        }
    }
}
