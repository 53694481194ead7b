//! Decoding token by token, such that the pieces make up exactly what decoding all ids at once gives.
//!
//! A decoder of a tokenizer.json is a chain of steps over the list of all tokens. Each step becomes a `Stage` that takes
//! tokens one by one, holds back what a later token may still change, and passes on what is final. No text is decoded
//! twice, so a token costs the same at the end of a long answer as at its beginning.

pub mod stages;

use std::collections::VecDeque;
use std::sync::Arc;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::Tokenizer;

use crate::abi::{answer, free, guarded, Bytes};
use crate::tokenizer::Handle;
use stages::Stage;

pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    stages: Vec<Box<dyn Stage>>,
}

pub fn flatten<'a>(decoder: &'a DecoderWrapper, chain: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for step in sequence.get_decoders() {
                flatten(step, chain);
            }
        }
        step => chain.push(step),
    }
}

impl Detokenizer {
    fn new(tokenizer: &Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let stages = match tokenizer.get_decoder() {
            None => vec![stages::joined()],
            Some(decoder) => {
                let mut chain = Vec::new();
                flatten(decoder, &mut chain);
                stages::chain(&chain)
            }
        };
        Detokenizer { tokenizer: tokenizer.clone(), skip_special_tokens, stages }
    }

    /// Sends `tokens` through the stages from `first` on.
    fn run(&mut self, first: usize, tokens: Vec<String>) -> Result<Vec<String>, String> {
        let mut tokens: VecDeque<String> = tokens.into();
        for stage in &mut self.stages[first..] {
            let mut passed = Vec::new();
            for token in tokens.drain(..) {
                stage.push(token, &mut passed)?;
            }
            tokens = passed.into();
        }
        Ok(tokens.into())
    }

    fn push(&mut self, id: i32) -> Result<Vec<u8>, String> {
        let token = u32::try_from(id).ok().and_then(|id| self.tokenizer.id_to_token(id));
        let special = |token: &String| self.tokenizer.get_added_vocabulary().is_special_token(token);
        match token.filter(|token| !self.skip_special_tokens || !special(token)) {
            Some(token) => Ok(self.run(0, vec![token])?.concat().into_bytes()),
            None => Ok(Vec::new()),
        }
    }

    /// What was still held back. The stages are empty afterwards, but remember where in a text they are.
    fn finish(&mut self) -> Result<Vec<u8>, String> {
        let mut text = String::new();
        for index in 0..self.stages.len() {
            let mut rest = Vec::new();
            self.stages[index].finish(&mut rest)?;
            text += &self.run(index + 1, rest)?.concat();
        }
        Ok(text.into_bytes())
    }
}

/// Never fails: null only if memory is exhausted, which aborts before.
#[no_mangle]
pub unsafe extern "C" fn millrace_detokenizer_new(
    tokenizer: *const Handle,
    skip_special_tokens: bool,
) -> *mut Detokenizer {
    let made = guarded(|| Ok(Detokenizer::new(&(*tokenizer).0, skip_special_tokens)));
    made.map_or(std::ptr::null_mut(), |detokenizer| Box::into_raw(Box::new(detokenizer)))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_detokenizer_free(handle: *mut Detokenizer) {
    free(handle);
}

#[no_mangle]
pub unsafe extern "C" fn millrace_detokenizer_push(handle: *mut Detokenizer, id: i32, out: *mut Bytes) -> i32 {
    answer(out, guarded(|| (*handle).push(id)))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_detokenizer_finish(handle: *mut Detokenizer, out: *mut Bytes) -> i32 {
    answer(out, guarded(|| (*handle).finish()))
}

/// `out`: the texts of the tokens that are skipped as special, each followed by a zero byte, in the order of their ids.
#[no_mangle]
pub unsafe extern "C" fn millrace_detokenizer_special_tokens(tokenizer: *const Handle, out: *mut Bytes) -> i32 {
    let result = guarded(|| {
        let added = (*tokenizer).0.get_added_tokens_decoder();
        let mut special: Vec<_> = added.into_iter().filter(|(_, token)| token.special).collect();
        special.sort_by_key(|(id, _)| *id);
        Ok(special.into_iter().flat_map(|(_, token)| [token.content.as_str(), "\0"].concat().into_bytes()).collect())
    });
    answer(out, result)
}
