//! Text in: documents from files, packed into rows of token ids with a [`Label`] for each position.
//!
//! [`open`] reads `.txt`, `.jsonl` and `.parquet` as a stream of [`Document`]s, whatever the file's size; [`Rows`] encodes
//! them with a tokenizer of yours ([`Encode`]) and packs them; [`Batches`] makes of the rows what a model takes, with the
//! positions that metrics must not see left out. [`open_tokens`] makes the same rows of ids that are already there.
//!
//! ```
//! use corpus::{Batches, BoxError, Content, Document, Encode, Packing, Rows};
//!
//! /// A byte is a token.
//! struct Bytes;
//!
//! impl Encode for Bytes {
//!     fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
//!         Ok(text.bytes().map(|byte| i64::from(byte) + 3).collect())
//!     }
//!     fn bos(&self) -> i64 { 2 }
//!     fn eos(&self) -> i64 { 1 }
//!     fn pad(&self) -> i64 { 0 }
//!     fn token(&self, _text: &str) -> Option<i64> { None }
//! }
//!
//! let documents = ["abc", "de"].map(|text| Ok(Document { content: Content::Text(text.to_owned()), subset: None }));
//! let mut rows = Rows::new(documents.into_iter(), Bytes, 4, Packing::Packed)?;
//! let batches = Batches::new(rows.by_ref(), 2, 0)?.collect::<Result<Vec<_>, _>>()?;
//! let bytes = |text: &str| text.bytes().map(|byte| i64::from(byte) + 3).collect::<Vec<_>>();
//! assert_eq!(batches[0].tokens.rows()[0], [vec![2], bytes("abc")].concat()); // BOS, then the text
//! assert_eq!(batches[0].tokens.rows()[1], [vec![2, 1], bytes("de")].concat()); // EOS between two documents
//! assert_eq!((rows.summary().documents, rows.summary().counted), (2, 5));
//! # Ok::<(), corpus::CorpusError>(())
//! ```
//!
//! Nothing here knows a model, downloads or prints.

mod batch;
mod chat;
mod columns;
mod document;
mod encode;
mod error;
mod label;
mod lines;
mod pack;
mod read;
mod record;
mod summary;
mod token_file;

pub use batch::{Batch, Batches};
pub use document::{Content, Document, Role, Turn};
pub use encode::Encode;
pub use error::{BoxError, CorpusError, Result, Unit};
pub use label::{Groups, Label, Row};
pub use pack::{Packing, Rows};
pub use read::{Documents, Field, ReadOptions, open, open_all};
pub use summary::Summary;
pub use token_file::{TokenRows, open_tokens};
