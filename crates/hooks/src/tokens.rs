use std::{fmt, str::FromStr};

use tch::{Device, Kind, Tensor};

use crate::{HookError, ModelDims, Result, error::one_line};

/// Token ids, with which of them attention may see and which of them count.
///
/// # Invariants
/// * `ids`, `attended` and `counted` are all `[batch, pos]`, with at least one sequence and one position.
/// * `counted` is false wherever `attended` is, and at every special token (BOS, EOS, PAD): Gemma Scope excludes these from
///   training and evaluation (Gemma Scope, section 3.1 and 4).
#[derive(Debug)]
pub struct TokenBatch {
    rows: Vec<Vec<i64>>,
    ids: Tensor,
    attended: Option<Tensor>,
    counted: Tensor,
}

impl TokenBatch {
    /// A batch of sequences of one length. `special` lists the ids that never count.
    ///
    /// # Errors
    /// [`HookError::Tokens`]: no sequences, an empty one, unequal lengths, or a negative id.
    pub fn new(rows: &[Vec<i64>], special: &[i64]) -> Result<Self> {
        Self::build(rows, None, special)
    }

    /// A batch of sequences of any length, padded on the right with `pad`, which attention does not see.
    ///
    /// # Errors
    /// [`HookError::Tokens`]: no sequences, an empty one, or a negative id.
    pub fn padded(rows: &[Vec<i64>], pad: i64, special: &[i64]) -> Result<Self> {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        if rows.iter().all(|row| row.len() == longest) {
            return Self::new(rows, special);
        }
        if let Some(i) = rows.iter().position(Vec::is_empty) {
            return Err(HookError::Tokens(format!("sequence {i} has no tokens")));
        }
        let fill = |row: &Vec<i64>, with: i64, own: Option<i64>| {
            let head = row.iter().map(|&id| own.unwrap_or(id));
            head.chain(std::iter::repeat(with)).take(longest).collect::<Vec<i64>>()
        };
        let ids: Vec<_> = rows.iter().map(|row| fill(row, pad, None)).collect();
        let mask: Vec<_> = rows.iter().map(|row| fill(row, 0, Some(1))).collect();
        Self::build(&ids, Some(&mask), special)
    }

    /// A batch with an attention mask of the same shape: 1 where a token is, 0 where padding is.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a mask of another shape or with other values.
    pub fn with_mask(rows: &[Vec<i64>], mask: &[Vec<i64>], special: &[i64]) -> Result<Self> {
        Self::build(rows, Some(mask), special)
    }

    fn build(rows: &[Vec<i64>], mask: Option<&[Vec<i64>]>, special: &[i64]) -> Result<Self> {
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
        let size = [rows.len() as i64, pos as i64];
        let as_tensor = |values: Vec<i64>| Tensor::f_from_slice(&values)?.f_reshape(size);
        let ids = as_tensor(rows.concat())?;
        let attended = mask.map(|m| as_tensor(m.concat())?.f_to_kind(Kind::Bool)).transpose()?;
        let mut counts: Vec<i64> = rows.iter().flatten().map(|id| i64::from(!special.contains(id))).collect();
        for (count, seen) in counts.iter_mut().zip(mask.into_iter().flatten().flatten()) {
            *count &= seen;
        }
        let counted = as_tensor(counts)?.f_to_kind(Kind::Bool)?;
        Ok(Self { rows: rows.to_vec(), ids, attended, counted })
    }

    /// Moves the batch to a device.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(Self {
            rows: self.rows.clone(),
            ids: self.ids.f_to_device(device)?,
            attended: self.attended.as_ref().map(|m| m.f_to_device(device)).transpose()?,
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

/// A set of positions, for splicing, editing and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Positions {
    /// All but BOS, EOS and PAD.
    #[default]
    Counted,
    /// Every position but padding.
    All,
    /// From `start` on, up to but without `end`; padding left out.
    Range {
        /// The first position.
        start: i64,
        /// The first position after them; `None` for the end of the sequence.
        end: Option<i64>,
    },
}

impl Positions {
    /// Where the set holds in a batch: `[batch, pos]`, bool.
    ///
    /// # Errors
    /// [`HookError::Positions`] for a range that holds no position of this batch.
    pub fn mask(self, tokens: &TokenBatch) -> Result<Tensor> {
        let size = [tokens.batch(), tokens.pos()];
        let on = (Kind::Bool, tokens.ids().device());
        match self {
            Self::Counted => Ok(tokens.counted().shallow_clone()),
            Self::All => within(Tensor::f_ones(size, on)?, tokens),
            Self::Range { start, end } => {
                let end = end.unwrap_or(tokens.pos());
                if start < 0 || start >= end || end > tokens.pos() {
                    let problem = format!("positions {self} are not within the {} of the text", tokens.pos());
                    return Err(HookError::Positions(problem));
                }
                let mask = Tensor::f_zeros(size, on)?;
                let _ = mask.f_narrow(1, start, end - start)?.f_fill_(1)?;
                within(mask, tokens)
            }
        }
    }
}

/// Padding is in no set of positions: it is there for the batch's sake, and no result may depend on that.
fn within(mask: Tensor, tokens: &TokenBatch) -> Result<Tensor> {
    match tokens.attended() {
        Some(attended) => Ok(mask.f_logical_and(attended)?),
        None => Ok(mask),
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted => f.write_str("counted"),
            Self::All => f.write_str("all"),
            Self::Range { start, end: Some(end) } => write!(f, "{start}:{end}"),
            Self::Range { start, end: None } => write!(f, "{start}:"),
        }
    }
}

impl FromStr for Positions {
    type Err = HookError;

    /// Reads `counted`, `all`, or a half-open range `i:j` (either side may be left out).
    fn from_str(text: &str) -> Result<Self> {
        let range = || {
            let (start, end) = text.split_once(':')?;
            let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse::<i64>().ok())?;
            let start = if start.is_empty() { 0 } else { number(start)? };
            let end = if end.is_empty() { None } else { Some(number(end).filter(|e| *e > start)?) };
            Some(Self::Range { start, end })
        };
        match text {
            "counted" => Ok(Self::Counted),
            "all" => Ok(Self::All),
            _ => range().ok_or_else(|| {
                let shown = one_line(text);
                HookError::Positions(format!(
                    "`{shown}` is no set of positions: expected `counted`, `all` or `i:j`"
                ))
            }),
        }
    }
}
