use tch::{Device, Kind, Tensor};

use crate::{HookError, ModelDims, Result};

/// Token ids, with which of them attention may see and which of them count.
///
/// # Invariants
/// * `ids`, `attended` and `counted` are all `[batch, pos]`, with at least one sequence and one position.
/// * `counted` is false wherever `attended` is, and at every special token (BOS, EOS, PAD): Gemma Scope excludes these from
///   training and evaluation (Gemma Scope, section 3.1 and 4).
/// * `documents` numbers the documents of a packed row: a token sees no other document than its own.
#[derive(Debug)]
pub struct TokenBatch {
    rows: Vec<Vec<i64>>,
    ids: Tensor,
    attended: Option<Tensor>,
    documents: Option<Tensor>,
    /// Where each position stands in its text; `None` where that is its column.
    positions: Option<Tensor>,
    counted: Tensor,
}

impl TokenBatch {
    /// A batch of sequences of one length. `special` lists the ids that never count.
    ///
    /// # Errors
    /// [`HookError::Tokens`]: no sequences, an empty one, unequal lengths, or a negative id.
    pub fn new(rows: &[Vec<i64>], special: &[i64]) -> Result<Self> {
        Self::build(rows, None, None, special)
    }

    /// A batch of sequences of any length, padded on the right with `pad`, which attention does not see.
    ///
    /// # Errors
    /// [`HookError::Tokens`]: no sequences, an empty one, or a negative id.
    pub fn padded(rows: &[Vec<i64>], pad: i64, special: &[i64]) -> Result<Self> {
        Self::pad_on(Side::Right, rows, pad, special)
    }

    /// A batch of sequences of any length, padded on the left: all end in the same column, as generation needs it.
    ///
    /// # Errors
    /// As [`padded`](Self::padded).
    pub fn left_padded(rows: &[Vec<i64>], pad: i64, special: &[i64]) -> Result<Self> {
        Self::pad_on(Side::Left, rows, pad, special)
    }

    /// Documents one after the other in rows of `ctx` tokens, the last one padded. A document that does not fit into what is
    /// left of a row goes on in the next. Attention stays within each document; see
    /// [`across_documents`](Self::across_documents).
    ///
    /// # Errors
    /// [`HookError::Tokens`]: no documents, an empty one, a negative id, or no room.
    pub fn packed(documents: &[Vec<i64>], ctx: usize, pad: i64, special: &[i64]) -> Result<Self> {
        if ctx == 0 {
            return Err(HookError::Tokens("rows of 0 tokens hold no document".to_owned()));
        }
        if let Some(i) = documents.iter().position(Vec::is_empty) {
            return Err(HookError::Tokens(format!("document {i} has no tokens")));
        }
        let numbered =
            documents.iter().enumerate().flat_map(|(i, ids)| ids.iter().map(move |id| (*id, i as i64)));
        let all: Vec<(i64, i64)> = numbered.collect();
        // All rows are as wide as the context, unless one row is all there is.
        let width = if all.len() < ctx { all.len() } else { ctx };
        let fill = |chunk: &[(i64, i64)], with: i64, of: &dyn Fn(&(i64, i64)) -> i64| {
            chunk.iter().map(of).chain(std::iter::repeat(with)).take(width).collect::<Vec<i64>>()
        };
        let chunks: Vec<_> = all.chunks(ctx).collect();
        let rows: Vec<_> = chunks.iter().map(|c| fill(c, pad, &|(id, _)| *id)).collect();
        let mask: Vec<_> = chunks.iter().map(|c| fill(c, 0, &|_| 1)).collect();
        let numbers: Vec<_> = chunks.iter().map(|c| fill(c, -1, &|(_, document)| *document)).collect();
        let full = mask.iter().flatten().all(|m| *m == 1);
        Self::build(&rows, if full { None } else { Some(&mask) }, Some(&numbers), special)
    }

