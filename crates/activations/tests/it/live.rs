//! The live stream is what the model shows, at the positions that count.

use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use activations::{Batches, Cursor, Live, Source as _};
use hooks::{HookPoint, HookSet, HookedModel, HookedModelExt as _, LayerIdx, ModelDims, TokenBatch};
use tch::{Device, Kind, Tensor};
use testkit::{ToyModel, assert_same};

use crate::common::{all, batches, counted, epoch, live, refused, site, sites, toy};

/// The counted rows of a full run, by another way than the crate's: position by position.
fn by_hand(model: &ToyModel, tokens: &TokenBatch, hook: HookPoint) -> Vec<Tensor> {
    let (_, cache) = model.run_with_cache(tokens, &[hook]).unwrap();
    let mut rows = Vec::new();
    for (b, ids) in tokens.rows().iter().enumerate() {
        for (p, id) in ids.iter().enumerate() {
            // BOS is 2, EOS 1 and padding 0.
            if *id > 2 {
                rows.push(cache.get(hook).unwrap().get(b as i64).get(p as i64).reshape([1, -1]));
            }
        }
    }
    rows
}

#[test]
fn rows_are_those_of_a_full_run_without_bos_eos_and_padding() {
    let model = toy();
    let found = all(&mut live(&model, 9, Some(1)));
    for (hook, found) in sites().into_iter().zip(found) {
        let want: Vec<Tensor> = batches(9).iter().flat_map(|tokens| by_hand(&model, tokens, hook)).collect();
        assert_same(&hook.to_string(), &found, &Tensor::cat(&want, 0));
    }
}

#[test]
fn a_chunk_is_a_token_batch_and_epochs_follow_each_other() {
    let model = toy();
    let mut source = live(&model, 9, Some(2));
    assert_eq!(source.sites().iter().map(|site| site.width).collect::<Vec<_>>(), [6, 6, 6]);
    for (chunk, rows) in counted(9).into_iter().cycle().take(18).enumerate() {
        assert_eq!(source.cursor(), Cursor { chunk: chunk as u64, row: 0 });
        assert_eq!(source.next().unwrap().unwrap().rows(), rows);
    }
    assert!(source.next().unwrap().is_none() && source.next().unwrap().is_none());
    assert!(counted(9).contains(&0), "a batch in which nothing counts is among them");
}

#[test]
fn a_stream_can_be_taken_up_anywhere() {
    let model = toy();
    let whole = all(&mut live(&model, 5, Some(3)));
    let sizes = counted(5);
    let mut source = live(&model, 5, Some(3));
    // Forward, back, into another epoch, to the end of a chunk, behind the last.
    for (chunk, row) in [(3, 2), (1, 0), (11, 1), (0, 3), (4, sizes[4]), (14, 0), (15, 0), (7, 0), (2, 0)] {
        let before: i64 = sizes.iter().cycle().take(chunk).sum::<i64>() + row;
        source.seek(Cursor { chunk: chunk as u64, row: row as u64 }).unwrap();
        assert_eq!(source.cursor(), Cursor { chunk: chunk as u64, row: row as u64 });
        if chunk == 15 {
            assert!(source.next().unwrap().is_none());
            continue;
        }
        for (got, want) in all(&mut source).iter().zip(&whole) {
            assert_same("the rest", got, &want.narrow(0, before, want.size()[0] - before));
        }
    }
    refused(source.seek(Cursor { chunk: 16, row: 0 }), &["chunk 16", "15 token batches"]);
    source.seek(Cursor { chunk: 0, row: 1_000 }).unwrap();
    refused(source.next(), &["row 1000 of chunk 0"]);
    source.seek(Cursor::default()).unwrap();
    assert_same("after a refusal", &all(&mut source)[0], &whole[0]);
}

/// The toy model, which counts its blocks, shows two heads, and whose embedding may hold a NaN.
#[derive(Debug)]
struct Watched {
    inner: ToyModel,
    dims: ModelDims,
    blocks: AtomicUsize,
    nan: bool,
}

impl Watched {
    fn new(nan: bool) -> Self {
        let inner = toy();
        let dims = ModelDims { n_heads: 2, ..inner.dims().clone() };
        Self { inner, dims, blocks: AtomicUsize::new(0), nan }
    }
}

