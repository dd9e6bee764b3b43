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
    /// Writes the active latents alone, as compressed sparse rows (CSR) of all leading axes in a row: `indptr`, `indices`,
    /// `values`; `d_sae` stands in the file's metadata.
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
    expect_not_read(args)?;
    let options = OpenOptions::on(args.machine.device()?);
    let sae = open_sae(&args.sae, &options, || args.machine.hub())?.1.sae;
    let x = as_input(site, &x)?.f_to_device(options.device)?;
    let size = x.size();
    let (outer, d_in) = size.split_at(size.len() - 1);
    if d_in != [sae.d_in()] {
        bail!(
            "--input {}: is {size:?}, but {} reads d_in = {} numbers in the last axis",
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

/// That `--out` is no file that is read here: it would be lost.
fn expect_not_read(args: &Args) -> Result<()> {
    let Ok(out) = args.out.canonicalize() else { return Ok(()) };
    let is = |path: &str| Path::new(path).canonicalize().is_ok_and(|path| path == out);
    let input = is(&args.input) || args.input.rsplit_once(':').is_some_and(|(path, _)| is(path));
    // What a folder of an SAE may hold, in any of the formats.
    let name = out.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let of_sae = name.ends_with(".npz")
        || name.ends_with(".pt")
        || name.starts_with("layer_")
        || ["params.safetensors", "sae_weights.safetensors", "sae.safetensors", "cfg.json", "config.json"]
            .contains(&name);
    let sae = Path::new(&args.sae).canonicalize();
    let sae = sae.is_ok_and(|sae| out == sae || (of_sae && out.parent() == Some(&sae)));
    if input || sae {
        bail!("--out {}: is a file that is read here", args.out.display());
    }
    Ok(())
}

/// `FILE` or `FILE:NAME`, to the tensor's name and the tensor.
fn read_input(text: &str) -> Result<(String, Tensor)> {
    // A colon may stand in a file's name as well.
    let (path, chosen) = match text.rsplit_once(':') {
        Some((path, name))
            if !Path::new(text).exists() && (Path::new(path).exists() || path.ends_with(".safetensors")) =>
        {
            (path.to_owned(), Some(name.to_owned()))
        }
        _ => (text.to_owned(), None),
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
    expect_kind(&what, &tensor, &[Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half])?;
    expect_finite(&what, &tensor)?;
    Ok((name, tensor))
}