    /// A batch whose rows hold several documents: `documents` gives each position's number, and attention stays within
    /// equal numbers.
    ///
    /// # Errors
    /// As [`with_mask`](Self::with_mask); numbers of another shape, or a document that is not in one piece.
    pub fn with_documents(
        rows: &[Vec<i64>],
        mask: Option<&[Vec<i64>]>,
        documents: &[Vec<i64>],
        special: &[i64],
    ) -> Result<Self> {
        Self::build(rows, mask, Some(documents), special)
    }

    /// The same batch with attention across the documents of a row, and positions that count through it.
    ///
    /// # Errors
    /// libtorch's.
    pub fn across_documents(mut self) -> Result<Self> {
        let mask =
            self.attended.as_ref().map(|mask| Vec::<Vec<i64>>::try_from(&mask.f_to_kind(Kind::Int64)?));
        self.documents = None;
        self.positions =
            positions_of(self.rows.len(), self.pos() as usize, mask.transpose()?.as_deref(), None)?
                .map(|positions| positions.f_to_device(self.ids.device()))
                .transpose()?;
        Ok(self)
    }

    /// The same batch with fewer positions that count: none where `hidden` says so, as for what marks the turns of a conversation.
    /// Attention sees them as before.
    ///
    /// # Errors
    /// [`HookError::Tokens`] for another shape than `[batch, pos]`.
    pub fn uncounted(mut self, hidden: &[Vec<bool>]) -> Result<Self> {
        let size = [self.batch(), self.pos()];
        if hidden.len() != self.rows.len() {
            let problem = format!("{} rows say what counts, for {} sequences", hidden.len(), self.rows.len());
            return Err(HookError::Tokens(problem));
        }
        if let Some((i, row)) = hidden.iter().enumerate().find(|(_, row)| row.len() as i64 != size[1]) {
            let problem =
                format!("{} entries say what counts in sequence {i}, for {} tokens", row.len(), size[1]);
            return Err(HookError::Tokens(problem));
        }
        let hidden =
            Tensor::f_from_slice(&hidden.concat())?.f_reshape(size)?.f_to_device(self.counted.device())?;
        self.counted = self.counted.f_logical_and(&hidden.f_logical_not()?)?;
        Ok(self)
    }

