//! The steps of a decoder, each as something that tokens flow through.
//!
//! Where a step looks at one token at a time, or at a token and its place, the crate's own decoder does the work on a
//! list of one or two tokens. After a step that fuses all tokens into one text, tokens that flow are pieces of that one
//! text, and steps must not notice where it was cut.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::Decoder;

pub trait Stage: Send {
    /// Takes the next token and appends to `out` what has become final.
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String>;
    /// There is no further token: appends what was held back.
    fn finish(&mut self, _out: &mut Vec<String>) -> Result<(), String> {
        Ok(())
    }
}

fn apply(decoder: &DecoderWrapper, tokens: Vec<String>) -> Result<Vec<String>, String> {
    decoder.decode_chain(tokens).map_err(|error| error.to_string())
}

/// The stages of a chain of decoders without nested sequences.
pub fn chain(decoders: &[&DecoderWrapper]) -> Vec<Box<dyn Stage>> {
    let mut fused = false;
    let mut stages: Vec<Box<dyn Stage>> = Vec::new();
    for &decoder in decoders {
        if fused {
            stages.extend(stage_of_text(decoder));
        } else {
            stages.extend(stage_of_tokens(decoder));
            fused = matches!(decoder, DecoderWrapper::Fuse(_) | DecoderWrapper::ByteLevel(_));
        }
    }
    stages
}

fn stage_of_tokens(decoder: &DecoderWrapper) -> Option<Box<dyn Stage>> {
    match decoder {
        DecoderWrapper::Fuse(_) => None,
        DecoderWrapper::ByteLevel(_) => Some(Box::<ByteLevel>::default()),
        DecoderWrapper::ByteFallback(_) => Some(Box::new(ByteRuns { decoder: decoder.clone(), run: Vec::new() })),
        DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) => {
            Some(Box::new(FirstDiffers { decoder: decoder.clone(), first: true }))
        }
        DecoderWrapper::BPE(_) => Some(Box::new(LastDiffers { decoder: decoder.clone(), held: None })),
        DecoderWrapper::CTC(_) => Some(Box::new(Distinct { decoder: decoder.clone(), last: None })),
        DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) | DecoderWrapper::Sequence(_) => {
            Some(Box::new(Each { decoder: decoder.clone() }))
        }
    }
}

/// The same for pieces of one fused text: the decoder would see it as the first and only token.
fn stage_of_text(decoder: &DecoderWrapper) -> Option<Box<dyn Stage>> {
    match decoder {
        DecoderWrapper::Fuse(_) => None,
        // Works on single characters.
        DecoderWrapper::Metaspace(_) => Some(Box::new(Each { decoder: decoder.clone() })),
        DecoderWrapper::Strip(strip) => {
            Some(Box::new(StripText { content: strip.content, start: strip.start, stop: strip.stop, held: 0 }))
        }
        DecoderWrapper::Replace(_) => match literal_pattern(decoder) {
            Some(pattern) => Some(Box::new(ReplaceText { decoder: decoder.clone(), pattern, held: String::new() })),
            None => Some(Box::new(Whole { decoder: decoder.clone(), text: String::new() })),
        },
        _ => Some(Box::new(Whole { decoder: decoder.clone(), text: String::new() })),
    }
}

/// The pattern of a Replace that has a plain string for one.
fn literal_pattern(decoder: &DecoderWrapper) -> Option<String> {
    let fields = serde_json::to_value(decoder).ok()?;
    let pattern = fields.get("pattern")?.get("String")?.as_str()?;
    (!pattern.is_empty()).then(|| pattern.to_string())
}

/// No decoder: tokens stand with spaces between them.
pub fn joined() -> Box<dyn Stage> {
    Box::new(Joined { first: true })
}

struct Joined {
    first: bool,
}

impl Stage for Joined {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        out.push(if std::mem::take(&mut self.first) { token } else { format!(" {token}") });
        Ok(())
    }
}

/// Every token for itself.
struct Each {
    decoder: DecoderWrapper,
}

impl Stage for Each {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        out.extend(apply(&self.decoder, vec![token])?);
        Ok(())
    }
}

/// Every token for itself, but for the first one.
struct FirstDiffers {
    decoder: DecoderWrapper,
    first: bool,
}

impl Stage for FirstDiffers {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        if std::mem::take(&mut self.first) {
            out.extend(apply(&self.decoder, vec![token])?);
        } else {
            out.extend(apply(&self.decoder, vec![String::new(), token])?.into_iter().skip(1));
        }
        Ok(())
    }
}

/// Every token for itself, but for the last one.
struct LastDiffers {
    decoder: DecoderWrapper,
    held: Option<String>,
}

