use native::{Csr, GroupMax, Rule, Selection, TopK};
use tch::{Device, Kind, Tensor};

use crate::{Result, SaeError, SparseFeatures};

/// How pre-activations `π = x W_enc + b_enc` become latents f: what makes an architecture.
#[derive(Debug)]
#[non_exhaustive]
pub enum Activation {
    /// `f = ReLU(π)` (Anthropic, "Towards Monosemanticity" and the April 2024 update).
    Relu,
    /// `f = ReLU(π) ⊙ H(π − θ)`: a latent at its threshold is off (arXiv 2407.14435, section 3). BatchTopK and Matryoshka
    /// SAEs are used with one threshold for all latents (arXiv 2412.06410, section 3).
    JumpRelu {
        /// θ, `[d_sae]`.
        threshold: Tensor,
    },
    /// `f = ReLU(TopK(π))`: the k largest of each token, where they are positive (arXiv 2406.04093, section 2.3). Of equal
    /// ones the lowest latents are kept.
    TopK {
        /// The most latents of a token.
        k: i64,
    },
    /// As TopK, but the largest of each of k groups of consecutive latents (`groupmax` of EleutherAI's sparsify,
    /// `fused_encoder.py`).
    GroupMax {
        /// The number of groups; divides `d_sae`.
        k: i64,
    },
    /// `f = H(π) ⊙ ReLU(exp(r_mag) ⊙ (x W_enc) + b_mag)`, where the gate's bias stands for `b_enc` in π (arXiv 2404.16014,
    /// section 3.2, with tied weights).
    Gated {
        /// Log of the magnitude's scale, `[d_sae]`.
        r_mag: Tensor,
        /// The magnitude's bias, `[d_sae]`.
        b_mag: Tensor,
    },
}

impl Activation {
    /// Its tensors by the field's names, each `[d_sae]`.
    pub fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Relu | Self::TopK { .. } | Self::GroupMax { .. } => Vec::new(),
            Self::JumpRelu { threshold } => vec![("threshold", threshold)],
            Self::Gated { r_mag, b_mag } => vec![("r_mag", r_mag), ("b_mag", b_mag)],
        }
    }

    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Relu => Self::Relu,
            Self::JumpRelu { threshold } => Self::JumpRelu { threshold: threshold.f_to_device(device)? },
            Self::TopK { k } => Self::TopK { k: *k },
            Self::GroupMax { k } => Self::GroupMax { k: *k },
            Self::Gated { r_mag, b_mag } => {
                Self::Gated { r_mag: r_mag.f_to_device(device)?, b_mag: b_mag.f_to_device(device)? }
            }
        })
    }

    /// Latents from `g = x W_enc`, `[n, d_sae]`, and the bias: the definition, in libtorch's operations. NaN is on, so that it
    /// shows.
    pub(crate) fn apply(&self, g: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let pre = g.f_add(bias)?; // π
        match self {
            Self::Relu => Ok(pre.f_relu()?),
            Self::JumpRelu { threshold } => {
                let off = pre.f_le_tensor(threshold)?;
                Ok(pre.f_relu()?.f_masked_fill(&off, 0.0)?)
            }
            Self::TopK { k } => {
                let off = top_k_mask(&pre, *k)?.f_logical_not()?;
                Ok(pre.f_relu()?.f_masked_fill(&off, 0.0)?)
            }
            Self::GroupMax { k } => {
                let off = group_max_mask(&pre, *k)?.f_logical_not()?;
                Ok(pre.f_relu()?.f_masked_fill(&off, 0.0)?)
            }
            Self::Gated { r_mag, b_mag } => {
                let off = pre.f_le(0.0)?;
                let magnitude = g.f_mul(&r_mag.f_exp()?)?.f_add(b_mag)?.f_relu()?;
                Ok(magnitude.f_masked_fill(&off, 0.0)?)
            }
        }
    }
}

/// Where the k largest of each row are: `[n, d_sae]`, bool.
///
/// On the CPU the kernel of the sparse path decides, so that equal values are chosen alike.
fn top_k_mask(pre: &Tensor, k: i64) -> Result<Tensor> {
    let (n, d_sae) = pre.size2()?;
    let mask = Tensor::f_zeros([n, d_sae], (Kind::Bool, pre.device()))?;
    if pre.device() != Device::Cpu {
        let (_, chosen) = pre.f_topk(k.min(d_sae), -1, true, false)?;
        return Ok(mask.f_scatter_value(1, &chosen, 1)?);
    }
    let mut top = TopK::new(n as usize, k as usize);
    if !top.add(&pre.f_detach()?.f_contiguous()?, 0, &vec![0.0; d_sae as usize]) {
        return Err(SaeError::Sparse("pre-activations must be float32".to_owned()));
    }
    let chosen = sparse(top.finish(), d_sae)?;
    let flat = chosen.row_of_each_entry()?.f_mul_scalar(d_sae)?.f_add(chosen.indices())?;
    Ok(mask.f_view(-1)?.f_index_fill(0, &flat, 1)?.f_view([n, d_sae])?)
}

