use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{Content, Document, Label, Row};

/// What has been read so far: enough to say later which text a number was measured on.
///
/// `sha256` is of the documents, whatever tokenizer, context or file format they went through: for each document a byte 1, the
/// subset's length and the subset (or a byte 0 where none was asked for), then a byte 0, the text's length and the text, or
/// a byte 1, the number of turns, and role and text of each in the same way. Lengths are in bytes, numbers are 8 bytes, little end
/// first; a conversation's roles are `user` and `model`. For rows of ids ([`open_tokens`](crate::open_tokens)) it is of each row's
/// length, ids, and one byte for each position: 1 where attention sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The checksum, in hexadecimal digits.
    pub sha256: String,
    /// Documents with tokens in them; each row of a file of ids is one.
    pub documents: u64,
    /// Documents that were left out because they hold no text.
    pub skipped: u64,
    /// Rows.
    pub sequences: u64,
    /// Positions of those rows, BOS, EOS and marks included, padding not.
    pub tokens: u64,
    /// Those among them that metrics count.
    pub counted: u64,
}

/// A summary in the making.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sha256: Sha256,
    pub(crate) documents: u64,
    pub(crate) skipped: u64,
    sequences: u64,
    tokens: u64,
    counted: u64,
}

impl Tally {
    /// Takes up a document's text; whether it counts as one is not known yet.
    pub(crate) fn read(&mut self, document: &Document) {
        match &document.subset {
            Some(subset) => {
                self.sha256.update([1]);
                self.text(subset);
            }
            None => self.sha256.update([0]),
        }
        match &document.content {
            Content::Text(text) => {
                self.sha256.update([0]);
                self.text(text);
            }
            Content::Chat(turns) => {
                self.sha256.update([1]);
                self.number(turns.len());
                for turn in turns {
                    self.text(turn.role.name());
                    self.text(&turn.text);
                }
            }
        }
    }

    /// Takes up a row of ids that came without a text.
    pub(crate) fn read_ids(&mut self, row: &Row) {
        self.number(row.ids.len());
        for id in &row.ids {
            self.sha256.update(id.to_le_bytes());
        }
        for label in &row.labels {
            self.sha256.update([u8::from(*label != Label::Padding)]);
        }
        self.documents += 1;
    }

    /// Takes up a row that goes out.
    pub(crate) fn wrote(&mut self, row: &Row) {
        self.sequences += 1;
        self.tokens += row.labels.iter().filter(|label| **label != Label::Padding).count() as u64;
        self.counted += row.labels.iter().filter(|label| label.counted()).count() as u64;
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            sha256: format!("{:x}", self.sha256.clone().finalize()),
            documents: self.documents,
            skipped: self.skipped,
            sequences: self.sequences,
            tokens: self.tokens,
            counted: self.counted,
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.sha256.update(text);
    }

    fn number(&mut self, number: usize) {
        self.sha256.update((number as u64).to_le_bytes());
    }
}
