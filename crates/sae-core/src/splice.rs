use hooks::{BoxError, Hook, PositionSet, Visit, edit::only_within};
use tch::Tensor;

use crate::{FeatureId, Result, SaeError, SaeExt as _, SparseAutoencoder, as_input, sae::expect_width};

/// An SAE in the place of an activation: a hook for the SAE's site.
///
/// [`reconstruction`](Self::reconstruction) replaces x by x̂. [`clamp`](Self::clamp) sets latents first, and
/// [`keep_error`](Self::keep_error) adds back what the SAE does not explain, x − x̂, so that only the clamped latents change
/// anything. [`at`](Self::at) leaves all but the chosen positions as they were: Gemma Scope's metrics leave BOS, EOS and PAD
/// unreplaced (section 4).
#[derive(Debug)]
pub struct Splice<'s> {
    sae: &'s dyn SparseAutoencoder,
    clamps: Vec<(FeatureId, f64)>,
    keep_error: bool,
    positions: Option<PositionSet>,
}

impl<'s> Splice<'s> {
    /// Replaces the activation by the SAE's reconstruction of it.
    pub fn reconstruction(sae: &'s dyn SparseAutoencoder) -> Self {
        Self { sae, clamps: Vec::new(), keep_error: false, positions: None }
    }

    /// Sets a latent to a value, whatever it was, before decoding. Zero ablates it.
    ///
    /// # Errors
    /// [`SaeError::Feature`] for a latent that the SAE does not have.
    pub fn clamp(mut self, feature: FeatureId, value: f64) -> Result<Self> {
        self.sae.check_feature(feature)?;
        self.clamps.push((feature, value));
        Ok(self)
    }

    /// Adds the SAE's error back: `x + (decode(clamped f) − decode(f))`.
    #[must_use]
    pub fn keep_error(mut self) -> Self {
        self.keep_error = true;
        self
    }

    /// Replaces only at these positions: a mask (`[batch, pos]`, bool; see [`Positions::mask`](hooks::Positions::mask)), or
    /// what [`Positions::over`](hooks::Positions::over) makes for a text that generation goes on with.
    #[must_use]
    pub fn at(mut self, positions: impl Into<PositionSet>) -> Self {
        self.positions = Some(positions.into());
        self
    }

    fn apply(&self, at: Visit, act: &Tensor) -> Result<Tensor> {
        let x = as_input(at.site, act)?;
        expect_width("the input", &x, "d_in", self.sae.d_in())?;
        if self.sae.is_transcoder() {
            let problem = "a transcoder is no splice: its output stands for another site's activation";
            return Err(SaeError::Parts(problem.to_owned()));
        }
        let new = match (self.clamps.is_empty(), self.keep_error) {
            (true, true) => x.shallow_clone(),
            (true, false) => self.sae.reconstruct(&x)?,
            (false, keep_error) => {
                let features = self.sae.encode(&x)?;
                let mut clamped = features.shallow_clone();
                for (feature, value) in &self.clamps {
                    let latent = Tensor::f_from_slice(&[feature.0 as i64])?.f_to_device(features.device())?;
                    clamped = clamped.f_index_fill(-1, &latent, *value)?;
                }
                let output = |features: &Tensor| self.sae.finish(&self.sae.decode(features)?, &x);
                let new = output(&clamped)?;
                // The difference first: where no clamp changes a latent it is zero, and x stays as it is to the last bit.
                if keep_error { x.f_add(&new.f_sub(&output(&features)?)?)? } else { new }
            }
        };
        let new = new.f_reshape(act.size())?.f_to_kind(act.f_kind()?)?;
        match &self.positions {
            None => Ok(new),
            Some(positions) => Ok(only_within(positions, at, act, &new)?),
        }
    }
}

impl Hook for Splice<'_> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        Ok(Some(self.apply(at, act)?))
    }
}
