use hooks::TokenBatch;
use tch::{Device, Kind, Tensor};

use crate::{Gemma2, ModelError, Result, attention::Keys};

/// Columns that a sliding block's buffer has room for beyond its window, so that it moves its keys once in so many steps.
const SLACK: i64 = 256;

/// The keys and values of what a model has seen of some sequences, so that each further token costs one position.
///
/// Made by [`Gemma2::cache`], filled by [`Gemma2::extend`]. A global block keeps every column; a sliding one the columns that
/// a later query's window can reach, and no others. The columns of all rows end together: prompts of different lengths
/// are padded on the left ([`TokenBatch::left_padded`]).
#[derive(Debug)]
pub struct KvCache {
    /// Which model filled it.
    model: u64,
    batch: i64,
    /// Columns seen.
    len: i64,
    /// `[batch, len]`, bool; `None` where nothing is padding.
    attended: Option<Tensor>,
    pub(crate) layers: Vec<LayerCache>,
}

impl KvCache {
    pub(crate) fn new(model: u64, batch: i64, windows: impl Iterator<Item = Option<i64>>) -> Self {
        let layers = windows.map(LayerCache::new).collect();
        Self { model, batch, len: 0, attended: None, layers }
    }

    /// How many columns have been seen.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many rows.
    pub fn batch(&self) -> i64 {
        self.batch
    }

    /// The bytes that the buffers of keys and values hold.
    pub fn bytes(&self) -> usize {
        let of = |t: &Option<Tensor>| t.as_ref().map_or(0, |t| t.numel() * kind_of(t).elt_size_in_bytes());
        self.layers.iter().map(|layer| of(&layer.k) + of(&layer.v)).sum()
    }

    /// Refuses tokens that don't go on where the cache ends.
    pub(crate) fn check(&self, model: &Gemma2, tokens: &TokenBatch) -> Result<()> {
        let bad = |problem: String| Err(ModelError::Cache(problem));
        if self.model != model.id() {
            return bad("was filled by another model: each model needs its own".to_owned());
        }
        if tokens.batch() != self.batch {
            return bad(format!("holds {} sequences, but {} are to be added to", self.batch, tokens.batch()));
        }
        if tokens.documents().is_some() {
            return bad("holds one text a row: a batch of packed documents can't be added".to_owned());
        }
        let n_ctx = model.config().dims.n_ctx as i64;
        if self.len + tokens.pos() > n_ctx {
            return bad(format!(
                "holds {} positions: {} more exceed the model's context of {n_ctx}",
                self.len,
                tokens.pos()
            ));
        }
        Ok(())
    }

    /// Which columns attention may see once `tokens` are added: `[batch, len + pos]`.
    pub(crate) fn attended_with(&self, tokens: &TokenBatch, device: Device) -> Result<Option<Tensor>> {
        if self.attended.is_none() && tokens.attended().is_none() {
            return Ok(None);
        }
        let or_all = |mask: Option<&Tensor>, len: i64| match mask {
            Some(mask) => mask.f_to_device(device),
            None => Tensor::f_ones([self.batch, len], (Kind::Bool, device)),
        };
        let before = or_all(self.attended.as_ref(), self.len)?;
        Ok(Some(Tensor::f_cat(&[before, or_all(tokens.attended(), tokens.pos())?], 1)?))
    }

    /// Ends a run that went well.
    pub(crate) fn commit(&mut self, pos: i64, attended: Option<Tensor>) {
        self.len += pos;
        self.attended = attended;
    }

    /// Takes back the columns from `end` on, which the last run added.
    pub(crate) fn forget_from(&mut self, end: i64) {
        self.len = end;
        self.attended = self.attended.take().and_then(|mask| mask.f_narrow(1, 0, self.len).ok());
        self.roll_back();
    }

    /// Forgets what a failed run added.
    pub(crate) fn roll_back(&mut self) {
        for layer in &mut self.layers {
            layer.cut_to(self.len);
        }
    }
}

fn kind_of(t: &Tensor) -> Kind {
    t.f_kind().unwrap_or(Kind::Float)
}

/// One block's keys and values: the columns from `first` on, `len` of them, at the beginning of the buffers.
#[derive(Debug)]
pub(crate) struct LayerCache {
    window: Option<i64>,
    first: i64,
    len: i64,
    /// `[batch, n_kv_heads, capacity, d_head]`.
    k: Option<Tensor>,
    v: Option<Tensor>,
}

impl LayerCache {
    fn new(window: Option<i64>) -> Self {
        Self { window, first: 0, len: 0, k: None, v: None }
    }

    /// Adds `[batch, pos, n_kv_heads, d_head]` and returns everything that these positions may look at.
    pub(crate) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<Keys> {
        let (k, v) = (k.f_transpose(1, 2)?, v.f_transpose(1, 2)?);
        let added = k.size().get(2).copied().unwrap_or(0);
        self.make_room(&k, &v, added)?;
        let held = self.len + added;
        let mut views = Vec::with_capacity(2);
        for (buffer, new) in [(&self.k, &k), (&self.v, &v)] {
            let Some(buffer) = buffer else { continue };
            buffer.f_narrow(2, self.len, added)?.f_copy_(new)?;
            views.push(buffer.f_narrow(2, 0, held)?);
        }
        self.len = held;
        match (views.pop(), views.pop()) {
            (Some(v), Some(k)) => Ok(Keys { k, v, first: self.first }),
            _ => Keys::of(&k.f_transpose(1, 2)?, &v.f_transpose(1, 2)?, self.first),
        }
    }

    /// Sees to it that the buffers hold `added` columns more. When they are full, what no window reaches any more goes.
    fn make_room(&mut self, k: &Tensor, v: &Tensor, added: i64) -> Result<()> {
        let capacity = self.k.as_ref().and_then(|k| k.size().get(2).copied()).unwrap_or(0);
        if self.len + added <= capacity {
            return Ok(());
        }
        // The next query's window reaches `window - 1` columns back.
        let kept = self.window.map_or(self.len, |window| self.len.min(window - 1));
        let dropped = self.len - kept;
        let wanted = kept + added;
        let wanted = match self.window {
            Some(window) => wanted + SLACK.min(window),
            None => (wanted * 3 / 2 + 63) / 64 * 64,
        };
        let moved = |old: &Option<Tensor>, new: &Tensor| -> Result<Tensor> {
            let size = new.size();
            let size = match size[..] {
                [batch, n_kv_heads, _, d_head] => [batch, n_kv_heads, wanted, d_head],
                _ => [0, 0, 0, 0],
            };
            let buffer = Tensor::f_empty(size, (new.f_kind()?, new.device()))?;
            if let Some(old) = old.as_ref().filter(|_| kept > 0) {
                buffer.f_narrow(2, 0, kept)?.f_copy_(&old.f_narrow(2, dropped, kept)?)?;
            }
            Ok(buffer)
        };
        let (k, v) = (moved(&self.k, k)?, moved(&self.v, v)?);
        (self.k, self.v) = (Some(k), Some(v));
        self.first += dropped;
        self.len = kept;
        Ok(())
    }

    /// Forgets columns from `end` on.
    fn cut_to(&mut self, end: i64) {
        self.len = self.len.min(end - self.first).max(0);
    }
}
