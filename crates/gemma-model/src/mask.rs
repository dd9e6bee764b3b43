use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::Result;

/// What of a batch attention may see, besides the order of positions: all columns of it, those of a cache included.
#[derive(Debug)]
pub(crate) struct Visibility {
    /// `[batch, columns]`, bool: no padding. `None` where there is none.
    pub(crate) attended: Option<Tensor>,
    /// `[batch, columns]`, int64: a query sees keys of its own document. `None` where a row is one text.
    pub(crate) documents: Option<Tensor>,
    pub(crate) device: Device,
}

impl Visibility {
    /// Which keys are hidden from which queries, both given as columns: true hides. `None` where nothing is hidden.
    ///
    /// Key k is seen by query q iff `q - window < k <= q`, k is no padding, and both are of one document. Queries to which
    /// this leaves no key (padding) see themselves, so that no row of the softmax is empty; nothing that counts ever looks at
    /// them. `window` is `None` in a global block. The queries' own columns must be among the keys.
    ///
    /// # Shapes
    /// `[batch, 1, query_pos, key_pos]`, with batch 1 where neither padding nor documents tell rows apart.
    pub(crate) fn hidden(
        &self,
        queries: &Range<i64>,
        keys: &Range<i64>,
        window: Option<i64>,
    ) -> Result<Option<Tensor>> {
        let plain = self.attended.is_none() && self.documents.is_none();
        let reaches = window.is_none_or(|window| keys.start > queries.end - 1 - window);
        if plain && reaches && queries.end - queries.start == 1 && keys.end == queries.end {
            return Ok(None);
        }
        let size = [queries.end - queries.start, keys.end - keys.start];
        let ones = Tensor::f_ones(size, (Kind::Bool, self.device))?;
        // Entry [i, j] is query `queries.start + i` and key `keys.start + j`: both stand in one column where j - i is this.
        let own = queries.start - keys.start;
        let mut visible = ones.f_tril(own)?;
        if let Some(window) = window {
            visible = visible.f_logical_and(&ones.f_triu(own - window + 1)?)?;
        }
        visible = visible.f_view([1, 1, size[0], size[1]])?;
        if plain {
            return Ok(Some(visible.f_logical_not()?));
        }
        let columns = |t: &Tensor, of: &Range<i64>| t.f_narrow(1, of.start, of.end - of.start);
        if let Some(attended) = &self.attended {
            visible = visible.f_logical_and(&columns(attended, keys)?.f_unsqueeze(1)?.f_unsqueeze(1)?)?;
        }
        if let Some(documents) = &self.documents {
            let of_query = columns(documents, queries)?.f_unsqueeze(1)?.f_unsqueeze(-1)?;
            let of_key = columns(documents, keys)?.f_unsqueeze(1)?.f_unsqueeze(1)?;
            visible = visible.f_logical_and(&of_query.f_eq_tensor(&of_key)?)?;
        }
        let empty = visible.f_any_dim(-1, true)?.f_logical_not()?;
        let itself = ones.f_tril(own)?.f_triu(own)?;
        Ok(Some(visible.f_logical_or(&empty.f_logical_and(&itself)?)?.f_logical_not()?))
    }
}
