//! A tokenizer's tokens in the tree that grammars walk, and llguidance's factory of parsers over it.

use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId};
use llguidance::ParserFactory;
use tokenizers::Tokenizer;

use super::bytes::{Spelling, TokenBytes};

/// Ids are 24 bits in the tree.
const MAX_VOCAB: i64 = 1 << 22;
/// The tree is at most 1024 deep; a longer token is never allowed.
const MAX_TOKEN_BYTES: usize = 1000;

pub struct Vocabulary {
    pub factory: ParserFactory,
    pub eos: Vec<TokenId>,
    pub size: usize,
    /// Tokens that some grammar may allow.
    pub usable: SimpleVob,
    /// Tokens that write something else at the beginning of a text than within it, and what they write there.
    pub first: Option<FirstTokens>,
    tokenizer: Arc<Tokenizer>,
}

pub struct FirstTokens {
    pub tokens: SimpleVob,
    /// The tokens that write nothing there.
    pub silent: SimpleVob,
    /// The other ones, by what they write there.
    pub trie: TokTrie,
}

impl Vocabulary {
    pub fn new(tokenizer: &Arc<Tokenizer>, eos: &[i32], size: i64) -> Result<Self, String> {
        if !(1..=MAX_VOCAB).contains(&size) {
            return Err(format!("a vocabulary of {size} tokens: expected 1 to {MAX_VOCAB}"));
        }
        let eos = checked_eos(eos, size)?;
        let size = size as usize;
        let words = spell(tokenizer, &eos, size)?;

        let trie = TokTrie::from(&TokRxInfo::new(size as u32, eos[0]), &words.within).with_eos_tokens(&eos);
        let mut usable = trie.alloc_token_set();
        for (id, word) in words.within.iter().enumerate() {
            usable.set(id, !word.is_empty());
        }
        let first = first_tokens(&words, &trie);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| format!("{error:#}"))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Vocabulary { factory, eos, size, usable, first, tokenizer: tokenizer.clone() })
    }

    pub fn trie(&self) -> &TokTrie {
        self.factory.tok_env().tok_trie()
    }

    /// Empty: writes nothing that a grammar could allow.
    pub fn token_bytes(&self, id: i32) -> Vec<u8> {
        let known = usize::try_from(id).is_ok_and(|id| id < self.size);
        if !known || self.eos.contains(&(id as TokenId)) {
            return Vec::new();
        }
        let token = Spelling::new(&self.tokenizer).and_then(|spelling| spelling.token(id as TokenId));
        token.ok().flatten().map(|token| token.within).unwrap_or_default()
    }
}

/// What a client's text may cost. The figures are llguidance's own except for the states of a lexer, which take a
/// kilobyte or two each and belong to one sequence.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

fn checked_eos(eos: &[i32], size: i64) -> Result<Vec<TokenId>, String> {
    let mut out = Vec::new();
    for &id in eos {
        if id < 0 || i64::from(id) >= size {
            return Err(format!("the end-of-sequence token {id} is not in the vocabulary of {size} tokens"));
        }
        if !out.contains(&(id as TokenId)) {
            out.push(id as TokenId);
        }
    }
    if out.is_empty() {
        return Err("no end-of-sequence token: an answer under a grammar could never end".to_string());
    }
    Ok(out)
}

struct Words {
    within: Vec<Vec<u8>>,
    /// Of ordinary tokens.
    first: Vec<Option<Vec<u8>>>,
}

fn spell(tokenizer: &Tokenizer, eos: &[TokenId], size: usize) -> Result<Words, String> {
    let spelling = Spelling::new(tokenizer)?;
    let mut words = Words { within: Vec::with_capacity(size), first: Vec::with_capacity(size) };
    for id in 0..size as TokenId {
        let token = if eos.contains(&id) { None } else { spelling.token(id)? };
        match token {
            Some(TokenBytes { within, first }) => {
                // 0xFF is in no UTF-8, and marks special tokens in the tree.
                let usable = within.len() <= MAX_TOKEN_BYTES && within.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
                words.within.push(if usable { within } else { Vec::new() });
                words.first.push(usable.then_some(first));
            }
            None => {
                words.within.push(special(tokenizer, id));
                words.first.push(None);
            }
        }
    }
    Ok(words)
}

/// A special token's entry in the tree: out of reach of text. Empty for ids that the tokenizer does not have.
fn special(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let Some(name) = tokenizer.id_to_token(id).filter(|name| name.len() < MAX_TOKEN_BYTES) else { return Vec::new() };
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    word.extend(name.bytes());
    word
}

fn first_tokens(words: &Words, trie: &TokTrie) -> Option<FirstTokens> {
    let mut tokens = trie.alloc_token_set();
    let mut silent = trie.alloc_token_set();
    let mut written = vec![Vec::new(); words.within.len()];
    for (id, (within, first)) in words.within.iter().zip(&words.first).enumerate() {
        let Some(first) = first.as_ref().filter(|first| *first != within) else { continue };
        tokens.set(id, true);
        silent.set(id, first.is_empty());
        written[id] = first.clone();
    }
    (!tokens.is_zero()).then(|| FirstTokens { tokens, silent, trie: TokTrie::from(trie.info(), &written) })
}
