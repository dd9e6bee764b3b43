use crate::{
    BoxError, Content, CorpusError, Document, Encode, Groups, Label, Result, Row, Summary, chat::chat_tokens,
    encode::Encoder, summary::Tally,
};

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Packing {
    /// One after another with EOS between, attention across all of a row; a document that does not fit goes on in the next row.
    /// Every row but the last is full: how Gemma Scope's activations were made, and SAELens'.
    Packed,
    /// Each from the beginning of a row; what does not fit goes on in the next row.
    Separate,
}

/// Rows of at most `ctx` tokens, made of documents as they come. Each row begins with BOS; without the BOS of each, the rows
/// in a row are the documents: no token is lost, none is there twice.
///
/// Labels: BOS, EOS and the marks of turns are [`Label::Control`]. Text of a document with a subset is in the group of that
/// name, a turn of a conversation in the group `user` or `model`, or, with a subset, `subset/user` or `subset/model`.
///
/// Conversations are written in the template of Gemma 2's -it models. An empty document is left out, and counted
/// ([`Summary::skipped`]). After an error there are no more rows. Of the text, one document is in memory at a time.
#[derive(Debug)]
pub struct Rows<D, E> {
    documents: D,
    encoder: Encoder<E>,
    ctx: usize,
    packing: Packing,
    /// What is not in a row yet.
    pending: std::vec::IntoIter<(i64, Label)>,
    groups: Groups,
    tally: Tally,
    done: bool,
}

impl<D: Iterator<Item = Result<Document>>, E: Encode> Rows<D, E> {
    /// Rows of `ctx` tokens, BOS included.
    ///
    /// # Errors
    /// [`CorpusError::Request`] where `ctx` leaves no room beside BOS.
    pub fn new(documents: D, encoder: E, ctx: usize, packing: Packing) -> Result<Self> {
        if ctx < 2 {
            return Err(CorpusError::Request(format!(
                "a row needs at least 2 tokens, BOS and another, but has {ctx}"
            )));
        }
        Ok(Self {
            documents,
            encoder: Encoder::new(encoder),
            ctx,
            packing,
            pending: Vec::new().into_iter(),
            groups: Groups::default(),
            tally: Tally::default(),
            done: false,
        })
    }

    /// The groups that have appeared so far.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// What has been read and written so far; of everything, once there are no more rows.
    pub fn summary(&self) -> Summary {
        self.tally.summary()
    }

    fn row(&mut self) -> Result<Option<Row>> {
        let mut row = Row { ids: vec![self.encoder.bos()], labels: vec![Label::Control] };
        loop {
            let room = self.ctx - row.ids.len();
            for (id, label) in self.pending.by_ref().take(room) {
                row.ids.push(id);
                row.labels.push(label);
            }
            let begun = row.ids.len() > 1;
            let full = row.ids.len() == self.ctx || (begun && self.packing == Packing::Separate);
            if full || !self.refill()? {
                return Ok(begun.then_some(row));
            }
        }
    }

    /// Makes the next document pending; false where there is none.
    fn refill(&mut self) -> Result<bool> {
        for document in self.documents.by_ref() {
            let document = document?;
            self.tally.read(&document);
            let number = self.tally.documents + self.tally.skipped + 1;
            let mut tokens = tokens(&self.encoder, &document, &mut self.groups)
                .map_err(|source| CorpusError::Encode { number, source })?;
            if tokens.is_empty() {
                self.tally.skipped += 1;
                continue;
            }
            if self.packing == Packing::Packed && self.tally.documents > 0 {
                tokens.insert(0, (self.encoder.eos(), Label::Control));
            }
            self.tally.documents += 1;
            self.pending = tokens.into_iter();
            return Ok(true);
        }
        Ok(false)
    }
}

impl<D: Iterator<Item = Result<Document>>, E: Encode> Iterator for Rows<D, E> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.row().transpose();
        match &row {
            Some(Ok(row)) => self.tally.wrote(row),
            _ => self.done = true,
        }
        row
    }
}

fn tokens<E: Encode>(
    encoder: &Encoder<E>,
    document: &Document,
    groups: &mut Groups,
) -> Result<Vec<(i64, Label)>, BoxError> {
    let subset = document.subset.as_deref();
    match &document.content {
        Content::Text(text) if text.is_empty() => Ok(Vec::new()),
        Content::Text(text) => {
            let ids = encoder.encode(text)?;
            let label = subset.map_or(Label::Text, |subset| groups.label(subset));
            Ok(ids.into_iter().map(|id| (id, label)).collect())
        }
        Content::Chat(turns) => chat_tokens(encoder, turns, subset, groups),
    }
}