impl Stage for LastDiffers {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        if let Some(held) = self.held.replace(token) {
            out.extend(apply(&self.decoder, vec![held, String::new()])?.into_iter().take(1));
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), String> {
        if let Some(held) = self.held.take() {
            out.extend(apply(&self.decoder, vec![held])?);
        }
        Ok(())
    }
}

/// CTC: a token that repeats the one before it is dropped.
struct Distinct {
    decoder: DecoderWrapper,
    last: Option<String>,
}

impl Stage for Distinct {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        if self.last.as_ref() != Some(&token) {
            out.extend(apply(&self.decoder, vec![token.clone()])?);
            self.last = Some(token);
        }
        Ok(())
    }
}

/// Byte fallback: tokens such as `<0xE2>` in a row are one text if together they are UTF-8, and otherwise one
/// replacement character each. Any later byte of the row can decide that, so a row is held back until it ends.
struct ByteRuns {
    decoder: DecoderWrapper,
    run: Vec<String>,
}

pub fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

impl Stage for ByteRuns {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        if is_byte_token(&token) {
            self.run.push(token);
            return Ok(());
        }
        self.finish(out)?;
        out.push(token);
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), String> {
        if !self.run.is_empty() {
            out.extend(apply(&self.decoder, std::mem::take(&mut self.run))?);
        }
        Ok(())
    }
}

/// Byte-level: tokens are bytes, and all of them together one text. Held back: the beginning of a character.
#[derive(Default)]
struct ByteLevel {
    pending: Vec<u8>,
}

/// The byte that a character stands for in byte-level vocabularies (GPT-2): printable characters of Latin-1 stand for
/// themselves, the other bytes in ascending order for U+0100 and on.
pub fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

impl Stage for ByteLevel {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        // A token with a character that stands for no byte (an added token, mostly) is text as it is.
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        self.pending.extend(bytes.unwrap_or_else(|| token.into_bytes()));
        let mut text = String::new();
        let mut from = 0;
        while from < self.pending.len() {
            match std::str::from_utf8(&self.pending[from..]) {
                Ok(valid) => {
                    text += valid;
                    from = self.pending.len();
                }
                Err(error) => {
                    let valid = from + error.valid_up_to();
                    text += &String::from_utf8_lossy(&self.pending[from..valid]);
                    from = valid;
                    match error.error_len() {
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            from += length;
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..from);
        if !text.is_empty() {
            out.push(text);
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), String> {
        if !self.pending.is_empty() {
            out.push(String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned());
        }
        Ok(())
    }
}

/// Strips up to `start` characters `content` where the text begins and up to `stop` where it ends.
struct StripText {
    content: char,
    start: usize,
    stop: usize,
    held: usize, // how many `content` at the end of what has come are held back
}

impl Stage for StripText {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        let mut text = String::new();
        for c in token.chars() {
            if c == self.content && self.start > 0 {
                self.start -= 1;
                continue;
            }
            self.start = 0;
            if c == self.content && self.held < self.stop {
                self.held += 1;
                continue;
            }
            if c != self.content {
                text.extend(std::iter::repeat(self.content).take(std::mem::take(&mut self.held)));
            }
            text.push(c);
        }
        if !text.is_empty() {
            out.push(text);
        }
        Ok(())
    }
}

/// Replaces a plain string. Held back: the end of the text, where it may be the beginning of the pattern.
struct ReplaceText {
    decoder: DecoderWrapper,
    pattern: String,
    held: String,
}

impl Stage for ReplaceText {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), String> {
        self.held += &token;
        let mut cut = 0;
        while let Some(at) = self.held[cut..].find(&self.pattern) {
            cut += at + self.pattern.len();
        }
        // The longest tail that may become a match stays.
        let tail = self.held[cut..].char_indices().map(|(at, _)| &self.held[cut + at..]);
        let kept = tail.filter(|tail| self.pattern.starts_with(tail)).map(str::len).max().unwrap_or(0);
        let cut = self.held.len() - kept;
        let rest = self.held.split_off(cut);
        let done = std::mem::replace(&mut self.held, rest);
        out.extend(apply(&self.decoder, vec![done])?);
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), String> {
        out.extend(apply(&self.decoder, vec![std::mem::take(&mut self.held)])?);
        Ok(())
    }
}

/// A step that can only be done on the whole text, at its end.
struct Whole {
    decoder: DecoderWrapper,
    text: String,
}

impl Stage for Whole {
    fn push(&mut self, token: String, _out: &mut Vec<String>) -> Result<(), String> {
        self.text += &token;
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), String> {
        out.extend(apply(&self.decoder, vec![std::mem::take(&mut self.text)])?);
        Ok(())
    }
}
