//! `strftime_now(format)`: Python's datetime.strftime of a given local time.

use std::ffi::CString;

use minijinja::{Error, ErrorKind, Value};

/// tm holds a pointer (the zone's name), which is never read here.
#[derive(Clone, Copy)]
pub struct Now {
    pub time: libc::tm,
    pub microsecond: i32,
}

unsafe impl Send for Now {}
unsafe impl Sync for Now {}

extern "C" {
    // Not in the libc crate for every target, in the C library for all.
    fn strftime(out: *mut libc::c_char, size: usize, format: *const libc::c_char, time: *const libc::tm) -> usize;
}

impl Now {
    /// Python fills in %f itself and leaves the rest to the C library. A datetime without a zone has empty %z and %Z.
    fn format(&self, format: &str) -> Result<String, Error> {
        let mut expanded = String::with_capacity(format.len() + 1);
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                expanded.push(c);
                continue;
            }
            match chars.next() {
                Some('f') => expanded += &format!("{:06}", self.microsecond),
                Some('z' | 'Z') => {}
                Some(other) => expanded.extend(['%', other]),
                None => expanded.push('%'),
            }
        }
        if expanded.is_empty() {
            return Ok(expanded);
        }
        let invalid = |_| Error::new(ErrorKind::InvalidOperation, "strftime_now: the format holds a zero byte");
        let expanded = CString::new(expanded).map_err(invalid)?;
        // A result may be empty (%p in some locales), so a failure cannot be told from it: the room is ample instead.
        let mut out = vec![0_u8; expanded.as_bytes().len() * 64 + 256];
        let size = unsafe { strftime(out.as_mut_ptr().cast(), out.len(), expanded.as_ptr(), &self.time) };
        out.truncate(size);
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

pub fn function(now: Now) -> Value {
    Value::from_function(move |format: &str| now.format(format))
}
