//! What was harvested is read as it was made.

use activations::{Cursor, Dtype, Mixer, MixerOptions, Shards, ShardsOptions, Source as _, Store};
use tch::{Kind, Tensor};
use testkit::assert_same;

use crate::common::{all, harvested, live, options, refused, site, sites, toy};

const ONCE: ShardsOptions = ShardsOptions { sites: None, epochs: Some(1), read_ahead: 2 };

fn a_harvest(shard_rows: u64, dtype: Dtype) -> (Store, Vec<Tensor>) {
    let (model, store) = (toy(), Store::memory().unwrap());
    let options = activations::HarvestOptions { dtype, ..options(shard_rows) };
    let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options).unwrap();
    assert!(manifest.complete);
    (store, all(&mut live(&model, 9, Some(1))))
}

#[test]
fn float32_shards_are_the_live_stream_to_the_last_bit() {
    for shard_rows in [1, 7, 16, 1_000] {
        let (store, want) = a_harvest(shard_rows, Dtype::F32);
        let got = all(&mut Shards::open(&store, &ONCE).unwrap());
        got.iter().zip(&want).for_each(|(got, want)| assert_same("rows", got, want));
    }
}

#[test]
fn bf16_shards_are_the_live_stream_rounded() {
    let (store, want) = a_harvest(16, Dtype::Bf16);
    let got = all(&mut Shards::open(&store, &ONCE).unwrap());
    got.iter().zip(&want).for_each(|(got, want)| assert_same("rows", got, &want.to_kind(Kind::BFloat16)));
}

#[test]
fn sites_can_be_chosen() {
    let (store, want) = a_harvest(16, Dtype::F32);
    let choose = |names: &[&str]| {
        let sites = Some(names.iter().map(|name| site(name)).collect());
        Shards::open(&store, &ShardsOptions { sites, ..ONCE })
    };
    let mut chosen = choose(&["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]).unwrap();
    assert_eq!(chosen.sites().iter().map(|s| s.hook).collect::<Vec<_>>(), [sites()[2], sites()[0]]);
    let got = all(&mut chosen);
    assert_same("the first", &got[0], &want[2]);
    assert_same("the second", &got[1], &want[0]);
    refused(choose(&["blocks.0.hook_resid_post"]), &["memory", "`blocks.0.hook_resid_post`", "`hook_embed`"]);
    refused(choose(&["hook_embed", "hook_embed"]), &["`hook_embed`", "twice"]);
    refused(choose(&[]), &["no site"]);
}

#[test]
fn shards_can_be_taken_up_anywhere() {
    let (store, want) = a_harvest(10, Dtype::F32);
    for read_ahead in [0, 1, 5] {
        let options = ShardsOptions { sites: None, epochs: Some(3), read_ahead };
        let mut source = Shards::open(&store, &options).unwrap();
        let shards = source.manifest().shards.len() as u64;
        let rows = source.manifest().stored_rows() as i64;
        let thrice = Tensor::cat(&[&want[1], &want[1], &want[1]], 0);
        for (chunk, row) in
            [(2, 3), (0, 0), (shards, 4), (2 * shards + 1, 10), (1, 0), (1, 5), (3 * shards, 0)]
        {
            source.seek(Cursor { chunk, row }).unwrap();
            assert_eq!(source.cursor(), Cursor { chunk, row });
            let before = (chunk / shards) as i64 * rows + (chunk % shards * 10 + row) as i64;
            if chunk == 3 * shards {
                assert!(source.next().unwrap().is_none());
            } else {
                assert_same("rest", &all(&mut source)[1], &thrice.narrow(0, before, 3 * rows - before));
            }
        }
        refused(source.seek(Cursor { chunk: 3 * shards, row: 1 }), &["memory", "chunks"]);
        refused(source.seek(Cursor { chunk: 1, row: 11 }), &["memory", "10 rows"]);
    }
}

#[test]
fn endless_shards_begin_again() {
    let (store, want) = a_harvest(16, Dtype::F32);
    let mut source = Shards::open(&store, &ShardsOptions { epochs: None, ..ONCE }).unwrap();
    let shards = source.manifest().shards.len();
    for _ in 0..3 {
        let epoch: Vec<_> = (0..shards).map(|_| source.next().unwrap().unwrap().at.remove(0)).collect();
        assert_same("an epoch", &Tensor::cat(&epoch, 0), &want[0]);
    }
}

#[test]
fn mixing_shards_resumes_to_the_last_bit() {
    let (store, _) = a_harvest(10, Dtype::Bf16);
    let mixer = || {
        let source = Shards::open(&store, &ShardsOptions { epochs: None, ..ONCE }).unwrap();
        let options = MixerOptions { buffer_rows: 40, parts: 3, seed: 2, dtype: Dtype::Bf16 };
        Mixer::new(source, options).unwrap()
    };
    let mut first = mixer();
    for _ in 0..30 {
        let _batch = first.next_batch(7).unwrap().unwrap();
    }
    let mut second = mixer();
    second.restore(&first.state()).unwrap();
    for _ in 0..30 {
        let (want, got) = (first.next_batch(7).unwrap().unwrap(), second.next_batch(7).unwrap().unwrap());
        want.at.iter().zip(&got.at).for_each(|(want, got)| assert_same("a batch", got, want));
    }
    assert!(first.stats().waited > 0.0);
}
