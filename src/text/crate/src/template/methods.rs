//! Methods of Python's str, dict and list. Methods that would change a value are missing, as in transformers' sandbox.

use minijinja::formatting::{format, FormatStyle};
use minijinja::value::{from_args, Kwargs, Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::python::is_space;

pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_str(state, value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => of_dict(value, method, args),
        ValueKind::Seq => of_list(value, method, args),
        ValueKind::Number => of_number(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}

fn of_dict(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || -> Result<Vec<(Value, Value)>, Error> {
        let keys = value.try_iter()?;
        keys.map(|key| value.get_item(&key).map(|item| (key, item))).collect()
    };
    match method {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = value.as_object().and_then(|object| object.get_value(&key));
            Ok(found.or(default).unwrap_or_else(|| Value::from(())))
        }
        "items" => {
            let () = from_args(args)?;
            Ok(pairs()?.into_iter().map(|(key, item)| Value::from(Tuple::from([key, item]))).collect())
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(value.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(args)?;
            Ok(pairs()?.into_iter().map(|(_, item)| item).collect())
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "count" => {
            let (wanted,): (Value,) = from_args(args)?;
            Ok(Value::from(value.try_iter()?.filter(|item| *item == wanted).count()))
        }
        "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == wanted);
            place.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_number(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "is_integer" => {
            let () = from_args(args)?;
            let whole = value.is_integer() || f64::try_from(value.clone())?.fract() == 0.0;
            Ok(Value::from(whole))
        }
        "bit_length" if value.is_integer() => {
            let () = from_args(args)?;
            Ok(Value::from(128 - i128::try_from(value.clone())?.unsigned_abs().leading_zeros()))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_str(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    // Fuel for what is about to be made: methods here are linear in the text and in what they return.
    state.consume_fuel(1 + text.len() as u64 / 64)?;
    let none = |value: String| -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(value))
    };
    match method {
        "upper" => none(text.to_uppercase()),
        "lower" | "casefold" => none(text.to_lowercase()),
        "title" => none(title(text)),
        "capitalize" => none(capitalize(text)),
        "swapcase" => none(swapcase(text)),
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "startswith" => affix(text, args, |text, prefix| text.starts_with(prefix)),
        "endswith" => affix(text, args, |text, suffix| text.ends_with(suffix)),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => splitlines(text, args),
        "partition" => partition(args, |separator| text.split_once(separator), (text, "", "")),
        "rpartition" => partition(args, |separator| text.rsplit_once(separator), ("", "", text)),
        "replace" => replace(state, text, args),
        "join" => join(state, text, args),
        "format" => format(FormatStyle::StrFormat, text, args).map(Value::from),
        "find" => find(text, args, false).map(|place| Value::from(place.unwrap_or(-1))),
        "rfind" => find(text, args, true).map(|place| Value::from(place.unwrap_or(-1))),
        "index" => find(text, args, false)?.map(Value::from).ok_or_else(|| invalid("substring not found")),
        "rindex" => find(text, args, true)?.map(Value::from).ok_or_else(|| invalid("substring not found")),
        "count" => {
            let (wanted,): (&str,) = from_args(args)?;
            Ok(Value::from(text.matches(wanted).count()))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            let zeros = missing(state, text, width)?;
            Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(zeros))))
        }
        "ljust" | "rjust" | "center" => justify(state, text, method, args),
        _ => is_something(text, method, args),
    }
}

fn is_something(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let any = |test: fn(char) -> bool| text.chars().any(test);
    let answer = match method {
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isascii" => text.is_ascii(),
        "islower" => any(char::is_lowercase) && !any(char::is_uppercase),
        "isupper" => any(char::is_uppercase) && !any(char::is_lowercase),
        "istitle" => any(|c| c.is_uppercase() || c.is_lowercase()) && title(text) == text,
        "isidentifier" => !text.starts_with(|c: char| c.is_numeric()) && all(|c| c.is_alphanumeric() || c == '_'),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    let () = from_args(args)?;
    Ok(Value::from(answer))
}

/// The letter that begins a word: ß becomes Ss, not SS.
fn title_case(c: char) -> impl Iterator<Item = char> {
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase))
}

/// A letter after anything but a letter is upper case, other letters lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        let cased = c.is_lowercase() || c.is_uppercase();
        if cased && !in_word {
            out.extend(title_case(c));
        } else {
            out.extend(c.to_lowercase());
        }
        in_word = cased;
    }
    out
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => title_case(first).chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

fn swapcase(text: &str) -> String {
    let swap = |c: char| -> Vec<char> {
        if c.is_uppercase() {
            c.to_lowercase().collect()
        } else {
            c.to_uppercase().collect()
        }
    };
    text.chars().flat_map(swap).collect()
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(goes) } else { text };
    Ok(Value::from(if end { text.trim_end_matches(goes) } else { text }))
}

