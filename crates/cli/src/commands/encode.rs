use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use gemma_scope::{
    hooks::HookPoint,
    load::open_sae,
    sae::{OpenOptions, SaeExt as _, SparseAutoencoder as _, as_input},
    tch::{self, Kind, Tensor},
    tensors::{SafetensorsFile, expect_finite, expect_kind, write_safetensors},
};

use crate::{args::MachineArgs, output::say};

/// Runs one SAE on stored activations.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope encode --sae tiny --input acts.safetensors:blocks.3.hook_resid_post --out f.safetensors"
)]
pub(crate) struct Args {
    /// The SAE.
    #[arg(long, value_name = "S")]
    sae: String,
    /// Activations; `:NAME` chooses a tensor where the file has several.
    #[arg(long, value_name = "F.safetensors[:NAME]")]
    input: String,
    /// The file to write: `feature_acts` and `recon`.
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
    /// Writes the active latents alone, as compressed sparse rows (CSR): `indptr`, `indices`, `values`.
    #[arg(long)]
    sparse: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Encodes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (name, x) = read_input(&args.input)?;
    // What an SAE reads is told by its shape here: its site need not be known.
    let site: HookPoint = name.parse().unwrap_or(HookPoint::Embed);
    let options = OpenOptions::on(args.machine.device()?);
    let sae = open_sae(&args.sae, &options, || args.machine.hub())?.1.sae;
    let x = as_input(site, &x)?.f_to_device(options.device)?;
    let size = x.size();
    let (outer, d_in) = size.split_at(size.len() - 1);
    if d_in != [sae.d_in()] {
        bail!(
            "--input {}: is {size:?}, but {} reads {} numbers in the last axis",
            args.input,
            args.sae,
            sae.d_in()
        );
    }
    let rows = x.f_reshape([-1, sae.d_in()])?;
    let sparse = sae.encode_sparse(&rows)?;
    let text = HashMap::from([("sae".to_owned(), args.sae.clone()), ("input".to_owned(), name)]);
    if args.sparse {
        sparse.save(&args.out, text)?;
    } else {
        let recon = sae.reconstruct_from(&sparse, &rows)?.f_reshape([outer, &[sae.d_out()]].concat())?;
        let features = sparse.to_dense()?.f_reshape([outer, &[sae.d_sae()]].concat())?;
        write_safetensors(&args.out, [("feature_acts", &features), ("recon", &recon)], text)?;
    }
    let (n, nnz) = (sparse.n_rows(), sparse.nnz());
    let l0 = if n > 0 { format!("{:.2}", nnz as f64 / n as f64) } else { "undefined".to_owned() };
    say(&format!("{n} rows, {nnz} active latents, L0 {l0} (every row counts here, BOS too)\n"))
}

/// `FILE` or `FILE:NAME`, to the tensor's name and the tensor.
fn read_input(text: &str) -> Result<(String, Tensor)> {
    let (path, chosen) = match text.rsplit_once(".safetensors:") {
        Some((stem, name)) => (format!("{stem}.safetensors"), Some(name.to_owned())),
        None => (text.to_owned(), None),
    };
    let mut file = SafetensorsFile::open(Path::new(&path))?;
    let name = match (chosen, file.names().as_slice()) {
        (Some(name), _) => name,
        (None, [one]) => one.clone(),
        (None, []) => bail!("{path}: there is no tensor in it"),
        (None, many) => {
            bail!("{path} has {} tensors: choose one, as in --input {path}:{}", many.len(), many[0])
        }
    };
    let what = format!("{path}: {name}");
    let tensor = file.read(&name)?;
    ensure!(tensor.dim() >= 1, "{what} is a single number, not activations");
    expect_kind(&what, &tensor, &[Kind::Float, Kind::BFloat16, Kind::Half])?;
    expect_finite(&what, &tensor)?;
    Ok((name, tensor))
}
