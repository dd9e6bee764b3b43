use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::{
    CorpusError, Document, Result,
    columns::Columns,
    error::file_name,
    lines::{JsonLines, TextLines},
};

/// What of a file's records is wanted. The names of fields may be paths, `meta.pile_set_name`; a field whose own name is
/// that, dots and all, goes before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// Where a record has what it says: the field `text`, unless told otherwise.
    pub content: Field,
    /// Where it has the name of the subset that it belongs to, if that is wanted; then every record must have one.
    pub subset: Option<String>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { content: Field::Text("text".to_owned()), subset: None }
    }
}

/// The field that holds a document's content, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A text.
    Text(String),
    /// A conversation: a list of `{"role": …, "content": …}`, with the roles `user` and `assistant` (or `model`) in turns, and no
    /// `system`, which Gemma's template refuses. Other fields of a turn are not looked at.
    Chat(String),
}

/// The documents of a file, one after the other. Made by [`open`]. After an error there are no more.
pub struct Documents(Option<Source>);

enum Source {
    Text(TextLines),
    Json(JsonLines),
    Parquet(Box<Columns>),
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Json,
    Parquet,
}

/// Opens a file of documents and reads it as a stream:
///
/// * `.txt`: documents with blank lines between them;
/// * `.jsonl`: an object a line; blank lines are nothing;
/// * `.parquet`: a record a row, of which only the columns that are asked for are read.
///
/// A byte order mark at the beginning is dropped, and `\r\n` ends a line as `\n` does. An empty text is a document too. A file without
/// documents is no error here.
///
/// # Errors
/// The system's; [`CorpusError::File`] for a folder, a name that ends in anything else, fields asked of a `.txt`, a damaged
/// parquet file or one without the columns. As an item of the stream: [`CorpusError::Record`] with the line or row that is no such
/// record, or lacks a field that was asked for.
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Documents> {
    let path = path.as_ref();
    let source = match kind(path)? {
        Kind::Text => {
            refuse_fields(path, options)?;
            Source::Text(TextLines::open(path)?)
        }
        Kind::Json => Source::Json(JsonLines::open(path, options)?),
        Kind::Parquet => Source::Parquet(Box::new(Columns::open(path, options)?)),
    };
    Ok(Documents(Some(source)))
}

/// The documents of several files, in the order given. All names are looked at first; a file is opened when its turn comes.
///
/// # Errors
/// As [`open`]: for what a file's name and kind tell at once, for the rest as an item of the stream.
pub fn open_all(
    paths: Vec<PathBuf>,
    options: &ReadOptions,
) -> Result<impl Iterator<Item = Result<Document>> + Send + use<>> {
    for path in &paths {
        if let Kind::Text = kind(path)? {
            refuse_fields(path, options)?;
        }
    }
    let options = options.clone();
    Ok(paths.into_iter().flat_map(move |path| {
        let (documents, error) = match open(path, &options) {
            Ok(documents) => (Some(documents), None),
            Err(error) => (None, Some(Err(error))),
        };
        documents.into_iter().flatten().chain(error)
    }))
}

fn kind(path: &Path) -> Result<Kind> {
    let file = file_name(path);
    let metadata = fs::metadata(path).map_err(|source| CorpusError::Io { file: file.clone(), source })?;
    if metadata.is_dir() {
        return Err(CorpusError::File { file, problem: "expected a file, but this is a folder".to_owned() });
    }
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("txt") => Ok(Kind::Text),
        Some("jsonl") => Ok(Kind::Json),
        Some("parquet") => Ok(Kind::Parquet),
        _ => {
            let problem = "expected a name that ends in .txt, .jsonl or .parquet".to_owned();
            Err(CorpusError::File { file, problem })
        }
    }
}

fn refuse_fields(path: &Path, options: &ReadOptions) -> Result<()> {
    let asked = match (&options.content, &options.subset) {
        (Field::Chat(field), _) => field,
        (Field::Text(_), Some(field)) => field,
        (Field::Text(_), None) => return Ok(()),
    };
    let problem = format!("a .txt has no fields, so no `{asked}`");
    Err(CorpusError::File { file: file_name(path), problem })
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match self.0.as_mut()? {
            Source::Text(lines) => lines.document(),
            Source::Json(lines) => lines.document(),
            Source::Parquet(columns) => columns.document(),
        };
        if !matches!(next, Ok(Some(_))) {
            self.0 = None;
        }
        next.transpose()
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.0 {
            None => "done",
            Some(Source::Text(_)) => ".txt",
            Some(Source::Json(_)) => ".jsonl",
            Some(Source::Parquet(_)) => ".parquet",
        };
        f.debug_tuple("Documents").field(&of).finish()
    }
}