    fn pad_on(side: Side, rows: &[Vec<i64>], pad: i64, special: &[i64]) -> Result<Self> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if rows.iter().all(|row| row.len() == longest) {
            return Self::new(rows, special);
        }
        if let Some(i) = rows.iter().position(Vec::is_empty) {
            return Err(HookError::Tokens(format!("sequence {i} has no tokens")));
        }
        let fill = |row: &Vec<i64>, with: i64, own: Option<i64>| {
            let own = row.iter().map(|&id| own.unwrap_or(id));
            let padding = std::iter::repeat_n(with, longest - row.len());
            match side {
                Side::Left => padding.chain(own).collect::<Vec<i64>>(),
                Side::Right => own.chain(padding).collect(),
            }
        };
        let ids: Vec<_> = rows.iter().map(|row| fill(row, pad, None)).collect();
        let mask: Vec<_> = rows.iter().map(|row| fill(row, 0, Some(1))).collect();
        Self::build(&ids, Some(&mask), None, special)
    }

    /// A batch with an attention mask of the same shape: 1 where a token is, 0 where padding is.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a mask of another shape or with other values.
    pub fn with_mask(rows: &[Vec<i64>], mask: &[Vec<i64>], special: &[i64]) -> Result<Self> {
        Self::build(rows, Some(mask), None, special)
    }

    fn build(
        rows: &[Vec<i64>],
        mask: Option<&[Vec<i64>]>,
        documents: Option<&[Vec<i64>]>,
        special: &[i64],
    ) -> Result<Self> {
        let bad = |problem: String| Err(HookError::Tokens(problem));
        let Some(first) = rows.first() else { return bad("a batch needs at least one sequence".to_owned()) };
        let pos = first.len();
        for (i, row) in rows.iter().enumerate() {
            if row.is_empty() {
                return bad(format!("sequence {i} has no tokens"));
            }
            if row.len() != pos {
                return bad(format!("sequence {i} has {} tokens, but sequence 0 has {pos}", row.len()));
            }
            if let Some(id) = row.iter().find(|id| **id < 0) {
                return bad(format!("sequence {i} holds the token id {id}, which is negative"));
            }
        }
        if let Some(mask) = mask {
            if mask.len() != rows.len() {
                return bad(format!(
                    "the attention mask has {} rows for {} sequences",
                    mask.len(),
                    rows.len()
                ));
            }
            if let Some((i, m)) = mask.iter().enumerate().find(|(_, m)| m.len() != pos) {
                return bad(format!(
                    "the attention mask of sequence {i} has {} entries for {pos} tokens",
                    m.len()
                ));
            }
            if mask.iter().flatten().any(|m| !matches!(m, 0 | 1)) {
                return bad("the attention mask must hold 0 and 1 alone".to_owned());
            }
            if let Some(i) = mask.iter().position(|m| m.iter().all(|v| *v == 0)) {
                return bad(format!("the attention mask hides all of sequence {i}"));
            }
        }
        if let Some(documents) = documents {
            check_documents(documents, rows.len(), pos)?;
        }
        let size = [rows.len() as i64, pos as i64];
        let as_tensor = |values: Vec<i64>| Tensor::f_from_slice(&values)?.f_reshape(size);
        let ids = as_tensor(rows.concat())?;
        let attended = mask.map(|m| as_tensor(m.concat())?.f_to_kind(Kind::Bool)).transpose()?;
        let mut counts: Vec<i64> = rows.iter().flatten().map(|id| i64::from(!special.contains(id))).collect();
        for (count, seen) in counts.iter_mut().zip(mask.into_iter().flatten().flatten()) {
            *count &= seen;
        }
        let counted = as_tensor(counts)?.f_to_kind(Kind::Bool)?;
        let positions = positions_of(rows.len(), pos, mask, documents)?;
        let documents = documents.map(|d| as_tensor(d.concat())).transpose()?;
        Ok(Self { rows: rows.to_vec(), ids, attended, documents, positions, counted })
    }

    /// Some of the sequences, in the order asked for; one may come more than once.
    ///
    /// # Errors
    /// [`HookError::Tokens`] for a sequence that is not there, or none at all.
    pub fn select(&self, sequences: &[usize]) -> Result<Self> {
        if sequences.is_empty() {
            return Err(HookError::Tokens("a batch needs at least one sequence".to_owned()));
        }
        let row = |i: usize| {
            let missing = || HookError::Tokens(format!("there is no sequence {i} among {}", self.rows.len()));
            self.rows.get(i).cloned().ok_or_else(missing)
        };
        let rows = sequences.iter().map(|i| row(*i)).collect::<Result<_>>()?;
        let index = Tensor::f_from_slice(&sequences.iter().map(|i| *i as i64).collect::<Vec<_>>())?;
        let index = index.f_to_device(self.ids.device())?;
        let of = |t: &Tensor| t.f_index_select(0, &index);
        Ok(Self {
            rows,
            ids: of(&self.ids)?,
            attended: self.attended.as_ref().map(of).transpose()?,
            documents: self.documents.as_ref().map(of).transpose()?,
            positions: self.positions.as_ref().map(of).transpose()?,
            counted: of(&self.counted)?,
        })
    }

    /// Moves the batch to a device.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(Self {
            rows: self.rows.clone(),
            ids: self.ids.f_to_device(device)?,
            attended: on_device(self.attended.as_ref(), device)?,
            documents: on_device(self.documents.as_ref(), device)?,
            positions: on_device(self.positions.as_ref(), device)?,
            counted: self.counted.f_to_device(device)?,
        })
    }

    /// The ids: `[batch, pos]`, int64.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The ids as plain numbers, a row a sequence.
    pub fn rows(&self) -> &[Vec<i64>] {
        &self.rows
    }

    /// Which positions attention may see, `[batch, pos]`, bool; `None` where it may see all.
    pub fn attended(&self) -> Option<&Tensor> {
        self.attended.as_ref()
    }

    /// Which document each position belongs to, `[batch, pos]`, int64; `None` where a row is one text.
    pub fn documents(&self) -> Option<&Tensor> {
        self.documents.as_ref()
    }

    /// Where each position stands in its text, `[batch, pos]`, int64, counted from its first token; `None` where that is
    /// the column in every row. Rotary embeddings turn by these, so that padding on the left and neighbours in a packed row
    /// change nothing.
    pub fn positions(&self) -> Option<&Tensor> {
        self.positions.as_ref()
    }

    /// Which positions count in metrics: `[batch, pos]`, bool.
    pub fn counted(&self) -> &Tensor {
        &self.counted
    }

    /// How many sequences.
    pub fn batch(&self) -> i64 {
        self.rows.len() as i64
    }

    /// How many positions, padding included.
    pub fn pos(&self) -> i64 {
        self.rows.first().map_or(0, Vec::len) as i64
    }

    /// Refuses ids that a model does not have, and sequences longer than its context. Models call this before they embed.
    ///
    /// # Errors
    /// [`HookError::TokenOutOfRange`], [`HookError::Tokens`].
    pub fn check(&self, dims: &ModelDims) -> Result<()> {
        if let Some(&id) = self.rows.iter().flatten().find(|id| **id >= dims.d_vocab as i64) {
            return Err(HookError::TokenOutOfRange { id, d_vocab: dims.d_vocab });
        }
        if self.pos() > dims.n_ctx as i64 {
            let problem =
                format!("a sequence of {} tokens exceeds the model's context of {}", self.pos(), dims.n_ctx);
            return Err(HookError::Tokens(problem));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Left,
    Right,
}

fn on_device(tensor: Option<&Tensor>, device: Device) -> Result<Option<Tensor>> {
    Ok(tensor.map(|t| t.f_to_device(device)).transpose()?)
}

fn check_documents(documents: &[Vec<i64>], batch: usize, pos: usize) -> Result<()> {
    let bad = |problem: String| Err(HookError::Tokens(problem));
    if documents.len() != batch {
        return bad(format!(
            "there are document numbers for {} rows, but {batch} sequences",
            documents.len()
        ));
    }
    for (i, row) in documents.iter().enumerate() {
        if row.len() != pos {
            return bad(format!("sequence {i} has {} document numbers for {pos} tokens", row.len()));
        }
        let mut seen = std::collections::HashSet::new();
        let pieces = row.chunk_by(|a, b| a == b).filter_map(|piece| piece.first());
        for number in pieces {
            if !seen.insert(number) {
                return bad(format!("document {number} of sequence {i} is not in one piece"));
            }
        }
    }
    Ok(())
}

/// Columns counted from the first token of each text: `[batch, pos]`; `None` where that is the column everywhere.
fn positions_of(
    batch: usize,
    pos: usize,
    mask: Option<&[Vec<i64>]>,
    documents: Option<&[Vec<i64>]>,
) -> Result<Option<Tensor>> {
    let row = |i: usize| {
        let attended = |p: usize| mask.and_then(|m| m.get(i)).and_then(|m| m.get(p)) != Some(&0);
        let document = |p: usize| documents.and_then(|d| d.get(i)).and_then(|d| d.get(p));
        let mut start: Option<usize> = None;
        let mut numbers = Vec::with_capacity(pos);
        for p in 0..pos {
            if p > 0 && document(p) != document(p - 1) {
                start = None;
            }
            if start.is_none() && attended(p) {
                start = Some(p);
            }
            numbers.push(start.map_or(0, |start| (p - start) as i64));
        }
        numbers
    };
    let numbers: Vec<Vec<i64>> = (0..batch).map(row).collect();
    if numbers.iter().all(|row| row.iter().enumerate().all(|(column, p)| *p == column as i64)) {
        return Ok(None);
    }
    Ok(Some(Tensor::f_from_slice(&numbers.concat())?.f_reshape([batch as i64, pos as i64])?))
}
