use std::{fs, path::Path};

use serde::Deserialize;

use crate::{
    CorpusError, Label, Result, Row, Summary, Unit,
    error::{file_name, one_line},
    summary::Tally,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    input_ids: Vec<Vec<i64>>,
    attention_mask: Option<Vec<Vec<i64>>>,
}

/// Rows of ids as a file has them. Made by [`open_tokens`].
#[derive(Debug)]
pub struct TokenRows {
    rows: std::vec::IntoIter<Row>,
    tally: Tally,
}

/// Reads `{"input_ids": [[…]], "attention_mask": [[…]]}`, the mask optional: one row a list, of any lengths.
///
/// What the mask hides is [`Label::Padding`], an id among `special` is [`Label::Control`], all else is [`Label::Text`]. A file of
/// ids is read at once.
///
/// # Errors
/// The system's; [`CorpusError::File`] for another file; [`CorpusError::Record`] for a row without ids, with a negative one, or
/// with a mask that does not fit it or hides all of it.
pub fn open_tokens(path: impl AsRef<Path>, special: &[i64]) -> Result<TokenRows> {
    let file = file_name(path.as_ref());
    let bytes = fs::read(path).map_err(|source| CorpusError::Io { file: file.clone(), source })?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let TokenFile { input_ids, attention_mask } =
        serde_json::from_slice(bytes).map_err(|e| CorpusError::File {
            file: file.clone(),
            problem: format!("no file of token ids: {}", one_line(&e.to_string())),
        })?;
    if let Some(masks) = attention_mask.as_ref().filter(|masks| masks.len() != input_ids.len()) {
        let problem =
            format!("`input_ids` has {} rows, but `attention_mask` {}", input_ids.len(), masks.len());
        return Err(CorpusError::File { file, problem });
    }
    let mut masks = attention_mask.map(Vec::into_iter);
    let mut rows = Vec::with_capacity(input_ids.len());
    for (i, ids) in input_ids.into_iter().enumerate() {
        let mask = masks.as_mut().and_then(Iterator::next);
        rows.push(row(ids, mask, special).map_err(|problem| CorpusError::Record {
            file: file.clone(),
            unit: Unit::Row,
            number: i as u64 + 1,
            problem,
        })?);
    }
    Ok(TokenRows { rows: rows.into_iter(), tally: Tally::default() })
}

impl TokenRows {
    /// What has been read so far; of everything, once there are no more rows.
    pub fn summary(&self) -> Summary {
        self.tally.summary()
    }
}

impl Iterator for TokenRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        self.tally.read_ids(&row);
        self.tally.wrote(&row);
        Some(Ok(row))
    }
}

fn row(ids: Vec<i64>, mask: Option<Vec<i64>>, special: &[i64]) -> Result<Row, String> {
    if ids.is_empty() {
        return Err("there are no token ids".to_owned());
    }
    if let Some(id) = ids.iter().find(|id| **id < 0) {
        return Err(format!("the token id {id} is negative"));
    }
    let mask = mask.unwrap_or_else(|| vec![1; ids.len()]);
    if mask.len() != ids.len() {
        return Err(format!("the attention mask has {} entries for {} token ids", mask.len(), ids.len()));
    }
    if let Some(entry) = mask.iter().find(|entry| !matches!(entry, 0 | 1)) {
        return Err(format!("the attention mask must hold 0 and 1 alone, but holds {entry}"));
    }
    if mask.iter().all(|entry| *entry == 0) {
        return Err("the attention mask hides all of it".to_owned());
    }
    let label = |(id, seen): (&i64, &i64)| match seen {
        0 => Label::Padding,
        _ if special.contains(id) => Label::Control,
        _ => Label::Text,
    };
    let labels = ids.iter().zip(&mask).map(label).collect();
    Ok(Row { ids, labels })
}