/// Where the largest of each of k groups of each row is: `[n, d_sae]`, bool. (libtorch's `argmax` takes the first, too.)
fn group_max_mask(pre: &Tensor, k: i64) -> Result<Tensor> {
    let (n, d_sae) = pre.size2()?;
    let groups = pre.f_detach()?.f_reshape([n, k, d_sae / k.max(1)])?;
    let chosen = groups.f_argmax(2, true)?;
    let mask = Tensor::f_zeros(groups.size(), (Kind::Bool, pre.device()))?;
    Ok(mask.f_scatter_value(2, &chosen, 1)?.f_reshape([n, d_sae])?)
}

/// The active latents of a block of rows, collected while `g` is made, one tile of latents after another: nothing as large as
/// `[n, d_sae]` ever is.
pub(crate) enum Collector {
    Above { selection: Selection, bias: Vec<f32>, threshold: Vec<f32> },
    Gated { selection: Selection, gate_bias: Vec<f32>, scale: Vec<f32>, bias: Vec<f32> },
    Top { top: TopK, bias: Vec<f32> },
    Groups { groups: GroupMax, bias: Vec<f32> },
}

impl Collector {
    pub(crate) fn new(activation: &Activation, bias: &Tensor, rows: usize) -> Result<Self> {
        let floats = |t: &Tensor| -> Result<Vec<f32>> { Ok(Vec::<f32>::try_from(t)?) };
        let selection = Selection::new(rows);
        Ok(match activation {
            Activation::Relu => {
                let bias = floats(bias)?;
                Self::Above { selection, threshold: vec![0.0; bias.len()], bias }
            }
            Activation::JumpRelu { threshold } => {
                // Below zero it is ReLU that is off.
                let threshold = floats(&threshold.f_clamp_min(0.0)?)?;
                Self::Above { selection, bias: floats(bias)?, threshold }
            }
            Activation::Gated { r_mag, b_mag } => Self::Gated {
                selection,
                gate_bias: floats(bias)?,
                scale: floats(&r_mag.f_exp()?)?,
                bias: floats(b_mag)?,
            },
            Activation::TopK { k } => Self::Top { top: TopK::new(rows, *k as usize), bias: floats(bias)? },
            Activation::GroupMax { k } => {
                let bias = floats(bias)?;
                Self::Groups { groups: GroupMax::new(rows, *k as usize, bias.len() / *k as usize), bias }
            }
        })
    }

    /// Takes `g`, `[rows, len]`, of the latents from `first` on.
    pub(crate) fn add(&mut self, g: &Tensor, first: usize) -> Result<()> {
        let len = g.size2()?.1 as usize;
        fn part(v: &[f32], first: usize, len: usize) -> &[f32] {
            v.get(first..first + len).unwrap_or_default()
        }
        let taken = match self {
            Self::Above { selection, bias, threshold } => {
                let rule =
                    Rule::Above { bias: part(bias, first, len), threshold: part(threshold, first, len) };
                selection.add(g, first as u32, rule)
            }
            Self::Gated { selection, gate_bias, scale, bias } => {
                let rule = Rule::Gated {
                    gate_bias: part(gate_bias, first, len),
                    scale: part(scale, first, len),
                    bias: part(bias, first, len),
                };
                selection.add(g, first as u32, rule)
            }
            Self::Top { top, bias } => top.add(g, first as u32, part(bias, first, len)),
            Self::Groups { groups, bias } => groups.add(g, first as u32, part(bias, first, len)),
        };
        if taken { Ok(()) } else { Err(SaeError::Sparse("pre-activations must be float32".to_owned())) }
    }

    pub(crate) fn finish(self, d_sae: i64) -> Result<SparseFeatures> {
        let csr = match self {
            Self::Above { selection, .. } | Self::Gated { selection, .. } => selection.finish(),
            Self::Top { top, .. } => top.finish(),
            Self::Groups { groups, .. } => groups.finish(),
        };
        sparse(csr, d_sae)
    }
}

fn sparse(csr: Csr, d_sae: i64) -> Result<SparseFeatures> {
    SparseFeatures::from_csr(&csr.indptr, &csr.indices, &csr.values, d_sae)
}
