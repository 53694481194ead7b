//! A tokenizer.json, as the `tokenizers` crate runs it.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::abi::{answer, answer_handle, free, guarded, slice, utf8, Bytes};

/// Shared, so that a detokenizer keeps it alive.
pub struct Handle(pub Arc<Tokenizer>);

fn load(json: &[u8]) -> Result<Handle, String> {
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
    // Files may carry the truncation and padding of their last training run; transformers drops them, too.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    Ok(Handle(Arc::new(tokenizer)))
}

/// Ids that no tokenizer has (negative ones) are as absent as any other unknown id.
fn known(ids: &[i32]) -> Vec<u32> {
    ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
}

#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_new(
    json: *const u8,
    size: usize,
    handle: *mut *mut Handle,
    error: *mut Bytes,
) -> i32 {
    let result = guarded(|| load(slice(json, size)));
    answer_handle(handle, error, result.map_err(|message| format!("tokenizer.json: {message}")))
}

#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_free(handle: *mut Handle) {
    free(handle);
}

/// `out`: the ids as native-endian int32.
#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_encode(
    handle: *const Handle,
    text: *const u8,
    size: usize,
    add_special_tokens: bool,
    out: *mut Bytes,
) -> i32 {
    let result = guarded(|| {
        let text = utf8(slice(text, size), "the text")?;
        let encoding = (*handle).0.encode_fast(text, add_special_tokens).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().iter().flat_map(|id| id.to_ne_bytes()).collect())
    });
    answer(out, result)
}

#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_decode(
    handle: *const Handle,
    ids: *const i32,
    count: usize,
    skip_special_tokens: bool,
    out: *mut Bytes,
) -> i32 {
    let result = guarded(|| {
        let ids = known(slice(ids, count));
        if ids.is_empty() {
            return Ok(Vec::new()); // some decoders expect at least one token
        }
        let text = (*handle).0.decode(&ids, skip_special_tokens).map_err(|error| error.to_string())?;
        Ok(text.into_bytes())
    });
    answer(out, result)
}

/// Status 1 with an empty message: no such id.
#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_id_to_token(handle: *const Handle, id: i32, out: *mut Bytes) -> i32 {
    let result = guarded(|| {
        let token = u32::try_from(id).ok().and_then(|id| (*handle).0.id_to_token(id));
        token.map(String::into_bytes).ok_or_else(String::new)
    });
    answer(out, result)
}

/// -1: no such token.
#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_token_to_id(handle: *const Handle, token: *const u8, size: usize) -> i32 {
    let result = guarded(|| {
        let token = utf8(slice(token, size), "the token")?;
        Ok((*handle).0.token_to_id(token).map_or(-1, |id| i32::try_from(id).unwrap_or(-1)))
    });
    result.unwrap_or(-1)
}

#[no_mangle]
pub unsafe extern "C" fn millrace_tokenizer_vocab_size(handle: *const Handle) -> i64 {
    guarded(|| Ok((*handle).0.get_vocab_size(true) as i64)).unwrap_or(0)
}
