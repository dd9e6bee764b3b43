use std::path::Path;

use anyhow::{Result, bail};
use gemma_scope::{
    hooks::HookPoint,
    load::{load_sae, site_from_path},
    model::{Gemma2, Gemma2Config, LayerKind, LoadOptions},
    sae::{JumpRelu, SparseAutoencoder as _},
    tch::{self, Kind, Tensor},
    tiny,
};
use serde_json::{Value, json};

use crate::{args::MachineArgs, output::say};

/// Says what a model or SAE is: architecture, shapes, dtype, hook, thresholds, norms.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  gemma-scope inspect tiny/layer_3/width_2k/average_l0_40 --json")]
pub(crate) struct Args {
    /// A model's folder, a `params.npz` or its folder, `tiny`, `tiny/…`, or the name of a released SAE.
    path: String,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Inspects.
pub(crate) fn run(args: &Args) -> Result<()> {
    // It is only read here, but a device that is not there is no less an error.
    let _device = args.machine.device()?;
    let _no_grad = tch::no_grad_guard();
    let facts = facts(args)?;
    if args.json {
        return say(&format!("{facts:#}\n"));
    }
    let mut text = String::new();
    render(&facts, 0, &mut text);
    say(&text)
}

fn facts(args: &Args) -> Result<Value> {
    let path = Path::new(&args.path);
    if args.path == "tiny" {
        return model_facts(&tiny::model(&LoadOptions::default())?);
    }
    if path.is_dir() && path.join("config.json").exists() {
        return model_facts(&Gemma2::load(path, &LoadOptions::default())?);
    }
    if path.is_dir() && !path.join("params.npz").exists() {
        bail!("{}: neither a model (no config.json) nor an SAE (no params.npz)", args.path);
    }
    let device = args.machine.device()?;
    // A file whose path does not tell its site is worth a look all the same.
    let known = site_from_path(&args.path);
    let assumed = (path.exists() && known.is_none()).then_some(HookPoint::Embed);
    let loaded = load_sae(&args.path, assumed, device, || args.machine.hub())?;
    let hook = if assumed.is_some() { Value::Null } else { json!(loaded.site) };
    sae_facts(&loaded.id, hook, &loaded.sae)
}

fn model_facts(model: &Gemma2) -> Result<Value> {
    let Gemma2Config {
        dims,
        layer_kinds,
        sliding_window,
        query_pre_attn_scalar,
        attn_softcap,
        final_softcap,
        rms_eps,
        rope_theta,
        bos,
        eos,
        pad,
    } = model.config();
    let parameters: usize = model.parameters().iter().map(|(_, w)| w.numel()).sum();
    let sliding: Vec<usize> =
        layer_kinds.iter().enumerate().filter(|(_, k)| **k == LayerKind::Sliding).map(|(l, _)| l).collect();
    Ok(json!({
        "kind": "model",
        "architecture": "gemma2",
        "parameters": parameters,
        "dims": {
            "n_layers": dims.n_layers, "d_model": dims.d_model, "n_heads": dims.n_heads, "n_kv_heads": dims.n_kv_heads,
            "d_head": dims.d_head, "d_mlp": dims.d_mlp, "d_vocab": dims.d_vocab, "n_ctx": dims.n_ctx,
        },
        "sliding_window": sliding_window,
        "sliding_layers": sliding,
        "query_pre_attn_scalar": query_pre_attn_scalar,
        "attn_logit_softcapping": attn_softcap,
        "final_logit_softcapping": final_softcap,
        "rms_norm_eps": rms_eps,
        "rope_theta": rope_theta,
        "bos": bos, "eos": eos, "pad": pad,
    }))
}

fn sae_facts(id: &str, hook: Value, sae: &JumpRelu) -> Result<Value> {
    let mut tensors = serde_json::Map::new();
    for (name, tensor) in sae.parameters() {
        let norms = if tensor.dim() == 2 {
            let latents = if name == "W_enc" { 0 } else { 1 };
            let norms = tensor.f_square()?.f_sum_dim_intlist(latents, false, Kind::Float)?.f_sqrt()?;
            json!({"shape": tensor.size(), "norm_of_each_latent": spread(&norms)?})
        } else {
            json!({"shape": tensor.size(), "values": spread(tensor)?})
        };
        tensors.insert(name.to_owned(), norms);
    }
    Ok(json!({
        "kind": "sae", "id": id, "architecture": sae.architecture(), "hook": hook,
        "d_in": sae.d_in(), "d_sae": sae.d_sae(), "d_out": sae.d_out(), "tensors": tensors,
    }))
}

/// Smallest, mean and largest.
fn spread(t: &Tensor) -> Result<Value> {
    let of = |t: Tensor| t.f_double_value(&[]);
    Ok(json!({"min": of(t.f_min()?)?, "mean": of(t.f_mean(Kind::Double)?)?, "max": of(t.f_max()?)?}))
}

/// Nested names and values, indented.
fn render(value: &Value, depth: usize, text: &mut String) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(_) => {
                *text += &format!("{indent}{name}\n");
                render(value, depth + 1, text);
            }
            Value::String(s) => *text += &format!("{indent}{name:<26} {s}\n"),
            Value::Null => *text += &format!("{indent}{name:<26} unknown\n"),
            other => *text += &format!("{indent}{name:<26} {other}\n"),
        }
    }
}
