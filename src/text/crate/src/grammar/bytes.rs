//! What each token of a tokenizer writes, byte for byte.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Tokenizer};

use crate::detokenizer::flatten;
use crate::detokenizer::stages::{byte_of, is_byte_token};

/// What a token writes: within a text, and as the first token of one (some decoders drop a space there).
#[derive(Clone, Default, PartialEq)]
pub struct TokenBytes {
    pub within: Vec<u8>,
    pub first: Vec<u8>,
}

/// The steps of a tokenizer's decoder, for one token at a time.
pub struct Spelling<'a> {
    tokenizer: &'a Tokenizer,
    steps: Vec<&'a DecoderWrapper>,
}

/// A token on its way through the steps.
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

impl<'a> Spelling<'a> {
    /// Error: a token's bytes depend on its neighbours.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Self, String> {
        let decoder = tokenizer.get_decoder().ok_or("the tokenizer has no decoder that joins tokens to a text")?;
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        for step in &steps {
            let kind = match step {
                DecoderWrapper::WordPiece(_) => "WordPiece",
                DecoderWrapper::CTC(_) => "CTC",
                DecoderWrapper::BPE(_) => "BPEDecoder",
                DecoderWrapper::Strip(strip) if strip.start > 1 || strip.stop > 0 => "Strip (of more than one space)",
                _ => continue,
            };
            return Err(format!("its decoder, {kind}, writes a token differently beside different tokens"));
        }
        Ok(Spelling { tokenizer, steps })
    }

    /// None: a special token, or no token at all.
    pub fn token(&self, id: u32) -> Result<Option<TokenBytes>, String> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(None) };
        if self.tokenizer.get_added_vocabulary().is_special_token(&token) {
            return Ok(None);
        }
        let within = self.write(&token, false)?;
        let first = self.write(&token, true)?;
        Ok(Some(TokenBytes { within, first }))
    }

    fn write(&self, token: &str, first: bool) -> Result<Vec<u8>, String> {
        let mut fused = false;
        let mut piece = Piece::Text(token.to_string());
        for step in &self.steps {
            let text = match piece {
                // Bytes are final but for a space that the whole text loses at its beginning.
                Piece::Bytes(bytes) => match step {
                    DecoderWrapper::Strip(_) if first && bytes == b" " => Piece::Text(" ".to_string()),
                    _ => Piece::Bytes(bytes),
                },
                text => text,
            };
            piece = match (step, text) {
                (_, Piece::Bytes(bytes)) => Piece::Bytes(bytes),
                (DecoderWrapper::Fuse(_), text) => {
                    fused = true;
                    text
                }
                (DecoderWrapper::ByteLevel(_), Piece::Text(text)) => {
                    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
                    Piece::Bytes(bytes.unwrap_or_else(|| text.into_bytes()))
                }
                (DecoderWrapper::ByteFallback(_), Piece::Text(text)) if is_byte_token(&text) => {
                    Piece::Bytes(vec![u8::from_str_radix(&text[3..5], 16).map_err(|error| error.to_string())?])
                }
                // After Fuse there is one text only, whose beginning is the first token's.
                (DecoderWrapper::Strip(_), text) if fused && !first => text,
                (step, Piece::Text(text)) => Piece::Text(one(step, text, first)?),
            };
        }
        Ok(match piece {
            Piece::Text(text) => text.into_bytes(),
            Piece::Bytes(bytes) => bytes,
        })
    }
}

/// A step on one token of a list, the first one or a later one.
fn one(step: &DecoderWrapper, text: String, first: bool) -> Result<String, String> {
    let tokens = if first { vec![text] } else { vec![String::new(), text] };
    let mut out = step.decode_chain(tokens).map_err(|error| error.to_string())?;
    Ok(out.pop().unwrap_or_default())
}
