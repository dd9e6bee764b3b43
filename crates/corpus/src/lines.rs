use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use crate::{
    Content, CorpusError, Document, ReadOptions, Result, Unit,
    error::{file_name, one_line},
    record,
};

/// A text's lines, one in memory at a time.
struct Lines {
    file: String,
    reader: BufReader<File>,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = file_name(path);
        let reader = match File::open(path) {
            Ok(opened) => BufReader::new(opened),
            Err(source) => return Err(CorpusError::Io { file, source }),
        };
        Ok(Self { file, reader, number: 0, line: Vec::new() })
    }

    /// The next line without its end, and on the first without a byte order mark.
    fn next(&mut self) -> Result<Option<&str>> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        if read.map_err(|source| CorpusError::Io { file: self.file.clone(), source })? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let mut line = self.line.as_slice();
        if self.number == 1 {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        line = line.strip_suffix(b"\n").unwrap_or(line);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        match std::str::from_utf8(line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(at_line(&self.file, self.number, "this is not UTF-8".to_owned())),
        }
    }
}

fn at_line(file: &str, number: u64, problem: String) -> CorpusError {
    CorpusError::Record { file: file.to_owned(), unit: Unit::Line, number, problem }
}

/// Documents with blank lines between them.
pub(crate) struct TextLines(Lines);

impl TextLines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Lines::open(path).map(Self)
    }

    pub(crate) fn document(&mut self) -> Result<Option<Document>> {
        let mut text = String::new();
        while let Some(line) = self.0.next()? {
            match (line.trim().is_empty(), text.is_empty()) {
                (true, true) => (),
                (true, false) => break,
                (false, first) => {
                    if !first {
                        text.push('\n');
                    }
                    text.push_str(line);
                }
            }
        }
        Ok((!text.is_empty()).then_some(Document { content: Content::Text(text), subset: None }))
    }
}

/// A JSON object a line.
pub(crate) struct JsonLines {
    lines: Lines,
    options: ReadOptions,
}

impl JsonLines {
    pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        Ok(Self { lines: Lines::open(path)?, options: options.clone() })
    }

    pub(crate) fn document(&mut self) -> Result<Option<Document>> {
        let document = loop {
            match self.lines.next()? {
                None => return Ok(None),
                Some(line) if line.trim().is_empty() => (),
                Some(line) => {
                    let record = serde_json::from_str::<serde_json::Value>(line).map_err(|e| not_json(&e));
                    break record.and_then(|record| record::document(record.into(), &self.options));
                }
            }
        };
        document.map(Some).map_err(|problem| at_line(&self.lines.file, self.lines.number, problem))
    }
}

fn not_json(error: &serde_json::Error) -> String {
    // It counts lines in the one line that it sees.
    let text = one_line(&error.to_string());
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("this is not JSON: {what} at column {}", error.column())
}
