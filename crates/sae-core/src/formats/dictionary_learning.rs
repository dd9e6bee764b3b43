//! `dictionary_learning` (0.1, `dictionary.py` and `trainers/`): a folder of `ae.pt` and `config.json`, whose
//! `trainer.dict_class` says which class it is.
//!
//! | class | here |
//! |---|---|
//! | `AutoEncoder` | ReLU; `bias` is subtracted. `from_pretrained` scales latents by their decoder norms, and so does this |
//! | `AutoEncoderNew` | ReLU, nothing subtracted |
//! | `GatedAutoEncoder` | [`Activation::Gated`]; `decoder_bias` is subtracted |
//! | `JumpReluAutoEncoder` | [`Activation::JumpRelu`], nothing subtracted |
//! | `AutoEncoderTopK` | [`Activation::TopK`]; `b_dec` is subtracted, the stored threshold is not used |
//! | `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` | the stored threshold for all latents, or ReLU where it is −1; `b_dec` is subtracted |
//!
//! Without `config.json` the names of the tensors decide, where they can: `AutoEncoderTopK` and `BatchTopKSAE` have the same.
//! SAELens' loader differs: it leaves `AutoEncoder` as it is stored and can't open `AutoEncoderNew`.

use std::path::Path;

use hooks::{HookPoint, LayerIdx};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{
    About, Format, OpenOptions, Opened,
    config::Config,
    config::bad,
    in_file,
    tensors::{Axis, Tensors},
};
use crate::{Activation, Matrix, Result, Sae, SaeParts};

/// Opens a folder.
///
/// # Errors
/// A file that is missing or damaged, or asks for code; a class or a setting that is not read; a tensor that is missing,
/// superfluous, of another shape or dtype, or not finite; a `k` that config and tensor give differently.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let mut tensors = Tensors::torch(&path.join("ae.pt"), options)?;
    let config = path.join("config.json");
    let mut said = if config.is_file() { read_config(&config)? } else { Said::default() };
    let class = match said.class.take() {
        Some(class) => class,
        None => class_of(&tensors, &config)?,
    };
    let file = tensors.file().to_owned();
    let parts = parts(&class, &said, &mut tensors, &config)?;
    tensors.finish()?;
    let parts = SaeParts { transcoder: said.transcoder, ..parts };
    let mut about = said.about.unwrap_or_else(|| About::new(Format::DictionaryLearning));
    about.metadata.insert("dict_class".to_owned(), class.as_str().into());
    let sae = Sae::new(parts).map_err(|e| in_file(&file, e))?;
    if class != "AutoEncoder" {
        return Ok(Opened { sae, about });
    }
    // `AutoEncoder.normalize_decoder`, which its `from_pretrained` calls, with `torch.allclose`'s tolerances.
    let parts = sae.into_parts();
    let norms = parts.decoder_norms()?;
    let unit = norms.f_allclose(&norms.f_ones_like()?, 1e-5, 1e-8, false)?;
    let parts = if unit { parts } else { parts.scale_latents(&norms)? };
    Ok(Opened { sae: Sae::new(parts).map_err(|e| in_file(&file, e))?, about })
}

/// What `config.json` says.
#[derive(Debug, Default)]
struct Said {
    class: Option<String>,
    d_in: Option<i64>,
    d_sae: Option<i64>,
    k: Option<i64>,
    transcoder: bool,
    about: Option<About>,
}

fn read_config(path: &Path) -> Result<Said> {
    let mut config = Config::read(path)?;
    let trainer = config.object("trainer")?;
    let mut trainer = config.required("trainer", trainer)?;
    let class = trainer.text("dict_class")?;
    let mut said = Said {
        class: Some(trainer.required("dict_class", class)?),
        d_in: trainer.size("activation_dim")?,
        d_sae: trainer.size("dict_size")?,
        k: trainer.size("k")?,
        ..Said::default()
    };
    // Of SAEs that came from SAELens.
    trainer.only("apply_b_dec_to_input", &[false.into()])?;
    let mut about = About::new(Format::DictionaryLearning);
    about.model = trainer.text("lm_name")?;
    let module = trainer.text("submodule_name")?;
    let layer = trainer.take("layer");
    let buffer = config.object("buffer")?;
    config.finish()?;
    // The class and the tensors make the function; what else a trainer says, and each version says more, is of the training.
    about.metadata = trainer.rest();
    let mut io = None;
    if let Some(buffer) = buffer {
        // It says where the training's activations came from; `io` alone is about the SAE.
        let buffer = buffer.rest();
        io = buffer.get("io").and_then(Value::as_str).map(str::to_owned);
        about.metadata.insert("buffer".to_owned(), buffer.into());
    }
    said.transcoder = io.as_deref() == Some("in_and_out");
    let layer_number = layer.as_ref().and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    (about.site, about.site_out) = sites(module.as_deref(), layer_number, io.as_deref());
    about.hook_out = module.clone().filter(|_| said.transcoder);
    about.hook = module;
    if let Some(layer) = layer {
        about.metadata.insert("layer".to_owned(), layer);
    }
    said.about = Some(about);
    Ok(said)
}

