//! What every function of the boundary shares: byte buffers, statuses, panics that become errors.

use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

/// A buffer that Rust allocated. `capacity` is what Rust needs to free it.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
    capacity: usize,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let mut bytes = std::mem::ManuallyDrop::new(bytes);
        Bytes { data: bytes.as_mut_ptr(), size: bytes.len(), capacity: bytes.capacity() }
    }
}

#[no_mangle]
pub unsafe extern "C" fn millrace_bytes_free(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Vec::from_raw_parts(bytes.data, bytes.size, bytes.capacity));
    }
}

/// The caller's bytes; a null pointer is an empty slice.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if data.is_null() || size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

pub fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        format!("{what} is not UTF-8: byte {at} (0x{:02x}) does not belong there", bytes[at])
    })
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the text of a panic for `guarded` instead of printing it.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            PANIC.with(|slot| *slot.borrow_mut() = Some(text));
        }));
    });
}

/// Runs `body`; its error, or its panic, becomes one line.
pub fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    quiet_panics();
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let text = PANIC.with(|slot| slot.borrow_mut().take());
        Err(format!("internal error: {}", text.unwrap_or_default()))
    });
    result.map_err(|message| message.trim_end().replace('\n', " "))
}

/// Writes the bytes or the message to `out` and returns the status.
pub unsafe fn answer(out: *mut Bytes, result: Result<Vec<u8>, String>) -> i32 {
    let (status, bytes) = match result {
        Ok(bytes) => (0, bytes),
        Err(message) => (1, message.into_bytes()),
    };
    out.write(bytes.into());
    status
}

/// Writes the handle to `handle`, or the message to `error`, and returns the status.
pub unsafe fn answer_handle<T>(handle: *mut *mut T, error: *mut Bytes, result: Result<T, String>) -> i32 {
    match result {
        Ok(value) => {
            handle.write(Box::into_raw(Box::new(value)));
            error.write(Vec::new().into());
            0
        }
        Err(message) => {
            handle.write(std::ptr::null_mut());
            error.write(message.into_bytes().into());
            1
        }
    }
}

pub unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // A destructor that panics must not unwind into C++; there is nobody left to tell.
        let _ = guarded(|| {
            drop(Box::from_raw(handle));
            Ok(())
        });
    }
}
