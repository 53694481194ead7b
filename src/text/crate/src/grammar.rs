//! Constrained decoding: which tokens may come next, so that an answer keeps to a JSON schema, a regular expression, a
//! list of choices or a grammar. `llguidance` does the work, on the tree of tokens that `vocabulary` makes of a
//! tokenizer.
//!
//! What clients send is not trusted: `spec` and `cost` bound it before it is compiled, llguidance's limits bound the rest.

mod bytes;
mod cost;
mod lark;
mod matcher;
mod spec;
mod vocabulary;

use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::{answer, answer_handle, free, guarded, slice, utf8, Bytes};
use crate::tokenizer::Handle as Tokenizer;
use matcher::Matcher;
use vocabulary::Vocabulary;

/// Shared, so that grammars keep it alive.
pub struct VocabularyHandle(Arc<Vocabulary>);

/// A matcher at the beginning, which others are forked from. Its lock is held while one is.
pub struct Grammar(Mutex<Matcher>);

/// A piece of the caller's text.
#[repr(C)]
pub struct Text {
    data: *const u8,
    size: usize,
}

const JSON_OBJECT: i32 = 0;
const JSON_SCHEMA: i32 = 1;
const REGEX: i32 = 2;
const LARK: i32 = 3;
const CHOICE: i32 = 4;

const NO_ANSWER: &str = "no answer fits it";

const STACK: usize = 256 << 20;
const MAX_MESSAGE: usize = 300;

fn compile(vocabulary: &Arc<Vocabulary>, kind: i32, texts: &[&str]) -> Result<Grammar, String> {
    let text = texts.first().copied().unwrap_or_default();
    let (what, grammar) = match kind {
        JSON_OBJECT => ("JSON object", Ok(spec::json_object())),
        JSON_SCHEMA => ("JSON schema", spec::json_schema(text)),
        REGEX => ("regular expression", spec::regex(text)),
        LARK => ("grammar", spec::lark(text)),
        CHOICE => ("choice", spec::choice(texts)),
        _ => return Err(format!("no kind of grammar has the number {kind}")),
    };
    let matcher = grammar.and_then(|grammar| {
        let parser = vocabulary.factory.create_parser(grammar).map_err(|error| plain(kind, &format!("{error:#}")))?;
        let mut matcher = Matcher::new(vocabulary.clone(), parser.parser)?;
        // It can be begun; and what this explores, every fork knows.
        matcher.mask().map_err(|error| if error == matcher::DEAD_END { NO_ANSWER.to_string() } else { error })?;
        Ok(matcher)
    });
    matcher.map(|matcher| Grammar(Mutex::new(matcher))).map_err(|error| format!("{what}: {error}"))
}

/// llguidance's compilers call themselves as deep as what they compile is nested. The limits on text bound that to less
/// than this stack, of which only what is used takes memory.
fn on_a_large_stack<T: Send>(body: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || guarded(body));
        let thread = thread.map_err(|error| format!("no thread to compile it: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("internal error".to_string()))
    })
}

/// llguidance's message in one line, without the state, the backtrace and the picture of the source that it may append.
fn plain(kind: i32, message: &str) -> String {
    let text = message.split("\n<").next().unwrap_or_default();
    if ["too big", "precomputation failed", "fuel exhausted"].iter().any(|limit| text.contains(limit)) {
        return "it is too complex".to_string();
    }
    if text.contains("oneOf constraints are not supported") {
        return "the alternatives of a oneOf must exclude each other, for instance by a property of constants that all of \
                them require; otherwise use anyOf"
            .to_string();
    }
    if let Some(panic) = text.strip_prefix("panic: ") {
        return format!("internal error: {}", panic.chars().take(MAX_MESSAGE).collect::<String>().replace('\n', " "));
    }
    // A regular expression went in as a grammar of one line, so where it is wrong there says nothing.
    let cause = text.rsplit_once("error: ").filter(|_| kind == REGEX).map_or(text, |(_, cause)| cause);
    let lines = cause.lines().map(str::trim).filter(|line| !line.contains(" | ") && *line != "^" && !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    line.trim_start_matches("at 1(8): ").chars().take(MAX_MESSAGE).collect()
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_vocabulary_new(
    tokenizer: *const Tokenizer,
    eos: *const i32,
    count: usize,
    vocab: i64,
    handle: *mut *mut VocabularyHandle,
    error: *mut Bytes,
) -> i32 {
    let result = guarded(|| Vocabulary::new(&(*tokenizer).0, slice(eos, count), vocab));
    let result = result.map(|vocabulary| VocabularyHandle(Arc::new(vocabulary)));
    answer_handle(handle, error, result.map_err(|message| format!("grammars on this tokenizer: {message}")))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_vocabulary_free(handle: *mut VocabularyHandle) {
    free(handle);
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_vocabulary_token(
    handle: *const VocabularyHandle,
    id: i32,
    out: *mut Bytes,
) -> i32 {
    answer(out, guarded(|| Ok((*handle).0.token_bytes(id))))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_new(
    vocabulary: *const VocabularyHandle,
    kind: i32,
    texts: *const Text,
    count: usize,
    handle: *mut *mut Grammar,
    error: *mut Bytes,
) -> i32 {
    let result = guarded(|| {
        let texts = slice(texts, count).iter().map(|text| utf8(slice(text.data, text.size), "the text"));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let vocabulary = &(*vocabulary).0;
        on_a_large_stack(|| compile(vocabulary, kind, &texts))
    });
    answer_handle(handle, error, result)
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_free(handle: *mut Grammar) {
    free(handle);
}

/// Never fails: null only if memory is exhausted, which aborts before.
#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_new(grammar: *const Grammar) -> *mut Matcher {
    let fork = guarded(|| Ok((*grammar).0.lock().unwrap_or_else(PoisonError::into_inner).fork()));
    fork.map_or(std::ptr::null_mut(), |matcher| Box::into_raw(Box::new(matcher)))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_free(handle: *mut Matcher) {
    free(handle);
}

/// `words`: ⌈vocab / 32⌉ of them.
#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_mask(
    handle: *mut Matcher,
    words: *mut u32,
    count: usize,
    error: *mut Bytes,
) -> i32 {
    let result = (*handle).mask().and_then(|mask| {
        let mask = mask.as_slice();
        if count > mask.len() {
            return Err(format!("a mask of {count} words: expected at most {}", mask.len()));
        }
        std::ptr::copy_nonoverlapping(mask.as_ptr(), words, count);
        Ok(Vec::new())
    });
    answer(error, result)
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_accept(handle: *mut Matcher, token: i32, error: *mut Bytes) -> i32 {
    answer(error, (*handle).accept(token).map(|()| Vec::new()))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_finished(handle: *const Matcher) -> bool {
    (*handle).finished()
}

#[no_mangle]
pub unsafe extern "C" fn millrace_grammar_matcher_accepting(handle: *const Matcher) -> bool {
    (*handle).accepting()
}