/// The sites that are read and written, where the module's name leaves no doubt: a whole block, or the name that the trainers
/// give to one's output.
fn sites(
    module: Option<&str>,
    layer: Option<usize>,
    io: Option<&str>,
) -> (Option<HookPoint>, Option<HookPoint>) {
    const BLOCKS: [&str; 4] = ["model.layers.", "gpt_neox.layers.", "transformer.h.", "resid_post_layer_"];
    let named = module.and_then(|m| BLOCKS.iter().find_map(|b| Some((*b, m.strip_prefix(b)?.parse().ok()?))));
    let Some((prefix, named)) = named.filter(|(_, n): &(&str, usize)| layer.is_none_or(|l| l == *n)) else {
        return (None, None);
    };
    let (pre, post) = (HookPoint::ResidPre(LayerIdx(named)), HookPoint::ResidPost(LayerIdx(named)));
    match io {
        Some("out") => (Some(post), None),
        None if prefix == "resid_post_layer_" => (Some(post), None),
        Some("in") if prefix != "resid_post_layer_" => (Some(pre), None),
        Some("in_and_out") if prefix != "resid_post_layer_" => (Some(pre), Some(post)),
        _ => (None, None),
    }
}

/// The class that has these tensors.
fn class_of(tensors: &Tensors<'_>, config: &Path) -> Result<String> {
    let has = |names: &[&str]| names.iter().all(|name| tensors.has(name));
    let class = match () {
        () if has(&["bias", "encoder.weight"]) => "AutoEncoder",
        () if has(&["r_mag", "gate_bias"]) => "GatedAutoEncoder",
        () if has(&["W_enc", "group_sizes"]) => "MatryoshkaBatchTopKSAE",
        () if has(&["W_enc", "threshold"]) && !tensors.has("k") => "JumpReluAutoEncoder",
        () if has(&["encoder.weight", "decoder.bias"]) => "AutoEncoderNew",
        () => {
            let problem = "the tensors do not say which class this is, and there is no";
            return Err(bad(tensors.file(), &format!("{problem} {}", config.display())));
        }
    };
    Ok(class.to_owned())
}

