use std::path::Path;

use corpus::{Batch, Batches, BoxError, Document, Encode, Packing, Rows, Summary};
use gemma_model::{Gemma2Config, Tokenizer};

use super::Result;

/// What SAEs are judged on: batches of rows, with the subset that each position belongs to. The ids are held in memory.
#[derive(Debug)]
pub struct Text {
    /// The batches.
    pub batches: Vec<Batch>,
    /// The names of the subsets.
    pub groups: Vec<String>,
    /// How much it is, and its checksum.
    pub summary: Summary,
}

/// A model's tokenizer, as packing needs it.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'t>(pub &'t Tokenizer);

impl Encode for Encoder<'_> {
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        Ok(self.0.encode_plain(text)?)
    }

    fn bos(&self) -> i64 {
        self.0.bos()
    }

    fn eos(&self) -> i64 {
        self.0.eos()
    }

    fn pad(&self) -> i64 {
        self.0.pad()
    }

    fn token(&self, text: &str) -> Option<i64> {
        self.0.token(text)
    }
}

impl Text {
    /// Packs documents into rows of `ctx` tokens, `batch` of them at a time.
    ///
    /// # Errors
    /// The documents' and the tokenizer's; a context without room.
    pub fn pack(
        documents: impl IntoIterator<Item = corpus::Result<Document>>,
        tokenizer: &Tokenizer,
        (ctx, batch): (usize, usize),
        packing: Packing,
    ) -> Result<Self> {
        let mut rows = Rows::new(documents.into_iter(), Encoder(tokenizer), ctx, packing)?;
        let batches = Batches::new(rows.by_ref(), batch, tokenizer.pad())?.collect::<corpus::Result<_>>()?;
        Ok(Self { batches, groups: rows.groups().names().to_vec(), summary: rows.summary() })
    }

    /// Reads rows of token ids as a file has them, `batch` of them at a time.
    ///
    /// # Errors
    /// [`corpus::open_tokens`]'s.
    pub fn tokens(path: &Path, config: &Gemma2Config, batch: usize) -> Result<Self> {
        let mut rows = corpus::open_tokens(path, &config.special())?;
        let batches = Batches::new(rows.by_ref(), batch, config.pad)?.collect::<corpus::Result<_>>()?;
        Ok(Self { batches, groups: Vec::new(), summary: rows.summary() })
    }
}
