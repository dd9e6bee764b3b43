//! The embedded default: a Gemma 2 model of 4.6 million parameters and a sparse autoencoder, trained by this project on
//! public-domain prose (`assets/MODEL_CARD.md`). Small enough to ship, real enough to look into.

use model::{Gemma2, Gemma2Config, LoadOptions, ModelError, Tokenizer};
use sae::{OpenOptions, Sae, SaeError, formats::gemma_scope};
use tensors::{NpzFile, WeightSource};

use crate::{model, sae, tensors};

const CONFIG: &str = include_str!("../assets/tiny-gemma2/config.json");
const WEIGHTS: &[u8] = include_bytes!("../assets/tiny-gemma2/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../assets/tiny-gemma2/tokenizer.json");

/// Name and `params.npz` of each embedded SAE.
static SAES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/tiny_saes.rs"));

/// The model.
///
/// # Errors
/// None but libtorch's, as when there is no memory.
pub fn model(options: &LoadOptions) -> Result<Gemma2, ModelError> {
    let config = Gemma2Config::from_json("tiny/config.json", CONFIG)?;
    Gemma2::from_source(config, WeightSource::from_bytes("tiny/model.safetensors", WEIGHTS)?, options)
}

/// Its tokenizer.
///
/// # Errors
/// None: the embedded file is sound.
pub fn tokenizer() -> Result<Tokenizer, ModelError> {
    Tokenizer::from_bytes("tiny/tokenizer.json", TOKENIZER)
}

/// The names of the embedded SAEs: `tiny/layer_3/width_2k/average_l0_40`, or the like. The first is the default.
pub fn sae_ids() -> impl Iterator<Item = &'static str> {
    SAES.iter().map(|(id, _)| *id)
}

/// An embedded SAE by its name; `None` where there is none of this name.
///
/// # Errors
/// None but libtorch's, as when there is no memory.
pub fn sae(id: &str) -> Option<Result<Sae, SaeError>> {
    let (id, bytes) = SAES.iter().find(|(name, _)| *name == id)?;
    let open = |npz| Ok(gemma_scope::read(npz, &OpenOptions::default())?.sae);
    Some(NpzFile::from_bytes(id, bytes).map_err(SaeError::from).and_then(open))
}
