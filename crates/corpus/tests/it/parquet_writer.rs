//! Writes small parquet files, column by column.

use std::{fs::File, path::Path, sync::Arc};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

/// A leaf column of texts: the values that are there, and, unless the column is required, the levels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaf {
    pub(crate) values: Vec<Vec<u8>>,
    pub(crate) definition: Option<Vec<i16>>,
    pub(crate) repetition: Option<Vec<i16>>,
}

impl Leaf {
    /// A required column.
    pub(crate) fn all(values: &[&str]) -> Self {
        Self { values: values.iter().map(|v| v.as_bytes().to_vec()).collect(), ..Self::default() }
    }

    /// An optional column, or one in as many optional structures as `depth` says beyond itself.
    pub(crate) fn some(values: &[Option<&str>], depth: i16) -> Self {
        let there = values.iter().flatten().copied().collect::<Vec<_>>();
        let levels = values.iter().map(|value| if value.is_some() { depth + 1 } else { depth }).collect();
        Self { definition: Some(levels), ..Self::all(&there) }
    }
}

/// A file of row groups, each with a leaf for every column of the schema.
pub(crate) fn write(path: &Path, schema: &str, compression: Compression, groups: &[Vec<Leaf>]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    // Small pages, so that a file of this size has some.
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_data_page_row_count_limit(3)
        .set_write_batch_size(2)
        .build();
    let mut writer =
        SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for leaves in groups {
        let mut group = writer.next_row_group().unwrap();
        for leaf in leaves {
            let mut column = group.next_column().unwrap().expect("a column for each leaf");
            let values: Vec<ByteArray> = leaf.values.iter().cloned().map(ByteArray::from).collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, leaf.definition.as_deref(), leaf.repetition.as_deref())
                .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}
