//! The JSON that stands beside the weights, for the readers of every format.
//!
//! A reader takes the keys that it knows out of a [`Config`], says which others are harmless, and [finishes](Config::finish):
//! a key that is then left could change the function, and is an error that names it.

use std::{fmt, fs, io::Write as _, path::Path};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, ser::Formatter};
use tch_ext::{TensorError, write_atomically};

use crate::{Result, SaeError};

/// A JSON object of a file; what has been taken is no longer in it. `null` is as good as absent.
#[derive(Debug)]
pub(crate) struct Config {
    file: String,
    /// The key of the object within the file, with a dot behind it.
    within: String,
    map: Map<String, Value>,
}

impl Config {
    /// Reads a file that must hold one JSON object.
    ///
    /// # Errors
    /// The system's; what is no JSON, or no object; a key that stands twice, at any depth: readers take either.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| TensorError::io(path, e))?;
        Self::parse(&path.display().to_string(), &bytes)
    }

    /// As [`read`](Self::read), of bytes; `file` stands for them in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFF\xFE", b"\xFE\xFF"];
        if BYTE_ORDER_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
            return Err(bad(file, "not JSON that can be read: it begins with a byte order mark"));
        }
        match serde_json::from_slice(bytes) {
            Ok(Strict(Value::Object(map))) => Ok(Self::new(file, map)),
            Ok(_) => Err(bad(file, "must be a JSON object")),
            Err(error) => Err(bad(file, &format!("not JSON that can be read: {error}"))),
        }
    }

    /// An object that was made here.
    pub(crate) fn new(file: &str, map: Map<String, Value>) -> Self {
        Self { file: file.to_owned(), within: String::new(), map }
    }

    /// The file.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// An error that names the file.
    pub(crate) fn bad(&self, problem: &str) -> SaeError {
        bad(&self.file, problem)
    }

    /// Whether the key is (still) there, and not `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A value that stays in it.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Takes a value of any type.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    /// Takes a text.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a text", |v| v.as_str().map(str::to_owned))
    }

    /// Takes `true` or `false`.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// Takes a finite number.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// Takes a size or a count: an integer of at least 1. Python's writers may say `64.0`.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn size(&mut self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "an integer of at least 1", |v| {
            // Up to 2^53 a float64 is the integer it shows.
            let whole = |n: &f64| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0;
            let n = v.as_i64().or_else(|| v.as_f64().filter(whole).map(|n| n as i64));
            n.filter(|n| *n >= 1)
        })
    }

    /// Takes an object; its keys are named `key.…` in errors.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", |v| v.as_object().cloned())?;
        let within = format!("{}{key}.", self.within);
        Ok(map.map(|map| Self { file: self.file.clone(), within, map }))
    }

    /// What was taken, which must have been there.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.bad(&format!("`{}{key}` is missing", self.within)))
    }

    /// Takes a value that must be absent or one of these, since any other would change the function.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn only(&mut self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.take(key) {
            Some(value) if !allowed.contains(&value) => {
                let allowed = allowed.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" or ");
                let key = format!("{}{key}", self.within);
                Err(self
                    .bad(&format!("`{key}` is `{}`, which is not read: only {allowed} is", short(&value))))
            }
            _ => Ok(()),
        }
    }

    /// Takes what changes nothing, as it stands.
    pub(crate) fn harmless(&mut self, keys: &[&str]) -> Map<String, Value> {
        keys.iter().filter_map(|key| self.map.remove_entry(*key)).collect()
    }

    /// Takes all that is left, as it stands: of an object that is free.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// The first key that nobody took. `null` is no setting.
    pub(crate) fn finish(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((key, value)) => {
                let key = format!("{}{key}", self.within);
                Err(self.bad(&format!(
                    "`{key}` is unknown and could change the function: it is {}",
                    short(value)
                )))
            }
            None => Ok(()),
        }
    }

    fn typed<T>(
        &mut self,
        key: &str,
        what: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let problem = || format!("`{}{key}` must be {what}, but is {}", self.within, short(&value));
        read(&value).map(Some).ok_or_else(|| self.bad(&problem()))
    }
}

/// As much of a value as a message can hold.
fn short(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

/// An error that names the file, in one line whatever words the file holds.
pub(crate) fn bad(file: &str, problem: &str) -> SaeError {
    SaeError::File { file: file.to_owned(), problem: problem.replace(char::is_control, "\u{FFFD}") }
}

/// Writes a JSON object in one line with its keys in this order, as Python's `json.dump` does.
///
/// # Errors
/// The system's.
pub(crate) fn write_line(path: &Path, fields: &[(&str, Value)]) -> Result<()> {
    let io = |e| TensorError::io(path, e);
    let mut text = vec![b'{'];
    for (i, (key, value)) in fields.iter().enumerate() {
        text.extend_from_slice(if i == 0 { b"" } else { b", " });
        let mut python = serde_json::Serializer::with_formatter(&mut text, Python);
        key.serialize(&mut python).map_err(|e| io(e.into()))?;
        text.extend_from_slice(b": ");
        let mut python = serde_json::Serializer::with_formatter(&mut text, Python);
        value.serialize(&mut python).map_err(|e| io(e.into()))?;
    }
    text.push(b'}');
    Ok(write_atomically(path, |file| file.write_all(&text).map_err(io))?)
}

/// The separators of Python's `json.dump`: `, ` and `: `.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// A JSON value of whose objects none has a key twice; serde_json's own keeps the last of them and says nothing.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }

            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Strict, E> {
                Ok(Strict(v.into()))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Strict, E> {
                Ok(Strict(v.into()))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Strict, E> {
                Ok(Strict(v.into()))
            }

            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Strict, E> {
                let number = Number::from_f64(v).ok_or_else(|| E::custom("a number that is not finite"))?;
                Ok(Strict(Value::Number(number)))
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Strict, E> {
                Ok(Strict(v.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Strict(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut values = Map::new();
                while let Some((key, Strict(value))) = map.next_entry::<String, _>()? {
                    if values.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("`{key}` stands twice")));
                    }
                    values.insert(key, value);
                }
                Ok(Strict(Value::Object(values)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
