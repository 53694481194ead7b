//! A look over a Lark grammar before llguidance compiles it: its `%json` schemas get our options, and terminals, which
//! are written out where they are named, may not grow without bound by that.

use std::collections::HashMap;

use serde_json::Value;

use super::{cost, spec};

const KEYWORD: &str = "%json";
/// Of the grammar without its schemas. It bounds how deep rules and brackets nest as well.
const MAX_TEXT: usize = 32 << 10;

/// The grammar to compile.
pub fn prepared(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut terminals = Terminals::default();
    let mut own = 0;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(KEYWORD) {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
            let schema = values.next().ok_or("%json without a schema")?;
            let schema = schema.map_err(|error| format!("%json: {error}"))?;
            let schema = spec::checked(schema).map_err(|error| format!("%json: {error}"))?;
            out += &format!("{KEYWORD} {}", spec::with_options(schema));
            rest = &after[values.byte_offset()..];
            continue;
        }
        let literal = literal(rest);
        let name = rest.bytes().take_while(|&byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)).count();
        let (piece, after) = rest.split_at(if literal + name > 0 { literal.max(name) } else { first.len_utf8() });
        if literal > 0 {
            terminals.literal(piece);
        } else if name > 0 {
            terminals.name(piece, out.ends_with('\n') || out.is_empty());
        }
        own += piece.len();
        out += piece;
        rest = after;
    }
    if own > MAX_TEXT {
        return Err(format!("{own} bytes long without its schemas: expected at most {MAX_TEXT}"));
    }
    terminals.check()?;
    Ok(out)
}

/// Length of the comment, string or regular expression at the beginning of a piece of Lark; 0: something else.
fn literal(text: &str) -> usize {
    let bytes = text.as_bytes();
    let quote = match bytes[0] {
        b'#' => return text.find('\n').unwrap_or(text.len()),
        b'/' if bytes.get(1) == Some(&b'/') => return text.find('\n').unwrap_or(text.len()),
        b'"' | b'/' => bytes[0],
        _ => return 0,
    };
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    // Unterminated, or cut within a character: an error that llguidance will tell.
    let end = (at + 1).min(bytes.len());
    (end..=bytes.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(bytes.len())
}

#[derive(Default)]
struct Definition<'a> {
    weight: u64,
    names: Vec<&'a str>,
    /// Its weight with everything that it names written out; None: not known yet.
    total: Option<u64>,
}

/// Which definition (the one whose line it is) holds which literals and names. Rules are taken for terminals, too, as
/// far as what they name are terminals.
#[derive(Default)]
struct Terminals<'a> {
    definitions: HashMap<&'a str, Definition<'a>>,
    current: &'a str,
}

impl<'a> Terminals<'a> {
    fn literal(&mut self, text: &str) {
        let weight = if text.starts_with('#') || text.starts_with("//") { 0 } else { cost::weight_of_regex(text) };
        self.definitions.entry(self.current).or_default().weight += weight;
    }

    fn name(&mut self, name: &'a str, begins_line: bool) {
        if begins_line {
            self.current = name;
        } else if name.trim_start_matches('_').starts_with(|first: char| first.is_ascii_uppercase()) {
            self.definitions.entry(self.current).or_default().names.push(name);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let all: Vec<&str> = self.definitions.keys().copied().collect();
        for name in all {
            self.total(name)?;
        }
        Ok(())
    }

    fn total(&mut self, name: &'a str) -> Result<u64, String> {
        let Some(definition) = self.definitions.get_mut(name) else { return Ok(1) };
        if let Some(total) = definition.total {
            return Ok(total);
        }
        definition.total = Some(0); // a terminal that names itself is an error that llguidance will tell
        let mut total = definition.weight + 1;
        for inner in std::mem::take(&mut definition.names) {
            total = total.saturating_add(self.total(inner)?);
        }
        if total > cost::MAX_REGEX_WEIGHT {
            return Err(format!("{name} is too large with the terminals that it names written out"));
        }
        self.definitions.entry(name).or_default().total = Some(total);
        Ok(total)
    }
}
