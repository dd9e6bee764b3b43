use std::{collections::HashMap, fmt};

use tch::{TchError, Tensor};
use tch_ext::TensorError;

use crate::{BoxError, Hook, HookError, HookPoint, ModelDims, Result, Visit};

/// The hooks of one run.
///
/// ```
/// use hooks::{ActivationCache, HookPoint, HookSet, edit};
/// let site: HookPoint = "blocks.1.hook_mlp_out".parse()?;
/// let mut cache = ActivationCache::default();
/// let mut hooks = HookSet::new();
/// hooks.on(site, edit::zero()).on(site, &mut cache); // the cache sees zeros
/// # Ok::<(), hooks::HookError>(())
/// ```
#[derive(Default)]
pub struct HookSet<'h> {
    hooks: Vec<Box<dyn Hook + 'h>>,
    /// Site to its hooks, in the order in which they were added, and whether the site was met.
    sites: HashMap<HookPoint, Site>,
    first_pos: i64,
}

#[derive(Default)]
struct Site {
    hooks: Vec<usize>,
    fired: bool,
}

impl<'h> HookSet<'h> {
    /// A set without hooks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a hook at one site.
    pub fn on(&mut self, site: HookPoint, hook: impl Hook + 'h) -> &mut Self {
        self.on_each([site], hook)
    }

    /// Adds one hook at several sites.
    pub fn on_each(&mut self, sites: impl IntoIterator<Item = HookPoint>, hook: impl Hook + 'h) -> &mut Self {
        let index = self.hooks.len();
        self.hooks.push(Box::new(hook));
        for site in sites {
            self.sites.entry(site).or_default().hooks.push(index);
        }
        self
    }

    /// Whether there is no hook at all.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Whether there is a hook at this site: models ask before they compute what only a hook would see.
    pub fn wants(&self, site: HookPoint) -> bool {
        !self.sites.is_empty() && self.sites.contains_key(&site)
    }

    /// The sites that have hooks, in no order.
    pub fn sites(&self) -> impl Iterator<Item = HookPoint> {
        self.sites.keys().copied()
    }

    /// Shows an activation to the hooks of its site and hands on what they make of it. Models call this at every site.
    ///
    /// # Errors
    /// [`HookError::Hook`] with a hook's own error; [`HookError::Replacement`].
    pub fn at(&mut self, site: HookPoint, act: Tensor) -> Result<Tensor> {
        if self.sites.is_empty() {
            return Ok(act);
        }
        let Some(entry) = self.sites.get_mut(&site) else { return Ok(act) };
        entry.fired = true;
        let mut act = act;
        for &index in &entry.hooks {
            let Some(hook) = self.hooks.get_mut(index) else { continue };
            let failed = |source| HookError::Hook { site, source: without_backtrace(source) };
            let at = Visit { site, first_pos: self.first_pos };
            let answer = hook.visit(at, &act).map_err(failed)?;
            if let Some(new) = answer {
                check_replacement(site, &act, &new)?;
                act = new;
            }
        }
        Ok(act)
    }

    /// Says at which column of the whole sequence the positions that the model sees next begin: models that generate call
    /// this before each step, with what their cache holds.
    pub fn begin_at(&mut self, first_pos: i64) {
        self.first_pos = first_pos;
    }

    /// Refuses sites that a model of `dims` does not have. [`HookedModelExt`](crate::HookedModelExt) does this before a run.
    ///
    /// # Errors
    /// [`HookError::OutOfRange`].
    pub fn check(&self, dims: &ModelDims) -> Result<()> {
        self.sites().try_for_each(|site| site.check(dims.n_layers))
    }

    /// Ends the run.
    ///
    /// # Errors
    /// [`HookError::NeverFired`] names the sites that were not met.
    pub fn finish(self) -> Result<()> {
        let mut sites: Vec<_> = self.sites.iter().filter(|(_, s)| !s.fired).map(|(site, _)| *site).collect();
        sites.sort();
        if sites.is_empty() { Ok(()) } else { Err(HookError::NeverFired { sites }) }
    }
}

/// A hook that says `f_add(…)?` returns libtorch's error, which carries a C++ backtrace: [`TensorError`] keeps its first line.
fn without_backtrace(error: BoxError) -> BoxError {
    match error.downcast::<TchError>() {
        Ok(error) => TensorError::from(*error).into(),
        Err(other) => other,
    }
}

fn check_replacement(site: HookPoint, act: &Tensor, new: &Tensor) -> Result<()> {
    let of = |t: &Tensor| Ok::<_, HookError>((t.size(), t.f_kind()?, t.device()));
    let (expected, got) = (of(act)?, of(new)?);
    if expected == got {
        return Ok(());
    }
    let show = |(size, kind, device): (Vec<i64>, tch::Kind, tch::Device)| {
        format!("{size:?} {} on {device:?}", tch_ext::kind_name(kind))
    };
    Err(HookError::Replacement { site, expected: show(expected), got: show(got) })
}

impl fmt::Debug for HookSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sites: Vec<_> = self.sites().collect();
        sites.sort();
        f.debug_struct("HookSet").field("hooks", &self.hooks.len()).field("sites", &sites).finish()
    }
}
