//! Harvests a toy model's activations into a folder, streams them, damages one bit, and shows what is said of it.
//!
//! `cargo run --release -p activations --example harvest [FOLDER]`
#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use std::{fs, ops::ControlFlow, path::PathBuf};

use activations::{
    Batches, Dtype, HarvestOptions, Live, Mixer, MixerOptions, Normalisation, Shards, ShardsOptions, Store,
    harvest,
};
use hooks::{BoxError, HookPoint, TokenBatch};
use testkit::ToyModel;

fn main() -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::args().nth(1).map_or_else(|| temporary.path().join("harvest"), PathBuf::from);
    let model = ToyModel::new(3, 64, 100, 1);
    let sites = HookPoint::parse_list("blocks.*.hook_resid_post", 3)?;
    // 200 token batches of 8 rows; 2 is BOS.
    let open = || {
        let row = |i: i64| std::iter::once(2).chain((1..32).map(|p| 3 + (i * 31 + p * p) % 97)).collect();
        let batch = move |b: i64| {
            TokenBatch::new(&(0..8).map(|r| row(8 * b + r)).collect::<Vec<_>>(), &[0, 1, 2])
                .map_err(BoxError::from)
        };
        Ok(Box::new((0..200).map(batch)) as Batches<'_>)
    };

    let store = Store::folder(&folder)?;
    let options = HarvestOptions {
        model: "toy".to_owned(),
        model_fingerprint: "seed 1".to_owned(),
        text_fingerprint: "squares".to_owned(),
        dtype: Dtype::Bf16,
        shard_rows: 4096,
        ..HarvestOptions::default()
    };
    let mut live = Live::new(&model, &sites, open, Some(1))?;
    let manifest = harvest(&mut live, &store, &options, |progress| {
        if progress.rows % 10_000 < 248 {
            println!("{} rows, {} shards", progress.rows, progress.shards);
        }
        ControlFlow::Continue(())
    })?;
    println!("{}: {manifest}", folder.display());
    for scale in manifest.scales(Normalisation::UnitMeanSquare)? {
        println!("  {}: divided by {:.4}, E‖x‖² = 1", scale.site.hook, scale.divisor);
    }

    let options = ShardsOptions { epochs: None, ..ShardsOptions::default() };
    let mix = MixerOptions { buffer_rows: 20_000, seed: 7, ..MixerOptions::default() };
    let mut mixer = Mixer::new(Shards::open(&store, &options)?, mix)?;
    for _ in 0..20 {
        let batch = mixer.next_batch(1024)?;
        anyhow::ensure!(batch.is_some(), "the stream is endless");
    }
    println!("20 batches of 1,024 rows; to go on from here: {}", serde_json::to_string(&mixer.state())?);

    let shard = folder.join(format!("{}/00000003.bf16", sites[1]));
    let mut bytes = fs::read(&shard)?;
    if let Some(byte) = bytes.get_mut(1000) {
        *byte ^= 1;
    }
    fs::write(&shard, bytes)?;
    let mut shards = Shards::open(&store, &options)?;
    let said = std::iter::from_fn(|| Some(activations::Source::next(&mut shards))).find_map(Result::err);
    println!("one bit later: {}", said.map_or_else(|| "nothing".to_owned(), |e| e.to_string()));
    Ok(())
}
