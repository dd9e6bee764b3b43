use hooks::TokenBatch;

use crate::{CorpusError, Label, Result, Row};

/// Rows as a model takes them.
#[derive(Debug)]
pub struct Batch {
    /// The ids, right-padded; it counts the positions whose labels say so.
    pub tokens: TokenBatch,
    /// A label for each position of [`tokens`](Self::tokens), padding included.
    pub labels: Vec<Vec<Label>>,
}

impl Batch {
    /// The group of each position, row after row, and -1 where there is none: for a tensor `[batch, pos]`.
    pub fn groups(&self) -> Vec<i64> {
        self.labels.iter().flatten().map(|label| label.group().map_or(-1, i64::from)).collect()
    }
}

/// Some rows at a time. The last batch may have fewer.
#[derive(Debug)]
pub struct Batches<R> {
    rows: R,
    batch: usize,
    pad: i64,
    done: bool,
}

impl<R: Iterator<Item = Result<Row>>> Batches<R> {
    /// Batches of `batch` rows, the shorter ones padded on the right with `pad`. Hand over `rows.by_ref()` to ask the rows for
    /// their summary afterwards.
    ///
    /// # Errors
    /// [`CorpusError::Request`] for batches of no rows.
    pub fn new(rows: R, batch: usize, pad: i64) -> Result<Self> {
        if batch == 0 {
            return Err(CorpusError::Request("a batch needs at least one row".to_owned()));
        }
        Ok(Self { rows, batch, pad, done: false })
    }

    /// Where the rows come from: for its groups and its summary on the way.
    pub fn rows(&self) -> &R {
        &self.rows
    }

    fn batch(&mut self) -> Result<Option<Batch>> {
        let rows = self.rows.by_ref().take(self.batch).collect::<Result<Vec<_>>>()?;
        if rows.is_empty() { Ok(None) } else { as_batch(rows, self.pad).map(Some) }
    }
}

impl<R: Iterator<Item = Result<Row>>> Iterator for Batches<R> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.batch().transpose();
        self.done = !matches!(batch, Some(Ok(_)));
        batch
    }
}

fn as_batch(rows: Vec<Row>, pad: i64) -> Result<Batch> {
    let pos = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let (mut ids, mut labels) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for mut row in rows {
        row.ids.resize(pos, pad);
        row.labels.resize(pos, Label::Padding);
        ids.push(row.ids);
        labels.push(row.labels);
    }
    let each = |of: fn(Label) -> bool| {
        labels.iter().map(|row| row.iter().map(|label| of(*label)).collect()).collect::<Vec<Vec<bool>>>()
    };
    let attended = each(|label| label != Label::Padding);
    // Labels say all about what counts, so no id is special here.
    let tokens = if attended.iter().flatten().all(|seen| *seen) {
        TokenBatch::new(&ids, &[])?
    } else {
        let mask: Vec<Vec<i64>> =
            attended.into_iter().map(|row| row.into_iter().map(i64::from).collect()).collect();
        TokenBatch::with_mask(&ids, &mask, &[])?
    };
    let tokens = tokens.uncounted(&each(|label| !label.counted()))?;
    Ok(Batch { tokens, labels })
}
