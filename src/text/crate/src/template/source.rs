//! What is done to a template's text before minijinja compiles it.

/// Newlines become `\n`, as Jinja's lexer has them. `{% generation %}` blocks (transformers' extension; they mark the
/// assistant's tokens for training and render what is in them) become `{% with %}` blocks, which have a scope as well.
/// What a `{% for %}` iterates over goes through the filter `checked_iterable`: minijinja takes None for an empty list, and
/// Python for an error, on which templates rely when they cannot do without tools.
pub fn prepare(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => end_of_tag(tag, "}}"),
            Some(b'%') => end_of_tag(tag, "%}"),
            _ => 1,
        };
        let (tag, after) = tag.split_at(end);
        rest = after;
        match name_of_block(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            Some("for") => out.push_str(&checked_for(tag)),
            Some("raw") => {
                out.push_str(tag);
                // Jinja's trim_blocks spares the newline after this tag, minijinja's does not.
                if rest.starts_with('\n') && !tag.ends_with("-%}") {
                    out.push('\n');
                }
                let end = end_of_raw(rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// `generation` of `{%- generation -%}`.
fn name_of_block(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
    Some(&inside[..end])
}

/// `{% for x in (y)|checked_iterable if z %}` of `{% for x in y if z %}`.
fn checked_for(tag: &str) -> String {
    let words = top_level_words(tag);
    let Some((_, begin)) = words.iter().find(|(word, _)| *word == "in").map(|(word, at)| (word, at + word.len()))
    else {
        return tag.to_string();
    };
    let ends = words.iter().filter(|(word, at)| *at > begin && matches!(*word, "if" | "recursive"));
    let close = tag.trim_end_matches("%}").trim_end_matches(['-', '+']).len();
    let end = ends.map(|(_, at)| *at).next().unwrap_or(close);
    format!("{}({})|checked_iterable {}", &tag[..begin], &tag[begin..end], &tag[end..])
}

/// The words of a tag that stand outside of strings and brackets, with their places.
fn top_level_words(tag: &str) -> Vec<(&str, usize)> {
    let bytes = tag.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut words = Vec::new();
    let mut depth = 0_usize;
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = end_of_string(bytes, at),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            byte if is_word(byte) => {
                let length = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
                if depth == 0 {
                    words.push((&tag[at..at + length], at));
                }
                at += length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    words
}

/// Where the string that begins at `at` has its closing quote.
fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let mut at = at + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at
}

/// Where the tag at the beginning of `text` ends: after the first `close` outside of strings and brackets.
fn end_of_tag(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 2;
    let mut depth = 0_usize;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = end_of_string(bytes, at),
            _ if depth == 0 && bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// Where `{% endraw %}` ends.
fn end_of_raw(text: &str) -> usize {
    let mut at = 0;
    while let Some(found) = text[at..].find("{%") {
        at += found;
        let length = end_of_tag(&text[at..], "%}");
        if name_of_block(&text[at..at + length]) == Some("endraw") {
            return at + length;
        }
        at += 2;
    }
    text.len()
}