fn parts(class: &str, said: &Said, tensors: &mut Tensors<'_>, config: &Path) -> Result<SaeParts> {
    let linear = ["encoder.weight", "encoder.bias", "decoder.weight"];
    let refused = |why: &str| Err(bad(&config.display().to_string(), why));
    match class {
        "AutoEncoder" | "AutoEncoderNew" => {
            let b_dec = if class == "AutoEncoder" { "bias" } else { "decoder.bias" };
            let Dictionary { w_enc, b_enc, w_dec, b_dec, .. } =
                Dictionary::take(tensors, said, linear, b_dec)?;
            let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, Activation::Relu);
            Ok(SaeParts { subtract_b_dec: class == "AutoEncoder", ..plain })
        }
        "GatedAutoEncoder" => {
            let names = ["encoder.weight", "gate_bias", "decoder.weight"];
            let it = Dictionary::take(tensors, said, names, "decoder_bias")?;
            let r_mag = tensors.vector("r_mag", it.d_sae)?;
            let b_mag = tensors.vector("mag_bias", it.d_sae)?;
            let activation = Activation::Gated { r_mag, b_mag };
            let plain = SaeParts::plain(it.w_enc, it.b_enc, it.w_dec, it.b_dec, activation);
            Ok(SaeParts { subtract_b_dec: true, ..plain })
        }
        "JumpReluAutoEncoder" => {
            let it = Dictionary::take(tensors, said, ["W_enc", "b_enc", "W_dec"], "b_dec")?;
            let activation = Activation::JumpRelu { threshold: tensors.vector("threshold", it.d_sae)? };
            Ok(SaeParts::plain(it.w_enc, it.b_enc, it.w_dec, it.b_dec, activation))
        }
        "AutoEncoderTopK" => {
            let it = Dictionary::take(tensors, said, linear, "b_dec")?;
            // For `encode(use_threshold=True)`, which nothing calls; files of before it have none.
            if tensors.has("threshold") {
                tensors.stored("threshold", &[])?;
            }
            let k = agreed_k(tensors, said, config)?;
            let plain = SaeParts::plain(it.w_enc, it.b_enc, it.w_dec, it.b_dec, Activation::TopK { k });
            Ok(SaeParts { subtract_b_dec: true, ..plain })
        }
        "BatchTopKSAE" | "MatryoshkaBatchTopKSAE" => {
            let matryoshka = class == "MatryoshkaBatchTopKSAE";
            let names = if matryoshka { ["W_enc", "b_enc", "W_dec"] } else { linear };
            let it = Dictionary::take(tensors, said, names, "b_dec")?;
            agreed_k(tensors, said, config)?;
            if matryoshka {
                group_sizes(tensors, it.d_sae.1)?;
            }
            let threshold = tensors.number("threshold")?;
            // Below 0, as the −1 of one that was never set, ReLU alone decides.
            let activation = if threshold < 0.0 {
                Activation::Relu
            } else {
                Activation::JumpRelu { threshold: it.b_enc.f_full_like(threshold)? }
            };
            let plain = SaeParts::plain(it.w_enc, it.b_enc, it.w_dec, it.b_dec, activation);
            Ok(SaeParts { subtract_b_dec: true, ..plain })
        }
        "IdentityDict" => refused("`trainer.dict_class` is `IdentityDict`, which has no latents"),
        "CrossCoder" => {
            refused("`trainer.dict_class` is `CrossCoder`, which reads several layers and is not read")
        }
        other => refused(&format!("`trainer.dict_class` is `{other}`, which is not read")),
    }
}

/// What all classes have.
struct Dictionary {
    d_sae: Axis,
    w_enc: Matrix,
    b_enc: Tensor,
    w_dec: Matrix,
    b_dec: Tensor,
}

impl Dictionary {
    /// Matrices named `….weight` are PyTorch's `Linear`: output first.
    fn take(tensors: &mut Tensors<'_>, said: &Said, names: [&str; 3], b_dec: &str) -> Result<Self> {
        let [w_enc, b_enc, w_dec] = names;
        let linear = w_enc.ends_with(".weight");
        let (first, second) = if linear { (0, 1) } else { (1, 0) };
        let d_sae = tensors.size(&[(w_enc, first), (b_enc, 0), (w_dec, second)]);
        let d_in = tensors.size(&[(w_enc, second), (b_dec, 0), (w_dec, first)]);
        let d_sae = ("dict_size", said.d_sae.unwrap_or(d_sae));
        let d_in = ("activation_dim", said.d_in.unwrap_or(d_in));
        let (encoder, decoder) =
            if linear { ([d_sae, d_in], [d_in, d_sae]) } else { ([d_in, d_sae], [d_sae, d_in]) };
        Ok(Self {
            d_sae,
            w_enc: tensors.matrix(w_enc, encoder, linear)?,
            b_enc: tensors.vector(b_enc, d_sae)?,
            w_dec: tensors.matrix(w_dec, decoder, linear)?,
            b_dec: tensors.vector(b_dec, d_in)?,
        })
    }
}

/// The k of the tensor and of the config, of which files of before 0.1 lack the first.
fn agreed_k(tensors: &mut Tensors<'_>, said: &Said, config: &Path) -> Result<i64> {
    let stored = if tensors.has("k") { Some(tensors.integer("k")?) } else { None };
    match (stored, said.k) {
        (Some(stored), Some(said)) if stored != said => {
            let problem = format!("`trainer.k` is {said}, but the tensor `k` of ae.pt is {stored}");
            Err(bad(&config.display().to_string(), &problem))
        }
        (Some(k), _) | (None, Some(k)) => Ok(k),
        (None, None) => Err(bad(tensors.file(), "there is neither a tensor `k` nor a `trainer.k`")),
    }
}

/// They must add up; all groups are used.
fn group_sizes(tensors: &mut Tensors<'_>, d_sae: i64) -> Result<()> {
    let groups = tensors.size(&[("group_sizes", 0)]);
    let stored = tensors.stored("group_sizes", &[("groups", groups)])?;
    let sum = stored.tensor()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    if sum == d_sae {
        return Ok(());
    }
    Err(bad(tensors.file(), &format!("`group_sizes` add up to {sum}, but there are {d_sae} latents")))
}
