use serde_json::Value;

use crate::{
    Content, Document, Field, ReadOptions, Role, Turn,
    document::misordered,
    error::{one_line, shown},
};

/// A value of a record, of whichever kind of file. Only texts, lists and records are ever wanted.
#[derive(Debug)]
pub(crate) enum Datum {
    Null,
    Text(String),
    List(Vec<Self>),
    Record(Vec<(String, Self)>),
    /// Anything else, by what it is.
    Other(&'static str),
}

impl From<Value> for Datum {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Other("a truth value"),
            Value::Number(_) => Self::Other("a number"),
            Value::String(text) => Self::Text(text),
            Value::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            Value::Object(fields) => {
                Self::Record(fields.into_iter().map(|(name, value)| (name, value.into())).collect())
            }
        }
    }
}

impl Datum {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Record(_) => "an object",
            Self::Other(kind) => kind,
        }
    }

    /// A field by name or by path; a name that has dots itself goes before.
    fn find(&mut self, field: &str) -> Option<&mut Self> {
        let Self::Record(fields) = self else { return None };
        let at = |name: &str| fields.iter().position(|(known, _)| known == name);
        match at(field) {
            Some(i) => fields.get_mut(i).map(|(_, value)| value),
            None => {
                let (outer, inner) = field.split_once('.')?;
                let i = at(outer)?;
                fields.get_mut(i)?.1.find(inner)
            }
        }
    }

    /// Takes a field's value out.
    fn take(&mut self, field: &str) -> Result<Self, String> {
        let found = self.find(field).ok_or_else(|| format!("there is no field `{}`", one_line(field)))?;
        Ok(std::mem::replace(found, Self::Null))
    }

    fn text(self, field: &str) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(format!("`{}` must be a text, but is {}", one_line(field), other.kind())),
        }
    }
}

/// The document that a record holds, or what is wrong with it.
pub(crate) fn document(mut record: Datum, options: &ReadOptions) -> Result<Document, String> {
    if !matches!(record, Datum::Record(_)) {
        return Err(format!("expected an object with fields, but this is {}", record.kind()));
    }
    let content = match &options.content {
        Field::Text(field) => Content::Text(record.take(field)?.text(field)?),
        Field::Chat(field) => Content::Chat(turns(record.take(field)?, field)?),
    };
    let subset = match &options.subset {
        None => None,
        Some(field) => {
            let name = record.take(field)?.text(field)?;
            if name.is_empty() {
                return Err(format!("`{}` is empty", one_line(field)));
            }
            Some(name)
        }
    };
    Ok(Document { content, subset })
}

/// The column of a table in which a field lies: itself, or the beginning of its path.
pub(crate) fn column(field: &str, has: impl Fn(&str) -> bool) -> Option<&str> {
    if has(field) {
        return Some(field);
    }
    field.split_once('.').map(|(column, _)| column).filter(|column| has(column))
}

fn turns(value: Datum, field: &str) -> Result<Vec<Turn>, String> {
    let field = one_line(field);
    let Datum::List(list) = value else {
        return Err(format!("`{field}` must be a list of turns, but is {}", value.kind()));
    };
    let turns = list.into_iter().map(turn).collect::<Result<Vec<_>, _>>();
    let turns = turns.map_err(|problem| format!("in `{field}`, {problem}"))?;
    match misordered(&turns) {
        Some(problem) => Err(format!("in `{field}`, {problem}")),
        None => Ok(turns),
    }
}

fn turn(mut value: Datum) -> Result<Turn, String> {
    let role = match value.take("role")?.text("role")?.as_str() {
        "user" => Role::User,
        "assistant" | "model" => Role::Model,
        "system" => return Err("a turn has the role `system`, which Gemma's template refuses".to_owned()),
        other => {
            let role = shown(other);
            return Err(format!("a turn has the role `{role}`: expected `user`, `assistant` or `model`"));
        }
    };
    Ok(Turn { role, text: value.take("content")?.text("content")? })
}
