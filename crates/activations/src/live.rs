use std::{collections::BTreeMap, fmt};

use hooks::{
    Axis, BoxError, Hook, HookError, HookPoint, HookSet, HookedModel, HookedModelExt as _, TokenBatch, Visit,
    observe,
};
use tch::{Kind, Tensor};
use tch_ext::expect_finite;

use crate::{ActivationError, Cursor, Result, Rows, Site, Source, source::no_site_twice};

/// The token batches of one epoch.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<TokenBatch, BoxError>> + 'a>;

type Open<'a> = Box<dyn FnMut() -> Result<Batches<'a>, BoxError> + 'a>;

/// Activations as a model makes them: each token batch is run once, no deeper than the deepest site, and gives the rows of the
/// positions that count at all sites. BOS, EOS and padding do not count (Gemma Scope, section 3.1).
///
/// Rows are float32 on the model's device, in the order of sequences and positions. A chunk is a token batch.
pub struct Live<'a> {
    model: &'a dyn HookedModel,
    sites: Vec<Site>,
    open: Open<'a>,
    epochs: Option<u64>,
    batches: Option<Batches<'a>>,
    epoch: u64,
    /// Batches taken from this epoch.
    taken: u64,
    /// Batches of a whole epoch, once one was seen.
    per_epoch: Option<u64>,
    /// Whether a position counted in this epoch, as far as it was looked at.
    counted: bool,
    at: Cursor,
    /// The batches can't be gone on with: they must be opened anew.
    broken: bool,
}

impl<'a> Live<'a> {
    /// A stream of a text's activations.
    ///
    /// `open` begins an epoch: the same batches each time, on the model's device. `epochs` is how often the text is read, for ever
    /// if `None`.
    ///
    /// # Errors
    /// [`HookError::OutOfRange`] for a site that the model does not have; [`ActivationError::Site`] for one without a row for each
    /// position; [`ActivationError::Twice`] and [`ActivationError::NoSites`].
    pub fn new(
        model: &'a dyn HookedModel,
        sites: &[HookPoint],
        open: impl FnMut() -> Result<Batches<'a>, BoxError> + 'a,
        epochs: Option<u64>,
    ) -> Result<Self> {
        no_site_twice(sites)?;
        let sites = sites.iter().map(|hook| site_of(model, *hook)).collect::<Result<_>>()?;
        Ok(Self {
            model,
            sites,
            open: Box::new(open),
            epochs,
            batches: None,
            epoch: 0,
            taken: 0,
            per_epoch: None,
            counted: false,
            at: Cursor::default(),
            broken: false,
        })
    }

    /// The next token batch, which begins the next epoch where one ends.
    fn next_tokens(&mut self) -> Result<Option<TokenBatch>> {
        loop {
            if self.batches.is_none() {
                if self.epochs.is_some_and(|epochs| self.epoch >= epochs) {
                    return Ok(None);
                }
                self.batches = Some((self.open)().map_err(ActivationError::Text)?);
                (self.taken, self.counted) = (0, false);
            }
            match self.batches.as_mut().and_then(Iterator::next) {
                Some(tokens) => {
                    let tokens = tokens.map_err(ActivationError::Text)?;
                    self.taken += 1;
                    return Ok(Some(tokens));
                }
                None => self.end_epoch()?,
            }
        }
    }

    fn end_epoch(&mut self) -> Result<()> {
        if !self.counted {
            return Err(ActivationError::Empty);
        }
        let (epoch, now) = (self.epoch, self.taken);
        match self.per_epoch {
            Some(before) if before != now => return Err(ActivationError::Changed { epoch, now, before }),
            _ => self.per_epoch = Some(now),
        }
        self.epoch += 1;
        self.batches = None;
        Ok(())
    }