/// startswith and endswith: of one string, or of any of a tuple.
fn affix(text: &str, args: &[Value], test: fn(&str, &str) -> bool) -> Result<Value, Error> {
    let (affixes,): (&Value,) = from_args(args)?;
    if let Some(affix) = affixes.as_str() {
        return Ok(Value::from(test(text, affix)));
    }
    let mut found = false;
    for affix in affixes.try_iter()? {
        found |= test(text, affix.as_str().ok_or_else(|| invalid("expected a string or a tuple of strings"))?);
    }
    Ok(Value::from(found))
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (positional, options): (&[Value], Kwargs) = from_args(args)?;
    let (separator, most): (Option<Value>, Option<i64>) = from_args(positional)?;
    let separator = separator.or(options.get("sep")?).filter(|separator| !separator.is_none());
    let most = most.or(options.get("maxsplit")?).unwrap_or(-1);
    options.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match &separator {
        None if from_right => rsplit_space(text, most),
        None => split_space(text, most),
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| invalid("split: the separator must be a string"))?;
            match separator {
                "" => return Err(invalid("split: the separator is empty")),
                _ if from_right => text.rsplitn(most + 1, separator).collect(),
                _ => text.splitn(most + 1, separator).collect(),
            }
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

/// Runs of white space separate; what is left after `most` splits keeps its inner and trailing space.
fn split_space(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        match rest.find(is_space) {
            Some(end) if parts.len() < most => {
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
            _ => {
                parts.push(if parts.len() < most { rest.trim_end_matches(is_space) } else { rest });
                break;
            }
        }
    }
    parts
}

/// The same from the right; the parts come last first.
fn rsplit_space(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        match rest.char_indices().rev().find(|(_, c)| is_space(*c)) {
            Some((at, c)) if parts.len() < most => {
                parts.push(&rest[at + c.len_utf8()..]);
                rest = rest[..at].trim_end_matches(is_space);
            }
            _ => {
                parts.push(if parts.len() < most { rest.trim_start_matches(is_space) } else { rest });
                break;
            }
        }
    }
    parts
}

/// Python's line boundaries, of which "\r\n" is one.
fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (positional, options): (&[Value], Kwargs) = from_args(args)?;
    let (keep,): (Option<bool>,) = from_args(positional)?;
    let keep = keep.or(options.get("keepends")?).unwrap_or(false);
    options.assert_all_used()?;
    let is_boundary = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, length) = match rest.char_indices().find(|(_, c)| is_boundary(*c)) {
            None => (rest.len(), 0),
            Some((at, _)) if rest[at..].starts_with("\r\n") => (at, 2),
            Some((at, c)) => (at, c.len_utf8()),
        };
        lines.push(Value::from(&rest[..if keep { line + length } else { line }]));
        rest = &rest[line + length..];
    }
    Ok(lines.into())
}

fn partition<'a>(
    args: &[Value],
    split: impl Fn(&str) -> Option<(&'a str, &'a str)>,
    otherwise: (&str, &str, &str),
) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("partition: the separator is empty"));
    }
    let (before, between, after) = match split(separator) {
        Some((before, after)) => (before, separator, after),
        None => otherwise,
    };
    Ok(Value::from((Value::from(before), Value::from(between), Value::from(after))))
}

fn replace(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (old, new, most): (&str, &str, Option<i64>) = from_args(args)?;
    let found = text.matches(old).count();
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(found).min(found);
    state.consume_fuel((most as u64).saturating_mul(new.len() as u64) / 64)?;
    Ok(Value::from(text.replacen(old, new, most)))
}

fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (items,): (&Value,) = from_args(args)?;
    let mut out = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        let item = item.as_str().ok_or_else(|| invalid("join: expected strings"))?.to_string();
        state.consume_fuel(1 + (separator.len() + item.len()) as u64 / 64)?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(&item);
    }
    Ok(Value::from(out))
}

/// The place of a substring, in characters; None where it is not there. `start` and `end` as in a slice.
fn find(text: &str, args: &[Value], last: bool) -> Result<Option<i64>, Error> {
    let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = text.chars().count() as i64;
    let clamp = |place: i64| {
        if place < 0 {
            (place + length).max(0)
        } else {
            place.min(length)
        }
    };
    let (start, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(length)));
    if start > end {
        return Ok(None);
    }
    let byte = |place: i64| text.char_indices().nth(place as usize).map_or(text.len(), |(at, _)| at);
    let part = &text[byte(start)..byte(end)];
    let found = if last { part.rfind(wanted) } else { part.find(wanted) };
    Ok(found.map(|at| start + part[..at].chars().count() as i64))
}

/// How many characters `text` lacks to be `width` wide.
fn missing(state: &State, text: &str, width: usize) -> Result<usize, Error> {
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 64)?;
    Ok(missing)
}

fn justify(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let missing = missing(state, text, width)?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python's rounding of the half.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = fill.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(invalid("the fill character must be one character"));
    }
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}
