//! SAEs that break one law each, and are otherwise a sound [`Sae`].

use std::sync::atomic::{AtomicUsize, Ordering};

use sae_core::{Result, Sae, SaeError, SparseAutoencoder, SparseFeatures};
use tch::{Kind, Tensor};

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Leaves out the last latent.
    LatentsLost,
    /// Writes one number too many.
    OutputTooWide,
    /// Shows `W_dec` as `[d_out, d_sae]`.
    WDecTransposed,
    /// Shows a `W_dec` that is not what it decodes with.
    WDecScaled,
    /// Subtracts a little from every latent.
    Negative,
    /// Encodes three axes otherwise than two.
    EncodeByAxes,
    /// Decodes three axes otherwise than two.
    DecodeByAxes,
    /// Centres the batch before it encodes.
    EncodeCentres,
    /// Lets a row see the one before it.
    EncodeLooksBack,
    /// Centres the batch after it decoded.
    DecodeCentres,
    /// Gives other values in sparse form.
    SparseValues,
    /// Leaves the last active latent of all out of the sparse form.
    SparseMisses,
    /// Lists a latent in the sparse form that is all but off.
    SparseInvents,
    /// Forgets `b_dec` for sparse features.
    SparseBias,
    /// Decodes sparse features once, and twice as large thereafter.
    Forgetful,
    /// Refuses to encode no rows.
    NoRows,
    /// Takes inputs that are too wide, and reads their beginning.
    AnyInput,
    /// Takes features that are too wide, and reads their beginning.
    AnyFeatures,
    /// Takes sparse features of another width.
    AnySparse,
    /// Stops gradients in the encoder.
    Detached,
}

#[derive(Debug)]
pub(crate) struct Broken {
    sae: Sae,
    fault: Fault,
    shown: Tensor,
    calls: AtomicUsize,
}

impl Broken {
    pub(crate) fn new(sae: Sae, fault: Fault) -> Self {
        let shown = match fault {
            Fault::WDecTransposed => sae.w_dec(0..sae.d_sae()).unwrap().transpose(0, 1),
            Fault::WDecScaled => sae.w_dec(0..sae.d_sae()).unwrap() * 2.0,
            _ => sae.w_dec(0..sae.d_sae()).unwrap(),
        };
        Self { sae, fault, shown, calls: AtomicUsize::new(0) }
    }

    fn b_dec(&self) -> Tensor {
        self.sae
            .parameters()
            .unwrap()
            .into_iter()
            .find(|(name, _)| *name == "b_dec")
            .unwrap()
            .1
            .shallow_clone()
    }
}

impl SparseAutoencoder for Broken {
    fn architecture(&self) -> &'static str {
        "broken"
    }

    fn d_in(&self) -> i64 {
        self.sae.d_in()
    }

    fn d_sae(&self) -> i64 {
        self.sae.d_sae()
    }

    fn d_out(&self) -> i64 {
        self.sae.d_out()
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        if self.fault == Fault::NoRows && x.numel() == 0 {
            return Err(SaeError::Sparse("nothing to encode".to_owned()));
        }
        let x = match self.fault {
            Fault::AnyInput => x.narrow(-1, 0, self.d_in()),
            Fault::EncodeCentres => {
                let rows = x.reshape([-1, self.d_in()]);
                x - rows.mean_dim(Some([0].as_slice()), true, Kind::Float)
            }
            Fault::EncodeLooksBack => {
                let rows = x.reshape([-1, self.d_in()]);
                (&rows + rows.constant_pad_nd([0, 0, 1, -1]) * 0.1).reshape(x.size())
            }
            _ => x.shallow_clone(),
        };
        let features = self.sae.encode(&x)?;
        Ok(match self.fault {
            Fault::LatentsLost => features.narrow(-1, 0, self.d_sae() - 1),
            Fault::Negative => features - 0.1,
            Fault::EncodeByAxes if x.dim() == 3 => features * 2.0,
            Fault::Detached => features.detach(),
            _ => features,
        })
    }

    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        let features = self.encode(x)?;
        match self.fault {
            Fault::SparseValues => SparseFeatures::from_dense(&(features * 1.5)),
            Fault::SparseInvents => SparseFeatures::from_dense(&features.clamp_min(1e-9)),
            Fault::SparseMisses => {
                let all = SparseFeatures::from_dense(&features)?;
                let at = all.nnz() - 1;
                let last = if at < 0 { all.indptr().shallow_clone() } else { all.indptr().clamp_max(at) };
                let kept = |t: &Tensor| t.narrow(0, 0, at.max(0));
                SparseFeatures::new(last, kept(all.indices()), kept(all.values()), self.d_sae())
            }
            _ => SparseFeatures::from_dense(&features),
        }
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        let features = match self.fault {
            Fault::AnyFeatures => features.narrow(-1, 0, self.d_sae()),
            _ => features.shallow_clone(),
        };
        let out = self.sae.decode(&features)?;
        Ok(match self.fault {
            Fault::OutputTooWide => out.constant_pad_nd([0, 1]),
            Fault::DecodeByAxes if features.dim() == 3 => out * 2.0,
            Fault::DecodeCentres => {
                let rows = out.reshape([-1, self.d_out()]);
                &out - rows.mean_dim(Some([0].as_slice()), true, Kind::Float)
            }
            _ => out,
        })
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        match self.fault {
            Fault::AnySparse => self.decode(&features.to_dense()?.narrow(1, 0, self.d_sae())),
            // These must agree with `decode`, so that nothing but their own law is broken.
            Fault::DecodeCentres => self.decode(&features.to_dense()?),
            Fault::SparseBias => Ok(self.sae.decode_sparse(features)? - self.b_dec()),
            Fault::Forgetful if self.calls.fetch_add(1, Ordering::Relaxed) > 0 => {
                Ok(self.sae.decode_sparse(features)? * 2.0)
            }
            _ => self.sae.decode_sparse(features),
        }
    }

    fn w_dec(&self, latents: std::ops::Range<i64>) -> Result<Tensor> {
        Ok(self.shown.f_narrow(0, latents.start, latents.end - latents.start)?)
    }
}
