//! A sequence's place in a grammar.

use std::sync::Arc;

use llguidance::earley::Parser;
use llguidance::toktrie::{Recognizer, SimpleVob, TokenId};

use super::vocabulary::{FirstTokens, Vocabulary};
use crate::abi::guarded;

/// The error of a place where the grammar wants what no token can write.
pub const DEAD_END: &str = "no token of the vocabulary can go on here";

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// No token yet.
    Beginning,
    Within,
    /// Nothing but the end may come.
    Complete,
}

pub struct Matcher {
    vocabulary: Arc<Vocabulary>,
    parser: Parser,
    place: Place,
    accepting: bool,
    /// Of an earlier call; there is no way on.
    error: Option<String>,
}

impl Matcher {
    /// At the beginning.
    pub fn new(vocabulary: Arc<Vocabulary>, parser: Parser) -> Result<Self, String> {
        let mut matcher = Matcher { vocabulary, parser, place: Place::Beginning, accepting: false, error: None };
        matcher.look_around()?;
        Ok(matcher)
    }

    /// Another one at the same place. It shares nothing that changes with this one, so that what one sequence explored
    /// is never felt by another, not even as time.
    pub fn fork(&self) -> Self {
        Matcher {
            vocabulary: self.vocabulary.clone(),
            parser: self.parser.deep_clone(),
            place: self.place,
            accepting: self.accepting,
            error: self.error.clone(),
        }
    }

    pub fn finished(&self) -> bool {
        self.place == Place::Complete
    }

    pub fn accepting(&self) -> bool {
        self.accepting
    }

    pub fn mask(&mut self) -> Result<SimpleVob, String> {
        self.unless_failed(Self::compute_mask)
    }

    /// Error: not allowed, and nothing has changed; or as of `mask`.
    pub fn accept(&mut self, token: i32) -> Result<(), String> {
        let known = usize::try_from(token).is_ok_and(|id| id < self.vocabulary.size);
        if known && self.unless_failed(|matcher| matcher.advance(token as TokenId))? {
            Ok(())
        } else {
            Err(format!("token {token} is not allowed by the grammar here"))
        }
    }

    /// An error or a panic inside the parser leaves it in no state to go on from.
    fn unless_failed<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let result = guarded(|| body(self));
        self.error = result.as_ref().err().cloned();
        result
    }

    fn compute_mask(&mut self) -> Result<SimpleVob, String> {
        if self.place == Place::Complete {
            return Ok(self.vocabulary.trie().eos_token_set());
        }
        let vocabulary = self.vocabulary.clone();
        let mut mask = self.parser.compute_bias(&*vocabulary.factory.slicer(), &[]);
        if let (Some(first), Place::Beginning) = (&vocabulary.first, self.place) {
            self.mask_first(first, &mut mask);
        }
        self.check()?;
        mask.and(&vocabulary.usable);
        for &eos in &vocabulary.eos {
            mask.set(eos as usize, self.accepting);
        }
        if mask.is_zero() {
            return Err(DEAD_END.to_string());
        }
        Ok(mask)
    }

    /// Judges the tokens that write something else at the beginning by what they write there.
    fn mask_first(&mut self, first: &FirstTokens, mask: &mut SimpleVob) {
        mask.sub(&first.tokens);
        self.parser.with_recognizer(|recognizer| first.trie.add_bias(recognizer, mask, &[]));
        // Nothing may be written where something could follow.
        if self.accepting || !mask.and_is_zero(&self.vocabulary.usable) {
            mask.or(&first.silent);
        }
    }

    /// False: not allowed, and nothing has changed.
    fn advance(&mut self, token: TokenId) -> Result<bool, String> {
        let vocabulary = self.vocabulary.clone();
        if vocabulary.eos.contains(&token) {
            if self.accepting {
                self.place = Place::Complete;
            }
            return Ok(self.accepting);
        }
        if self.place == Place::Complete || !vocabulary.usable.get(token as usize) {
            return Ok(false);
        }
        let first = vocabulary.first.as_ref().filter(|_| self.place == Place::Beginning);
        let first = first.filter(|first| first.tokens.get(token as usize));
        let (allowed, bytes) = match first {
            Some(first) => (self.could_write(first.trie.token(token)), first.trie.token(token)),
            None => (self.parser.validate_tokens(&[token]) == 1, vocabulary.trie().token(token)),
        };
        self.check()?;
        if !allowed {
            return Ok(false);
        }
        if self.parser.apply_token(bytes, token).map_err(|error| format!("{error:#}"))? != 0 {
            return Err("the grammar takes back text that was written already (lazy matching)".to_string());
        }
        self.place = Place::Within;
        self.look_around()?;
        Ok(true)
    }

    fn could_write(&mut self, bytes: &[u8]) -> bool {
        self.parser.with_recognizer(|recognizer| {
            recognizer.trie_started("could_write");
            let could = bytes.iter().all(|&byte| recognizer.try_push_byte(byte));
            recognizer.trie_finished();
            could
        })
    }

    fn look_around(&mut self) -> Result<(), String> {
        self.accepting = self.parser.is_accepting();
        self.check()?;
        if self.accepting && !self.parser.can_advance() {
            self.place = Place::Complete;
        }
        Ok(())
    }

    /// Work that went over a limit shows as an error beside a result that means nothing.
    fn check(&self) -> Result<(), String> {
        self.parser.get_error().map_or(Ok(()), |error| Err(error.message()))
    }
}
