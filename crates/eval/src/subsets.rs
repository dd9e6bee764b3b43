use hooks::TokenBatch;

use crate::{EvalError, Result};

/// Which subset of the data each position of a batch belongs to: the Pile's names, the roles of a conversation, files.
#[derive(Debug, Clone, Copy)]
pub struct Subsets<'a> {
    /// The names.
    pub names: &'a [String],
    /// The number of each position's name, a row a sequence, in the batch's shape; `None` for a position of none.
    pub of: &'a [Vec<Option<u32>>],
}

impl Subsets<'_> {
    pub(crate) fn check(&self, tokens: &TokenBatch) -> Result<()> {
        let (batch, pos) = (tokens.batch() as usize, tokens.pos() as usize);
        if self.of.len() != batch || self.of.iter().any(|row| row.len() != pos) {
            return Err(EvalError::Subsets(format!(
                "the subsets of a batch are not [{batch}, {pos}] as its tokens are"
            )));
        }
        match self.of.iter().flatten().flatten().find(|name| **name as usize >= self.names.len()) {
            Some(name) => Err(EvalError::Subsets(format!(
                "a position is of subset {name}, but there are {} names",
                self.names.len()
            ))),
            None => Ok(()),
        }
    }
}