    fn rows_of(&self, tokens: &TokenBatch) -> Result<Rows> {
        let index = tokens.counted().f_flatten(0, 1)?.f_nonzero()?.f_squeeze_dim(1)?;
        if index.numel() == 0 {
            let on = (Kind::Float, index.device());
            let none = self.sites.iter().map(|site| Ok(Tensor::f_zeros([0, site.width], on)?));
            return Ok(Rows { at: none.collect::<Result<_>>()? });
        }
        let mut gather = Gather { index: &index, found: BTreeMap::new() };
        let mut hooks = HookSet::new();
        hooks.on_each(self.sites.iter().map(|site| site.hook), &mut gather);
        self.model.run_to(tokens, hooks)?;
        let mut take = |site: &Site| -> Result<Tensor> {
            let rows = gather.found.remove(&site.hook).ok_or(HookError::NotCaptured(site.hook))?;
            expect_finite(&site.hook.to_string(), &rows)?;
            Ok(rows)
        };
        Rows::new(self.sites.iter().map(&mut take).collect::<Result<_>>()?)
    }

    fn next_chunk(&mut self) -> Result<Option<Rows>> {
        let Some(tokens) = self.next_tokens()? else { return Ok(None) };
        let rows = self.rows_of(&tokens)?;
        self.counted |= !rows.is_empty();
        let left = rows.rows() - i64::try_from(self.at.row).unwrap_or(i64::MAX);
        if left < 0 {
            return Err(self.no_such_place(self.at, format!("that chunk has {} rows", rows.rows())));
        }
        let rows = if self.at.row == 0 { rows } else { rows.narrow(rows.rows() - left, left)? };
        self.at = Cursor { chunk: self.at.chunk + 1, row: 0 };
        Ok(Some(rows))
    }

    /// Begins the text again, and skips token batches up to a chunk: no model runs.
    fn skip_to(&mut self, chunk: u64) -> Result<()> {
        (self.batches, self.epoch, self.taken) = (None, 0, 0);
        let mut before = 0;
        if let Some(per_epoch) = self.per_epoch.filter(|n| *n > 0) {
            self.epoch = (chunk / per_epoch).min(self.epochs.unwrap_or(u64::MAX));
            before = self.epoch * per_epoch;
        }
        while before < chunk {
            if self.next_tokens()?.is_none() {
                let at = Cursor { chunk, row: 0 };
                return Err(self.no_such_place(at, format!("the text has {before} token batches in all")));
            }
            // Nobody looks whether anything counts in what is skipped.
            self.counted = true;
            before += 1;
        }
        Ok(())
    }

    fn no_such_place(&self, at: Cursor, problem: String) -> ActivationError {
        ActivationError::Seek { what: "the live stream".to_owned(), at, problem }
    }
}

impl Source for Live<'_> {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn next(&mut self) -> Result<Option<Rows>> {
        if self.broken {
            self.skip_to(self.at.chunk)?;
        }
        let next = self.next_chunk();
        self.broken = next.is_err();
        next
    }

    /// Token batches before the place are read and thrown away, but no model runs on them.
    fn seek(&mut self, at: Cursor) -> Result<()> {
        if self.broken || at.chunk != self.at.chunk {
            self.broken = true;
            self.skip_to(at.chunk)?;
            self.broken = false;
        }
        self.at = at;
        Ok(())
    }

    fn cursor(&self) -> Cursor {
        self.at
    }
}

impl fmt::Debug for Live<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("sites", &self.sites).field("at", &self.at).finish_non_exhaustive()
    }
}

/// The rows of a site at the positions that count, taken as the model passes: no whole activation is kept.
struct Gather<'i> {
    /// Places in `[batch * pos]`.
    index: &'i Tensor,
    found: BTreeMap<HookPoint, Tensor>,
}

impl Hook for Gather<'_> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        let rows = act.f_flatten(0, 1)?.f_flatten(1, -1)?;
        let index = self.index.f_to_device(rows.device())?;
        self.found.insert(at.site, rows.f_index_select(0, &index)?.f_to_kind(Kind::Float)?);
        Ok(None)
    }
}

fn site_of(model: &dyn HookedModel, hook: HookPoint) -> Result<Site> {
    let mut probe = HookSet::new();
    probe.on(hook, observe(|_, _| Ok(()))).check(model.dims())?;
    if !hook.axes().starts_with(&[Axis::Batch, Axis::Pos]) {
        return Err(ActivationError::Site(hook));
    }
    Ok(Site { hook, width: hook.shape(model.dims(), 1, 1).iter().skip(2).product() })
}
