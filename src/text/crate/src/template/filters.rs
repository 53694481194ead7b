//! Filters, tests and functions that transformers adds to Jinja, or that minijinja has otherwise than Jinja in Python.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::{json, python, Raised};

pub fn add(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("checked_iterable", checked_iterable); // for source::prepare
    environment.add_filter("tojson", json::filter);
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |text: &Value| {
        python::str(text)
            .map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count())
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_function("dict", dict);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::str(message)?;
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// join(value, d="", attribute=None)
fn join(state: &mut State, value: &Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let separator = match positional.first() {
        Some(separator) => python::str(separator)?,
        None => options.get::<Option<Value>>("d")?.map_or(Ok(String::new()), |separator| python::str(&separator))?,
    };
    let attribute = match positional.get(1) {
        Some(attribute) => Some(attribute.clone()),
        None => options.get::<Option<Value>>("attribute")?,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    for (index, item) in value.try_iter()?.enumerate() {
        state.consume_fuel(1 + separator.len() as u64 / 64)?;
        if index > 0 {
            out.push_str(&separator);
        }
        match &attribute {
            Some(attribute) => out.push_str(&python::str(&item.get_item(attribute)?)?),
            None => out.push_str(&python::str(&item)?),
        }
    }
    Ok(out)
}

/// Python: what has a length and can be indexed; strings and dicts are.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What a for loop iterates over. As a list, so that the loop knows its length (minijinja does not for strings).
fn checked_iterable(state: &mut State, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(Error::new(ErrorKind::InvalidOperation, "None is not iterable")),
        ValueKind::Seq | ValueKind::Undefined => Ok(value),
        _ => {
            let items: Vec<Value> = value.try_iter()?.collect();
            state.consume_fuel(items.len() as u64)?;
            Ok(items.into())
        }
    }
}

/// An argument by its place or by its name; absent and None are the same.
pub fn argument(positional: &[Value], place: usize, named: &Kwargs, name: &str) -> Result<Option<Value>, Error> {
    let by_name: Option<Value> = named.get(name)?;
    Ok(positional.get(place).cloned().or(by_name).filter(|value| !value.is_none()))
}

fn is_true(argument: Option<Value>) -> bool {
    argument.is_some_and(|value| value.is_true())
}

/// indent(s, width=4, first=False, blank=False); the width may be the indentation itself.
fn indent(state: &State, text: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let text = python::str(text)?;
    let indentation = match argument(&positional, 0, &named, "width")? {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(indentation) => indentation.to_string(),
            None => " ".repeat(usize::try_from(width)?.min(1000)),
        },
    };
    let first = is_true(argument(&positional, 1, &named, "first")?);
    let blank = is_true(argument(&positional, 2, &named, "blank")?);
    named.assert_all_used()?;
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        state.consume_fuel(1 + indentation.len() as u64 / 64)?;
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// truncate(s, length=255, killwords=False, end="...", leeway=5)
fn truncate(text: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let text = python::str(text)?;
    let number = |value: Option<Value>, otherwise: usize| value.map_or(Ok(otherwise), usize::try_from);
    let length = number(argument(&positional, 0, &named, "length")?, 255)?;
    let kill_words = is_true(argument(&positional, 1, &named, "killwords")?);
    let end = argument(&positional, 2, &named, "end")?.map_or(Ok("...".to_string()), |end| python::str(&end))?;
    let leeway = number(argument(&positional, 3, &named, "leeway")?, 5)?;
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept = length.checked_sub(end.chars().count());
    let kept =
        kept.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "truncate: the end is longer than the length"))?;
    let mut short: String = text.chars().take(kept).collect();
    if !kill_words {
        short.truncate(short.rfind(' ').unwrap_or(short.len()));
    }
    Ok(short + &end)
}

fn escape(text: &Value) -> Result<String, Error> {
    let text = python::str(text)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// dict(mapping or pairs, **items)
fn dict(from: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(from) = from {
        for item in from.try_iter()? {
            match from.kind() {
                ValueKind::Map => pairs.push((item.clone(), from.get_item(&item)?)),
                _ => pairs.push((item.get_item_by_index(0)?, item.get_item_by_index(1)?)),
            }
        }
    }
    for name in named.args().map(str::to_string).collect::<Vec<_>>() {
        pairs.push((Value::from(name.as_str()), named.get(&name)?));
    }
    Ok(Value::from_pairs(pairs))
}
