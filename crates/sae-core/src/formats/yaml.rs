//! YAML as far as a small config needs it: one mapping of names to texts, numbers, truth values and lists of those.
//!
//! It is read as events, not as a tree: aliases, of which a few lines can make gigabytes, are refused, and so is nesting.

use std::{fs, path::Path};

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};
use tch_ext::TensorError;

use super::config::{Config, bad};
use crate::Result;

/// A config has a few lines; a list of paths for each layer is the most there is.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// The system's; what is no YAML, or more than one flat mapping; a key that stands twice.
pub(crate) fn read(path: &Path) -> Result<Config> {
    let file = path.display().to_string();
    let io = |e| TensorError::io(path, e);
    if fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
        return Err(bad(&file, "is too long for a config"));
    }
    let bytes = fs::read(path).map_err(io)?;
    let text = str::from_utf8(&bytes).map_err(|e| bad(&file, &format!("not UTF-8: {e}")))?;
    let map = flat(text).map_err(|problem| bad(&file, &problem))?;
    Ok(Config::new(&file, map))
}

/// The mapping of the one document, or what is wrong with it.
fn flat(text: &str) -> Result<Map<String, Value>, String> {
    let mut map = Map::new();
    let mut open = false;
    let mut done = false;
    // The key whose value comes next, and the list that it may be.
    let mut key: Option<String> = None;
    let mut list: Option<Vec<Value>> = None;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|e| format!("not YAML that can be read: {e}"))?;
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => (),
            Event::DocumentStart(_) if done => return Err("holds more than one document".to_owned()),
            Event::DocumentStart(_) => (),
            Event::MappingStart(0, None) if !open && !done => open = true,
            Event::MappingEnd => (open, done) = (false, true),
            Event::SequenceStart(0, None) if key.is_some() && list.is_none() => list = Some(Vec::new()),
            Event::SequenceEnd => {
                if let (Some(key), Some(list)) = (key.take(), list.take()) {
                    map.insert(key, list.into());
                }
            }
            Event::Scalar(text, style, 0, None) if open => {
                let value = || if style == ScalarStyle::Plain { plain(&text) } else { (*text).into() };
                match (&mut list, key.take()) {
                    (Some(list), name) => {
                        list.push(value());
                        key = name;
                    }
                    (None, Some(name)) => {
                        map.insert(name, value());
                    }
                    (None, None) if map.contains_key(&*text) => return Err(format!("`{text}` stands twice")),
                    (None, None) => key = Some(text.into_owned()),
                }
            }
            _ => return Err("must be one mapping of names to values or lists of them".to_owned()),
        }
    }
    if done { Ok(map) } else { Err("must be one mapping of names to values or lists of them".to_owned()) }
}

/// A scalar without quotation marks, as YAML's core schema reads it (version 1.2, section 10.3.2).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => (),
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(n), _) => n.into(),
        (_, Ok(x)) if numeric && x.is_finite() => x.into(),
        _ => text.into(),
    }
}
