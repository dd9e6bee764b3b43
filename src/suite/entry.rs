use std::{fmt, str::FromStr};

use hooks::HookPoint;
use hub::{Hub, HubError};
use sae_core::{Bf16Sae, Matrix, OpenOptions, Sae, SparseAutoencoder};
use serde::{Deserialize, Serialize};

use super::{Result, SuiteError, fingerprint};
use crate::load::{LoadedSae, load_sae};

/// The dtype that an SAE computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaeDtype {
    /// float32.
    #[default]
    F32,
    /// Weights, biases, inputs and latents rounded to bfloat16, thresholds in float32 (Gemma Scope, appendix D.4).
    Bf16,
}

impl fmt::Display for SaeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for SaeDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("`{text}` is no dtype of an SAE: expected `f32` or `bf16`")),
        }
    }
}

/// An SAE of a suite: by name, so that it is in memory only while it is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name in reports: the one it was asked for by, `canonical` resolved, and `#bf16` behind it where both dtypes are asked
    /// for.
    pub id: String,
    /// The name by which it is opened.
    pub name: String,
    /// [`fingerprint`](super::fingerprint) of its parameters, so that another SAE of the same name is noticed.
    pub fingerprint: String,
    /// The site that it reads.
    pub site: HookPoint,
    /// The site at which its output is put.
    pub site_out: HookPoint,
    /// The dtype that it computes in.
    pub dtype: SaeDtype,
    /// Bytes that its matrices take in memory.
    pub bytes: u64,
}

impl Entry {
    /// Looks at an SAE without holding its matrices: an entry for each dtype.
    ///
    /// # Errors
    /// As [`load_sae`]; a `site` other than the one that the SAE itself tells; a transcoder whose output has no known place.
    pub fn of(
        name: &str,
        site: Option<HookPoint>,
        dtypes: &[SaeDtype],
        options: &OpenOptions,
        hub: impl FnOnce() -> Result<Hub, HubError>,
    ) -> Result<Vec<Self>> {
        let look = OpenOptions { hold_up_to: 0, device: tch::Device::Cpu };
        let LoadedSae { id, site, site_out, sae, about } = load_sae(name, site, &look, hub)?;
        if let Some(told) = about.site.filter(|told| *told != site) {
            return Err(SuiteError::OtherSite { id, told, asked: site });
        }
        let site_out = site_out.ok_or_else(|| SuiteError::UnknownOutput(id.clone()))?;
        // What may stay in its file takes no memory: see `OpenOptions::hold_up_to`.
        let in_file = |matrix: &Matrix, dtype: SaeDtype, bytes: u64| {
            let left =
                options.device == tch::Device::Cpu && dtype == SaeDtype::F32 && matrix.held().is_none();
            left && bytes > options.hold_up_to
        };
        let bytes = |dtype: SaeDtype| -> u64 {
            let matrices = [(sae.encoder(), sae.d_in()), (sae.decoder(), sae.d_out())];
            let of = matrices.map(|(matrix, width)| {
                let bytes = sae.d_sae() as u64 * width as u64 * 4;
                if in_file(matrix, dtype, bytes) { 0 } else { bytes }
            });
            of.iter().sum::<u64>() + sae.w_skip().map_or(0, |skip| skip.numel() as u64 * 4)
        };
        let fingerprint = of_sae(&sae)?;
        let entry = |dtype: &SaeDtype| {
            let mark = if *dtype == SaeDtype::Bf16 && dtypes.len() > 1 { "#bf16" } else { "" };
            let (id, name, fingerprint) = (format!("{id}{mark}"), name.to_owned(), fingerprint.clone());
            Self { id, name, fingerprint, site, site_out, dtype: *dtype, bytes: bytes(*dtype) }
        };
        Ok(dtypes.iter().map(entry).collect())
    }

    /// Opens it.
    pub(super) fn open(
        &self,
        options: &OpenOptions,
        hub: impl FnOnce() -> Result<Hub, HubError>,
    ) -> Result<Box<dyn SparseAutoencoder>> {
        let loaded = load_sae(&self.name, Some(self.site), options, hub)?;
        Ok(match self.dtype {
            SaeDtype::F32 => Box::new(loaded.sae),
            SaeDtype::Bf16 => Box::new(Bf16Sae::new(loaded.sae)?),
        })
    }
}

/// The fingerprint of an SAE that may lie in its file: of its vectors, and of what some latents read and write.
fn of_sae(sae: &Sae) -> Result<String> {
    const LATENTS: i64 = 16;
    let mut tensors: Vec<(String, tch::Tensor)> =
        sae.vectors().into_iter().map(|(name, t)| (name.to_owned(), t.shallow_clone())).collect();
    for i in 0..LATENTS.min(sae.d_sae()) {
        let latent = i * sae.d_sae() / LATENTS.min(sae.d_sae());
        tensors.push((format!("W_dec[{latent}]"), sae.w_dec(latent..latent + 1)?));
        if let Some(w_enc) = sae.w_enc(latent..latent + 1)? {
            tensors.push((format!("W_enc[:, {latent}]"), w_enc));
        }
    }
    tensors.extend(sae.w_skip().map(|t| ("W_skip".to_owned(), t.shallow_clone())));
    fingerprint(tensors)
}

/// Divides entries into groups that fit into `hold` bytes side by side, those of one site together as far as they do: each group
/// is judged in a pass of its own. An SAE that is larger makes a group alone.
pub(super) fn groups(entries: &[Entry], hold: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&i| (entries[i].site_out, entries[i].site));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut held = 0u64;
    for i in order {
        let bytes = entries[i].bytes;
        match groups.last_mut() {
            Some(group) if held.saturating_add(bytes) <= hold => group.push(i),
            _ => {
                groups.push(vec![i]);
                held = 0;
            }
        }
        held = held.saturating_add(bytes);
    }
    groups
}