impl HookedModel for Watched {
    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> hooks::Result<Tensor> {
        let x = self.inner.embed(tokens, hooks)?;
        Ok(if self.nan { x / 0.0 } else { x })
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> hooks::Result<Tensor> {
        self.blocks.fetch_add(range.len(), Ordering::Relaxed);
        let z = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([1, 1, 2, 6]);
        let size = [tokens.batch(), tokens.pos(), 2, 6];
        let _z = hooks.at(HookPoint::AttnZ(LayerIdx(0)), z.expand(size, false))?;
        self.inner.blocks(resid, tokens, range, hooks)
    }

    fn resume(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> hooks::Result<Tensor> {
        self.inner.resume(site, act, stream, tokens, end, hooks)
    }

    fn final_norm(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> hooks::Result<Tensor> {
        self.inner.final_norm(resid, hooks)
    }

    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> hooks::Result<Tensor> {
        self.inner.readout(normed, vocab)
    }
}

#[test]
fn one_pass_serves_all_sites_and_goes_no_deeper_than_the_deepest() {
    let model = Watched::new(false);
    // The deepest site is in block 1: two of three blocks run, once a batch, whatever is asked for and skipped.
    let mut source = Live::new(&model, &sites(), epoch(4), Some(1)).unwrap();
    while source.next().unwrap().is_some() {}
    let with_rows = counted(4).iter().filter(|n| **n > 0).count();
    assert_eq!(model.blocks.swap(0, Ordering::Relaxed), 2 * with_rows);
    source.seek(Cursor { chunk: 3, row: 0 }).unwrap();
    assert_eq!(model.blocks.load(Ordering::Relaxed), 0, "nothing runs on what is skipped");
}

#[test]
fn values_that_are_not_finite_are_refused_by_site() {
    let model = Watched::new(true);
    let mut source = Live::new(&model, &sites(), epoch(4), None).unwrap();
    refused(source.next(), &["`blocks.1.hook_resid_post`", "NaN"]);
}

#[test]
fn a_text_that_fails_can_be_asked_again() {
    let model = toy();
    let failed = Cell::new(false);
    let open = || {
        let each = batches(5).into_iter().enumerate().map(|(i, tokens)| {
            if i == 3 && !failed.replace(true) { Err("line 7 is no JSON".into()) } else { Ok(tokens) }
        });
        Ok(Box::new(each) as Batches<'_>)
    };
    let mut source = Live::new(&model, &sites(), open, Some(1)).unwrap();
    for _ in 0..3 {
        let _rows = source.next().unwrap().unwrap();
    }
    refused(source.next(), &["the text", "line 7 is no JSON"]);
    assert_eq!(source.cursor(), Cursor { chunk: 3, row: 0 });
    assert_eq!(source.next().unwrap().unwrap().rows(), counted(5)[3]);
}

#[test]
fn a_text_without_tokens_that_count_is_refused() {
    let model = toy();
    for tokens in [Vec::new(), vec![vec![2, 1]]] {
        let open = || {
            let batch = |row: &Vec<i64>| TokenBatch::new(std::slice::from_ref(row), &[0, 1, 2]).unwrap();
            Ok(Box::new(tokens.iter().map(batch).map(Ok).collect::<Vec<_>>().into_iter()) as Batches<'_>)
        };
        let mut source = Live::new(&model, &sites(), open, None).unwrap();
        let end = loop {
            match source.next() {
                Ok(rows) => assert_eq!(rows.unwrap().rows(), 0),
                Err(error) => break error,
            }
        };
        refused(Err::<(), _>(end), &["no position", "counts"]);
    }
}

#[test]
fn a_text_that_changes_between_epochs_is_refused() {
    let model = toy();
    let opened = Cell::new(4);
    let open = || {
        opened.set(opened.get() + 1);
        Ok(Box::new(batches(opened.get()).into_iter().map(Ok)) as Batches<'_>)
    };
    let mut source = Live::new(&model, &sites(), open, None).unwrap();
    let end = std::iter::repeat_with(|| source.next()).find_map(std::result::Result::err).unwrap();
    refused(Err::<(), _>(end), &["epoch 1", "6", "5"]);
}

#[test]
fn sites_that_make_no_stream_are_refused() {
    let model = toy();
    let new = |sites: &[HookPoint]| Live::new(&model, sites, epoch(3), None);
    refused(new(&[]), &["no site"]);
    refused(new(&[HookPoint::Embed, HookPoint::Embed]), &["`hook_embed`", "twice"]);
    refused(new(&[site("blocks.3.hook_resid_post")]), &["`blocks.3.hook_resid_post`", "layers 0 to 2"]);
    refused(new(&[site("blocks.0.attn.hook_pattern")]), &["`blocks.0.attn.hook_pattern`", "each position"]);
}

#[test]
fn heads_lie_side_by_side() {
    let model = Watched::new(false);
    let mut source = Live::new(&model, &[site("blocks.0.attn.hook_z")], epoch(1), None).unwrap();
    assert_eq!(source.sites()[0].width, 12);
    let rows = source.next().unwrap().unwrap();
    let want: Vec<f32> = (0..12_u8).map(f32::from).collect();
    for row in 0..rows.rows() {
        assert_eq!(Vec::<f32>::try_from(rows.at[0].get(row)).unwrap(), want);
    }
}
