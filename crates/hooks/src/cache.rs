use std::collections::BTreeMap;

use tch::Tensor;

use crate::{BoxError, Hook, HookError, HookPoint, Result};

/// Keeps the activations of the sites it is placed at. A second run overwrites the first.
///
/// A kept tensor shares its memory with the model's own; gradients flow through it where they are on.
#[derive(Debug, Default)]
pub struct ActivationCache {
    acts: BTreeMap<HookPoint, Tensor>,
}

impl ActivationCache {
    /// The activation at a site.
    ///
    /// # Errors
    /// [`HookError::NotCaptured`].
    pub fn get(&self, site: HookPoint) -> Result<&Tensor> {
        self.acts.get(&site).ok_or(HookError::NotCaptured(site))
    }

    /// Takes the activation at a site out of the cache.
    ///
    /// # Errors
    /// [`HookError::NotCaptured`].
    pub fn take(&mut self, site: HookPoint) -> Result<Tensor> {
        self.acts.remove(&site).ok_or(HookError::NotCaptured(site))
    }

    /// All that was kept.
    pub fn iter(&self) -> impl Iterator<Item = (HookPoint, &Tensor)> {
        self.acts.iter().map(|(site, act)| (*site, act))
    }

    /// How many sites were kept.
    pub fn len(&self) -> usize {
        self.acts.len()
    }

    /// Whether nothing was kept.
    pub fn is_empty(&self) -> bool {
        self.acts.is_empty()
    }
}

impl Hook for ActivationCache {
    fn visit(&mut self, site: HookPoint, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        self.acts.insert(site, act.shallow_clone());
        Ok(None)
    }
}
