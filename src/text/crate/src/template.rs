//! Chat templates, rendered as transformers renders them: Jinja2 with its trim_blocks, lstrip_blocks and loop controls,
//! transformers' own globals and filter, and Python's idea of what values look like as text.
//!
//! What is known to differ from Jinja2 in Python, none of it met in a published template: `'%s' % x` (the filter
//! `format` works); a dict's method that is not called (`d.items` is the item of that name); `varargs` and `kwargs` in
//! macros; `+x`; the globals cycler, joiner and lipsum; the filters random, urlencode, striptags, wordwrap,
//! filesizeformat, center and xmlattr; `loop.depth` in nested loops; `\N{...}` in strings; floats beyond 1e16 joined
//! with `~`; repr of ranges, loops and modules.

mod context;
mod filters;
mod json;
mod methods;
mod python;
mod source;
mod time;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, Value};

use crate::abi::{answer, answer_handle, free, guarded, slice, utf8, Bytes};

/// Bounds what a template can do, in minijinja's units (about one an instruction or 64 bytes). Templates of published
/// models spend some thousands a message.
const FUEL: u64 = 20_000_000;

pub struct Template {
    environment: Environment<'static>,
    globals: serde_json::Map<String, serde_json::Value>,
}

/// The message of a template's `raise_exception`, so that it can be told apart from other errors.
#[derive(Debug)]
pub struct Raised(pub String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// One line: the template's own message as it is, anything else with its place.
fn describe(error: &Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut innermost = error;
    while let Some(inner) = source {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            return raised.0.clone();
        }
        if let Some(inner) = inner.downcast_ref::<Error>() {
            innermost = inner;
        }
        source = inner.source();
    }
    let place = innermost.line().map_or(String::new(), |line| format!(", line {line}"));
    match innermost.detail() {
        Some(detail) => format!("chat template{place}: {}: {detail}", innermost.kind()),
        None => format!("chat template{place}: {}", innermost.kind()),
    }
}

impl Template {
    fn new(text: &str, globals: &[u8]) -> Result<Self, String> {
        let globals = match serde_json::from_slice(globals).map_err(|error| format!("globals: {error}"))? {
            serde_json::Value::Object(globals) => globals,
            _ => return Err("globals: expected an object".to_string()),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(|out, _, value| {
            out.write_str(&python::str(value)?)?;
            Ok(())
        });
        environment.set_fuel(Some(FUEL));
        filters::add(&mut environment);
        environment.set_unknown_method_callback(methods::call);
        environment.add_template_owned("chat", source::prepare(text)).map_err(|error| describe(&error))?;
        Ok(Template { environment, globals })
    }

    fn render(&self, context: &[u8], now: time::Now) -> Result<Vec<u8>, String> {
        let mut variables = self.globals.clone();
        context::add(&mut variables, serde_json::from_slice(context).map_err(|error| format!("messages: {error}"))?)?;
        let mut variables: Vec<(String, Value)> =
            variables.into_iter().map(|(name, value)| (name, context::to_value(value))).collect();
        variables.push(("strftime_now".to_string(), time::function(now)));
        let template = self.environment.get_template("chat").map_err(|error| describe(&error))?;
        let text = template.render(Value::from_pairs(variables)).map_err(|error| describe(&error))?;
        Ok(text.into_bytes())
    }
}

/// `globals`: a JSON object of variables that every rendering sees (bos_token, ...).
#[no_mangle]
pub unsafe extern "C" fn millrace_template_new(
    text: *const u8,
    text_size: usize,
    globals: *const u8,
    globals_size: usize,
    handle: *mut *mut Template,
    error: *mut Bytes,
) -> i32 {
    let result = guarded(|| {
        let text = utf8(slice(text, text_size), "the chat template")?;
        Template::new(text, slice(globals, globals_size))
    });
    answer_handle(handle, error, result)
}

#[no_mangle]
pub unsafe extern "C" fn millrace_template_free(handle: *mut Template) {
    free(handle);
}

/// `context`: a JSON object of variables; `now`: the local time that `strftime_now` tells.
#[no_mangle]
pub unsafe extern "C" fn millrace_template_render(
    handle: *const Template,
    context: *const u8,
    context_size: usize,
    now: *const libc::tm,
    microsecond: i32,
    out: *mut Bytes,
) -> i32 {
    let result = guarded(|| {
        let now = time::Now { time: *now, microsecond };
        (*handle).render(slice(context, context_size), now)
    });
    answer(out, result)
}
