use std::collections::BTreeMap;

use tch::Tensor;

use crate::{Axis, BoxError, Hook, HookError, HookPoint, Result, Visit};

/// Keeps the activations of the sites it is placed at. A second run overwrites the first.
///
/// The steps of a generation are one run: a step adds its positions to those right before it. (Attention scores and patterns, whose axis of keys grows,
/// are those of the last step.)
///
/// A kept tensor shares its memory with the model's own; gradients flow through it where they are on.
#[derive(Debug, Default)]
pub struct ActivationCache {
    acts: BTreeMap<HookPoint, Kept>,
}

#[derive(Debug)]
struct Kept {
    act: Tensor,
    /// The column of the whole sequence at which the next step would begin.
    end: i64,
}

impl ActivationCache {
    /// The activation at a site.
    ///
    /// # Errors
    /// [`HookError::NotCaptured`].
    pub fn get(&self, site: HookPoint) -> Result<&Tensor> {
        self.acts.get(&site).map(|kept| &kept.act).ok_or(HookError::NotCaptured(site))
    }

    /// Takes the activation at a site out of the cache.
    ///
    /// # Errors
    /// [`HookError::NotCaptured`].
    pub fn take(&mut self, site: HookPoint) -> Result<Tensor> {
        self.acts.remove(&site).map(|kept| kept.act).ok_or(HookError::NotCaptured(site))
    }

    /// All that was kept.
    pub fn iter(&self) -> impl Iterator<Item = (HookPoint, &Tensor)> {
        self.acts.iter().map(|(site, kept)| (*site, &kept.act))
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
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        let by_position = at.site.axes().starts_with(&[Axis::Batch, Axis::Pos]);
        let end = at.first_pos + act.size().get(1).copied().unwrap_or(0);
        let act = match self.acts.get(&at.site) {
            Some(before) if by_position && at.first_pos > 0 && before.end == at.first_pos => {
                Tensor::f_cat(&[&before.act, act], 1)?
            }
            _ => act.shallow_clone(),
        };
        self.acts.insert(at.site, Kept { act, end });
        Ok(None)
    }
}
