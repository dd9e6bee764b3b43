//! Opens an SAE in any of the public formats, says what it is, and writes it in every format that can express it.
//!
//! ```text
//! cargo run --release -p sae-core --example formats -- PATH      # a file or folder of yours
//! cargo run --release -p sae-core --example formats              # one that is made here
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use std::{error::Error, path::PathBuf};

use sae_core::{
    About, Activation, Format, OpenOptions, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _, open, save,
};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let _no_grad = tch::no_grad_guard();
    let folder = tempfile::tempdir()?;
    let path = std::env::args()
        .nth(1)
        .map_or_else(|| made_here(folder.path().join("made-here")), |p| Ok(p.into()))?;

    let opened = open(&path, &OpenOptions::default())?;
    let sae = &opened.sae;
    println!("{}: {} in the format {}", path.display(), sae.architecture(), opened.about.format.name());
    println!("  {} → {} latents → {}", sae.d_in(), sae.d_sae(), sae.d_out());

    let x = Tensor::f_randn([16, sae.d_in()], (Kind::Float, Device::Cpu))?;
    let want = sae.reconstruct(&x)?;
    for format in Format::WRITTEN {
        let to = folder.path().join(format.name());
        match save(sae, &opened.about, format, &to) {
            Ok(()) => {
                let again = open(&to, &OpenOptions::default())?.sae;
                let off = again.reconstruct(&x)?.f_sub(&want)?.f_abs()?.f_max()?.f_double_value(&[])?;
                println!("  as {:<14} reconstructions differ by {off:.1e}", format.name());
            }
            Err(why) => println!("  as {:<14} not: {why}", format.name()),
        }
    }
    Ok(())
}

/// A TopK SAE with random weights, as SAELens writes it.
fn made_here(folder: PathBuf) -> Result<PathBuf, Box<dyn Error>> {
    let on = (Kind::Float, Device::Cpu);
    let (d_in, d_sae) = (32, 256);
    let w_dec = Tensor::f_randn([d_sae, d_in], on)?.f_mul_scalar((d_in as f64).sqrt().recip())?;
    let (b_enc, b_dec) = (Tensor::f_zeros([d_sae], on)?, Tensor::f_zeros([d_in], on)?);
    let parts =
        SaeParts::plain(w_dec.f_tr()?.f_contiguous()?, b_enc, w_dec, b_dec, Activation::TopK { k: 8 });
    let sae = Sae::new(SaeParts { subtract_b_dec: true, ..parts })?;
    save(&sae, &About::new(Format::SaeLens), Format::SaeLens, &folder)?;
    Ok(folder)
}
