use std::path::{Path, PathBuf};

use hooks::HookPoint;
use sae_core::{About, Format, SaeError, SparseAutoencoder as _, save};
use serde_json::{Map, json};
use train::run::Member;

use super::{Result, settings::Resolved};

/// One trained SAE's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its name.
    pub name: String,
    /// The folders, SAELens' first where it can hold the SAE.
    pub folders: Vec<(Format, PathBuf)>,
    /// The formats that can't, of SAELens' and Gemma Scope's, and why.
    pub refused: Vec<(Format, String)>,
}

/// Writes an SAE as it stands under `saes/NAME/`: `saelens/`, and `gemma-scope/KIND/layer_L/width_W/average_l0_N/params.npz`, of which
/// the path says what it reads, with `l0` its own on the last batch; in sparsify's or Gemma Scope 2's format where neither can hold it.
pub(super) fn export(
    folder: &Path,
    member: &Member,
    about: &Resolved,
    model: Option<&str>,
    l0: f64,
) -> Result<Exported> {
    let sae = member.to_sae()?;
    let own = folder.join("saes").join(&member.name);
    let mut metadata = Map::new();
    metadata.insert("trained_by".to_owned(), json!(format!("gemma-scope {}", env!("CARGO_PKG_VERSION"))));
    metadata.insert("steps".to_owned(), json!(member.trainer.step_count()));
    metadata.insert("training_architecture".to_owned(), json!(about.config.architecture()));
    let about_files = About {
        model: model.map(str::to_owned),
        site: Some(about.hook),
        site_out: about.hook_out,
        metadata,
        ..About::new(Format::SaeLens)
    };
    let layout = own.join("gemma-scope").join(place(about.hook, sae.is_transcoder(), sae.d_sae(), l0));
    let mut done = Exported { name: member.name.clone(), folders: Vec::new(), refused: Vec::new() };
    let places = [
        (Format::SaeLens, own.join("saelens")),
        (Format::GemmaScope, layout),
        (Format::Sparsify, own.join("sparsify")),
        (Format::GemmaScope2, own.join("gemma-scope-2")),
    ];
    for (format, folder) in places {
        // The last two are for what the first two can't hold: transcoders that are TopK, or have a skip connection.
        if done.folders.is_empty() || matches!(format, Format::SaeLens | Format::GemmaScope) {
            match save(&sae, &about_files, format, &folder) {
                Ok(()) => done.folders.push((format, folder)),
                Err(SaeError::Parts(why)) => done.refused.push((format, why)),
                Err(other) => return Err(other.into()),
            }
        }
    }
    match done.refused.first() {
        Some((_, why)) if done.folders.is_empty() => Err(SaeError::Parts(why.clone()).into()),
        _ => Ok(done),
    }
}

/// The path of an SAE in the layout of the repositories.
fn place(hook: HookPoint, transcoder: bool, d_sae: i64, l0: f64) -> PathBuf {
    let site = match (hook, transcoder) {
        (HookPoint::Ln2Normalized(layer), true) => format!("transcoder/layer_{layer}"),
        (HookPoint::ResidPost(layer), false) => format!("resid_post/layer_{layer}"),
        (HookPoint::AttnZ(layer), false) => format!("attn_z/layer_{layer}"),
        (HookPoint::MlpOut(layer), false) => format!("mlp_out/layer_{layer}"),
        (other, _) => other.to_string(),
    };
    let width = match d_sae {
        n if n >= 1 << 20 => format!("{}m", n >> 20),
        n if n >= 1000 => format!("{}k", n / 1000),
        n => n.to_string(),
    };
    Path::new(&site).join(format!("width_{width}")).join(format!("average_l0_{}", l0.round()))
}
