//! Python's json.dumps, with the options that transformers' `tojson` filter passes on.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::filters::argument;
use super::python;

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

/// tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
pub fn filter(value: &Value, positional: minijinja::value::Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match argument(&positional, 1, &options, "indent")? {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(i64::try_from(indent)?.clamp(0, 1000)).unwrap_or(0)),
        }),
    };
    let (item, key) = match argument(&positional, 2, &options, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            match (pair.first().and_then(Value::as_str), pair.get(1).and_then(Value::as_str)) {
                (Some(item), Some(key)) if pair.len() == 2 => (item.to_string(), key.to_string()),
                _ => return Err(invalid("separators must be two strings")),
            }
        }
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style {
        ensure_ascii: truth(argument(&positional, 0, &options, "ensure_ascii")?),
        indent,
        item,
        key,
        sort_keys: truth(argument(&positional, 3, &options, "sort_keys")?),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    write(&mut out, value, &style, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > python::MAX_DEPTH {
        return Err(python::too_deep());
    }
    match value.kind() {
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_container(out, style, depth, ('[', ']'), &items, |out, item| write(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_container(out, style, depth, ('{', '}'), &keys, |out, key| {
                let name = match key.as_str() {
                    Some(name) => name.to_string(),
                    None => scalar(key)?,
                };
                write_string(out, &name, style);
                out.push_str(&style.key);
                write(out, &value.get_item(key)?, style, depth + 1)
            })?;
        }
        _ => out.push_str(&scalar(value)?),
    }
    Ok(())
}

fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_string()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_string()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => Ok(match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".to_string(),
            number if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_string(),
            number => python::float(number),
        }),
        kind => Err(invalid(&format!("a value that is {kind} has no JSON"))),
    }
}

fn write_container(
    out: &mut String,
    style: &Style,
    depth: usize,
    (open, close): (char, char),
    items: &[Value],
    mut write_item: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item);
        }
        new_line(out, depth + 1);
        write_item(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn write_string(out: &mut String, text: &str, style: &Style) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
