use std::{
    convert::identity,
    fs::File,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Arc,
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field as Cell, Row, reader::RowIter},
    schema::types::{Type, TypePtr},
};

use crate::{
    CorpusError, Document, Field, ReadOptions, Result, Unit,
    error::{file_name, one_line},
    record::{self, Datum},
};

/// Values of a column that are decoded at a time.
const DECODED: usize = 64;

/// The rows of a parquet file, of which the wanted columns alone are read, page by page.
pub(crate) struct Columns {
    file: String,
    rows: RowIter<'static>,
    options: ReadOptions,
    number: u64,
}

impl Columns {
    pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let file = file_name(path);
        let opened = match File::open(path) {
            Ok(opened) => opened,
            Err(source) => return Err(CorpusError::Io { file, source }),
        };
        match guarded(|| rows(opened, options)).and_then(identity) {
            Ok(rows) => Ok(Self { rows, file, options: options.clone(), number: 0 }),
            Err(problem) => Err(CorpusError::File { file, problem }),
        }
    }

    pub(crate) fn document(&mut self) -> Result<Option<Document>> {
        self.number += 1;
        let document = guarded(|| self.rows.next()).and_then(|row| match row {
            None => Ok(None),
            Some(Ok(row)) => record::document(datum_of_row(row), &self.options).map(Some),
            Some(Err(error)) => Err(unsound(&error)),
        });
        document.map_err(|problem| CorpusError::Record {
            file: self.file.clone(),
            unit: Unit::Row,
            number: self.number,
            problem,
        })
    }
}

fn rows(opened: File, options: &ReadOptions) -> Result<RowIter<'static>, String> {
    let reader = SerializedFileReader::new(opened).map_err(|e| unsound(&e))?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = wanted(schema, options)?;
    let projection = Type::group_type_builder(schema.name()).with_fields(columns).build();
    let rows = projection.and_then(|wanted| RowIter::from_file_into(Box::new(reader)).project(Some(wanted)));
    Ok(rows.map_err(|e| unsound(&e))?.with_batch_size(DECODED))
}

/// The parquet crate takes much of a file on trust, and panics where it is damaged. What it was at then is not looked at again.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(read)).map_err(|_| format!("{UNSOUND}: its reader gave up"))
}

/// The columns that hold what is asked for; or which there is none of.
fn wanted(schema: &Type, options: &ReadOptions) -> Result<Vec<TypePtr>, String> {
    let (Field::Text(content) | Field::Chat(content)) = &options.content;
    let has = |name: &str| schema.get_fields().iter().any(|column| column.name() == name);
    let mut names = Vec::new();
    for field in [Some(content), options.subset.as_ref()].into_iter().flatten() {
        names.push(record::column(field, has).ok_or_else(|| {
            let there: Vec<&str> = schema.get_fields().iter().map(|column| column.name()).collect();
            one_line(&format!("there is no column `{field}` among {}", there.join(", ")))
        })?);
    }
    Ok(schema.get_fields().iter().filter(|column| names.contains(&column.name())).map(Arc::clone).collect())
}

fn datum_of_row(row: Row) -> Datum {
    Datum::Record(row.into_columns().into_iter().map(|(name, cell)| (name, datum(cell))).collect())
}

fn datum(cell: Cell) -> Datum {
    match cell {
        Cell::Null => Datum::Null,
        Cell::Str(text) => Datum::Text(text),
        // Older writers do not say that a text is one.
        Cell::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => Datum::Text(text.to_owned()),
            Err(_) => Datum::Other("binary, and not UTF-8"),
        },
        Cell::Group(row) => datum_of_row(row),
        Cell::ListInternal(list) => Datum::List(list.elements().iter().cloned().map(datum).collect()),
        Cell::MapInternal(_) => Datum::Other("a map"),
        Cell::Bool(_) => Datum::Other("a truth value"),
        _ => Datum::Other("a number"),
    }
}

const UNSOUND: &str = "this is no sound parquet file";

fn unsound(error: &ParquetError) -> String {
    // The parquet crate is built without the codecs that hardly anyone uses, and says so in these words.
    if let Some((_, codec)) = error.to_string().split_once("Disabled feature at compile time: ") {
        return format!(
            "its compression, {codec}, is not read here: write it as zstd, snappy, gzip or uncompressed"
        );
    }
    format!("{UNSOUND}: {}", one_line(error.to_string().trim_end_matches('.')))
}
