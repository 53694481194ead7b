//! Tokenizers, chat templates and constrained decoding behind a C ABI, declared for C++ in `../ffi.h`.
//!
//! Everything about characters that published models rely on happens here, in the libraries that define it: `tokenizers`
//! reads tokenizer.json, `minijinja` renders chat templates (made to behave as transformers' Jinja environment),
//! `llguidance` keeps answers to a grammar.
//!
//! Rules of the boundary
//! - Handles are made by `*_new` and given back to `*_free`. A tokenizer, a template, a vocabulary and a grammar may be
//!   used by several threads at once; a detokenizer or a matcher by one at a time. Each keeps alive what it was made of.
//! - Text goes in as pointer and length, comes out as a `Bytes`, which the caller gives back to `millrace_bytes_free`.
//! - Functions that can fail return a status. 0: done. Otherwise the `Bytes` holds one line that says what is wrong.
//! - No panic crosses: it becomes such an error.

mod abi;
mod detokenizer;
mod grammar;
mod template;
mod tokenizer;
