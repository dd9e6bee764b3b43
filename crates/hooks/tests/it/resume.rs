//! A run that begins at a site is the rest of a full run with an edit there.

use hooks::{HookError, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, edit, observe};
use tch::Tensor;
use testkit::{assert_close, assert_same, normal};

use crate::common::{D_VOCAB, N_LAYERS, refused, site, tokens, toy};

/// A matrix product of some columns may sum in another order than one of all.
const ROUNDING: f64 = 1e-6;

/// Where a run can begin, and the stream that it needs besides: what the branch was, or will be, added to.
const RESUMABLE: [(&str, &str); 9] = [
    ("hook_embed", "hook_embed"),
    ("hook_resid_pre", "hook_resid_pre"),
    ("attn.hook_z", "hook_resid_pre"),
    ("hook_attn_out", "hook_resid_pre"),
    ("hook_resid_mid", "hook_resid_mid"),
    ("ln2.hook_normalized", "hook_resid_mid"),
    ("mlp.hook_post", "hook_resid_mid"),
    ("hook_mlp_out", "hook_resid_mid"),
    ("hook_resid_post", "hook_resid_post"),
];

#[test]
fn a_run_can_begin_where_one_branch_meets_the_stream() {
    for site in HookPoint::all(3) {
        let stream = RESUMABLE.iter().find(|(name, _)| *name == site.short_name()).map(|(_, stream)| *stream);
        let got = site.stream().map(|stream| (stream.short_name(), stream.layer()));
        assert_eq!(got, stream.map(|stream| (stream, site.layer())), "{site}");
    }
}

#[test]
fn a_stream_is_its_own() {
    for stream in HookPoint::all(2).filter_map(HookPoint::stream) {
        assert_eq!(stream.stream(), Some(stream));
    }
}

#[test]
fn resuming_behind_a_site_is_an_edit_of_it() {
    let (model, tokens) = (toy(), tokens());
    let (_, cache) = model.run_with_cache(&tokens, &model.sites()).unwrap();
    for (site, seed) in model.sites().into_iter().zip(10..) {
        let new = normal(&site.shape(model.dims(), 2, 5), seed);
        let stream = cache.get(site.stream().unwrap()).unwrap();
        let resumed = model.resume(site, &new, stream, &tokens, N_LAYERS, &mut HookSet::new()).unwrap();
        let mut hooks = HookSet::new();
        hooks.on(site, edit::set(new));
        let edited = model.run(&tokens, hooks).unwrap();
        let logits = model.unembed(&resumed, &mut HookSet::new()).unwrap();
        assert_same(&site.to_string(), &logits, &edited);
    }
}

#[test]
fn resuming_with_what_was_there_changes_no_bit() {
    let (model, tokens) = (toy(), tokens());
    let (_, cache) = model.run_with_cache(&tokens, &model.sites()).unwrap();
    for site in model.sites() {
        let (act, stream) = (cache.get(site).unwrap(), cache.get(site.stream().unwrap()).unwrap());
        for end in site.blocks_needed(N_LAYERS)..=N_LAYERS {
            let resumed = model.resume(site, act, stream, &tokens, end, &mut HookSet::new()).unwrap();
            let full = model.residual(&tokens, end, &mut HookSet::new()).unwrap();
            assert_same(&format!("{site} to {end}"), &resumed, &full);
        }
    }
}

#[test]
fn only_the_hooks_behind_the_site_fire() {
    let (model, tokens) = (toy(), tokens());
    let sites = model.sites();
    let (_, cache) = model.run_with_cache(&tokens, &sites).unwrap();
    for (i, &site) in sites.iter().enumerate() {
        let mut met = Vec::new();
        let mut hooks = HookSet::new();
        hooks.on_each(
            sites.clone(),
            observe(|site, _| {
                met.push(site);
                Ok(())
            }),
        );
        let (act, stream) = (cache.get(site).unwrap(), cache.get(site.stream().unwrap()).unwrap());
        let _resid = model.resume(site, act, stream, &tokens, N_LAYERS, &mut hooks).unwrap();
        drop(hooks);
        assert_eq!(met, sites[i + 1..], "{site}");
    }
}

#[test]
fn where_no_run_can_begin_is_named() {
    let (model, tokens) = (toy(), tokens());
    let act = normal(&[2, 5, 6], 1);
    for at in ["blocks.1.attn.hook_q", "blocks.0.attn.hook_pattern", "ln_final.hook_scale"].map(site) {
        assert!(at.stream().is_none());
        let resumed = model.resume(at, &act, &act, &tokens, N_LAYERS, &mut HookSet::new());
        assert!(matches!(resumed, Err(HookError::NoResume(site)) if site == at));
        let text = refused(resumed, &[&format!("`{at}`")]);
        // The message tells every site at which one can.
        for (name, _) in RESUMABLE {
            assert!(text.contains(name), "does not say {name}: {text}");
        }
    }
}

#[test]
fn slices_of_the_vocabulary_are_the_logits() {
    let (model, tokens) = (toy(), tokens());
    let resid = model.residual(&tokens, N_LAYERS, &mut HookSet::new()).unwrap();
    let logits = model.unembed(&resid, &mut HookSet::new()).unwrap();
    let normed = model.final_norm(&resid, &mut HookSet::new()).unwrap();
    for at_a_time in [1, 7, D_VOCAB, 2 * D_VOCAB] {
        let starts = (0..D_VOCAB).step_by(at_a_time);
        let slices = starts.map(|v| model.readout(&normed, v..D_VOCAB.min(v + at_a_time)).unwrap());
        let slices: Vec<Tensor> = slices.collect();
        assert_close(&format!("{at_a_time} at a time"), &Tensor::cat(&slices, -1), &logits, ROUNDING);
    }
}
