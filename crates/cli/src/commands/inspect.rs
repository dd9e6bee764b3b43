use std::path::Path;

use anyhow::Result;
use gemma_scope::{
    load::open_sae,
    model::{Gemma2, Gemma2Config, LayerKind, LoadOptions},
    sae::{Activation, Matrix, OpenOptions, Opened, SparseAutoencoder as _},
    tch::{self, Kind, Tensor},
    tensors::kind_name,
    tiny,
};
use serde_json::{Value, json};

use crate::{args::MachineArgs, output::say};

/// Says what a model or SAE is: architecture, shapes, dtype, hook, thresholds, norms.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  gemma-scope inspect tiny/layer_3/width_2k/average_l0_40 --json")]
pub(crate) struct Args {
    /// A model's folder, an SAE's file or folder in any of the public formats, `tiny`, `tiny/…`, or the name of a released SAE.
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
    let has = |file: &str| path.join(file).exists();
    if has("config.json") && (has("model.safetensors") || has("model.safetensors.index.json")) {
        return model_facts(&Gemma2::load(path, &LoadOptions::default())?);
    }
    let options = OpenOptions::on(args.machine.device()?);
    let (id, opened) = open_sae(&args.path, &options, || args.machine.hub())?;
    sae_facts(&id, &opened)
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

fn sae_facts(id: &str, opened: &Opened) -> Result<Value> {
    let Opened { sae, about } = opened;
    let mut tensors = serde_json::Map::new();
    for (name, matrix) in [("W_enc", sae.encoder()), ("W_dec", sae.decoder())] {
        let norms = latent_norms(matrix, name == "W_dec")?;
        tensors.insert(
            name.to_owned(),
            json!({
                "shape": matrix.size(), "dtype": kind_name(matrix.stored_as()), "in_memory": matrix.held().is_some(),
                "norm_of_each_latent": spread(&norms)?,
            }),
        );
    }
    for (name, tensor) in sae.vectors() {
        tensors.insert(name.to_owned(), json!({"shape": tensor.size(), "values": spread(tensor)?}));
    }
    if let Some(skip) = sae.w_skip() {
        tensors.insert("W_skip".to_owned(), json!({"shape": skip.size(), "values": spread(skip)?}));
    }
    let mut facts = json!({
        "kind": "sae", "id": id, "format": about.format.name(), "architecture": sae.architecture(),
        "model": about.model, "hook": about.hook_name(), "d_in": sae.d_in(), "d_sae": sae.d_sae(), "d_out": sae.d_out(),
        "normalize": sae.normalize().name(), "subtracts_b_dec": sae.subtracts_b_dec(), "tensors": tensors,
    });
    if let Activation::TopK { k } = sae.activation() {
        facts["k"] = json!(k);
    }
    if sae.is_transcoder() {
        facts["hook_out"] = json!(about.hook_out_name());
    }
    if !about.metadata.is_empty() {
        facts["metadata"] = json!(about.metadata);
    }
    Ok(facts)
}

/// The norm of each column, or of each row, some at a time.
fn latent_norms(matrix: &Matrix, by_row: bool) -> Result<Tensor> {
    const AT_A_TIME: i64 = 1 << 14;
    let [rows, columns] = matrix.size();
    let n = if by_row { rows } else { columns };
    let mut norms = Vec::new();
    for first in (0..n).step_by(AT_A_TIME as usize) {
        let some = first..(first + AT_A_TIME).min(n);
        let part = if by_row { matrix.rows(some)? } else { matrix.columns(some)? };
        let axis = i64::from(by_row);
        norms.push(part.f_square()?.f_sum_dim_intlist([axis].as_slice(), false, Kind::Float)?.f_sqrt()?);
    }
    Ok(Tensor::f_cat(&norms, 0)?)
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
