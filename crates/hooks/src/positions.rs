use std::{fmt, str::FromStr};

use tch::{Kind, Tensor};

use crate::{HookError, Result, TokenBatch, error::one_line};

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

impl Positions {
    /// The set over `tokens` and whatever generation adds to them: new tokens count, and a range may reach beyond the
    /// prompt. Positions are columns of the batch, as in [`mask`](Self::mask).
    ///
    /// # Errors
    /// [`HookError::Positions`] for a range that is none.
    pub fn over(self, tokens: &TokenBatch) -> Result<PositionSet> {
        let mask = match self {
            Self::Range { start, end } => {
                if start < 0 || end.is_some_and(|end| end <= start) {
                    return Err(HookError::Positions(format!("`{self}` is no range of positions")));
                }
                let pos = tokens.pos();
                let end = end.unwrap_or(pos).min(pos);
                let mask = Tensor::f_zeros([tokens.batch(), pos], (Kind::Bool, tokens.ids().device()))?;
                if start < end {
                    let _ = mask.f_narrow(1, start, end - start)?.f_fill_(1)?;
                }
                within(mask, tokens)?
            }
            _ => self.mask(tokens)?,
        };
        Ok(PositionSet { mask, beyond: Some(self) })
    }

    fn holds_beyond(self, pos: i64) -> bool {
        match self {
            Self::Counted | Self::All => true,
            Self::Range { start, end } => pos >= start && end.is_none_or(|end| pos < end),
        }
    }
}

/// The positions at which an edit acts, over a whole sequence, whatever part of it a run sees at a time.
///
/// Made of a mask, or by [`Positions::over`] for a sequence that generation will make longer.
#[derive(Debug)]
pub struct PositionSet {
    /// `[batch, pos]`, bool.
    mask: Tensor,
    /// What holds of positions beyond the mask.
    beyond: Option<Positions>,
}

impl From<Tensor> for PositionSet {
    /// Where `mask` (`[batch, pos]`, bool) is true. A run that goes beyond the mask is an error.
    fn from(mask: Tensor) -> Self {
        Self { mask, beyond: None }
    }
}

impl PositionSet {
    /// The set for a run that begins at column 0 and has `len` columns. A mask is taken as it is, so that one of another
    /// length is noticed.
    pub(crate) fn whole(&self, len: i64) -> Result<Tensor> {
        match self.beyond {
            None => Ok(self.mask.shallow_clone()),
            Some(_) => self.columns(0, len),
        }
    }

    /// The columns from `first` on, `len` of them: `[batch, len]`, bool.
    ///
    /// # Errors
    /// [`HookError::Positions`] for columns beyond a set that was made of a mask, or before the first.
    pub fn columns(&self, first: i64, len: i64) -> Result<Tensor> {
        if first < 0 || len < 0 {
            return Err(HookError::Positions(format!("there are no {len} positions from {first} on")));
        }
        let pos = self.mask.size().get(1).copied().unwrap_or(0);
        let known = (pos - first).clamp(0, len);
        let head = if known > 0 { Some(self.mask.f_narrow(1, first, known)?) } else { None };
        if known == len {
            return head.map_or_else(|| Ok(self.mask.f_narrow(1, 0, 0)?), Ok);
        }
        let Some(positions) = self.beyond else {
            let problem = format!("the set covers {pos} positions, but the run goes on to {}", first + len);
            return Err(HookError::Positions(problem));
        };
        let batch = self.mask.size().first().copied().unwrap_or(0);
        let holds: Vec<bool> = (first + known..first + len).map(|p| positions.holds_beyond(p)).collect();
        let tail = Tensor::f_from_slice(&holds)?.f_to_device(self.mask.device())?;
        let tail = tail.f_unsqueeze(0)?.f_expand([batch, len - known], false)?;
        match head {
            Some(head) => Ok(Tensor::f_cat(&[head, tail], 1)?),
            None => Ok(tail),
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
