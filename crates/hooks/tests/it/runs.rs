//! What a run with hooks promises: looking changes no bit, and hooks see the sites in order, each once.

use std::{cell::RefCell, thread};

use hooks::{
    ActivationCache, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, edit, observe, replace,
};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use testkit::{ToyModel, assert_close, assert_same};

use crate::common::{N_LAYERS, after, cases, site, tokens, toy};

/// The sum of two float32 numbers is rounded once, and the test repeats the same operations in another order.
const ROUNDING: f64 = 1e-6;

#[test]
fn looking_changes_no_bit() {
    let (model, tokens) = (toy(), tokens());
    let plain = model.logits(&tokens).unwrap();
    let mut hooks = HookSet::new();
    hooks.on_each(model.sites(), observe(|_, _| Ok(())));
    assert_same("observe", &model.run(&tokens, hooks).unwrap(), &plain);
    let (logits, cache) = model.run_with_cache(&tokens, &model.sites()).unwrap();
    assert_same("cache", &logits, &plain);
    assert_eq!(cache.len(), model.sites().len());
    assert_same("empty set", &model.run(&tokens, HookSet::new()).unwrap(), &plain);
}

#[test]
fn replacing_a_value_by_itself_changes_no_bit() {
    let (model, tokens) = (toy(), tokens());
    let plain = model.logits(&tokens).unwrap();
    let mut hooks = HookSet::new();
    hooks.on_each(model.sites(), replace(|_, act| Ok(act.copy())));
    assert_same("copies", &model.run(&tokens, hooks).unwrap(), &plain);
    let mut hooks = HookSet::new();
    hooks.on_each(model.sites(), edit::scale(1.0));
    assert_same("times one", &model.run(&tokens, hooks).unwrap(), &plain);
}

#[test]
fn every_site_once_and_in_order() {
    let model = toy();
    let mut met = Vec::new();
    let mut hooks = HookSet::new();
    hooks.on_each(
        model.sites(),
        observe(|site, _| {
            met.push(site);
            Ok(())
        }),
    );
    let _logits = model.run(&tokens(), hooks).unwrap();
    assert_eq!(met, model.sites());
    let names: Vec<_> = met.iter().take(6).map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "hook_embed",
            "blocks.0.hook_resid_pre",
            "blocks.0.hook_resid_mid",
            "blocks.0.hook_mlp_out",
            "blocks.0.hook_resid_post",
            "blocks.1.hook_resid_pre"
        ]
    );
}

#[test]
fn hooks_at_one_site_run_in_the_order_they_were_added() {
    let at = site("blocks.1.hook_mlp_out");
    let order = RefCell::new(Vec::new());
    let note = |name: &'static str| {
        let order = &order;
        observe(move |_, _| {
            order.borrow_mut().push(name);
            Ok(())
        })
    };
    let mut hooks = HookSet::new();
    hooks.on(at, note("first")).on_each([site("hook_embed"), at], note("second")).on(at, note("third"));
    let _logits = toy().run(&tokens(), hooks).unwrap();
    assert_eq!(order.into_inner(), ["second", "first", "second", "third"]);
}

#[test]
fn a_cache_after_an_edit_sees_it_and_one_before_does_not() {
    let at = site("blocks.1.hook_mlp_out");
    let (model, tokens) = (toy(), tokens());
    let (_, plain) = model.run_with_cache(&tokens, &[at]).unwrap();
    let (mut before, mut after) = (ActivationCache::default(), ActivationCache::default());
    let mut hooks = HookSet::new();
    hooks.on(at, &mut before).on(at, edit::scale(2.0)).on(at, &mut after);
    let _logits = model.run(&tokens, hooks).unwrap();
    assert_same("before", before.get(at).unwrap(), plain.get(at).unwrap());
    // Doubling is exact in floating point.
    assert_same("after", after.get(at).unwrap(), &(plain.get(at).unwrap() * 2.0));
}

#[test]
fn a_replacement_is_what_the_rest_of_the_model_computes_with() {
    let (model, tokens) = (toy(), tokens());
    let at = site("blocks.1.hook_resid_post");
    let new = testkit::normal(&[2, 5, 6], 9);
    let mut hooks = HookSet::new();
    hooks.on(at, edit::set(new.copy()));
    let edited = model.run(&tokens, hooks).unwrap();
    // The same by hand: the last block and the unembedding of the new residual.
    let resid = model.blocks(&new, &tokens, 2..N_LAYERS, &mut HookSet::new()).unwrap();
    assert_same("logits", &edited, &model.unembed(&resid, &mut HookSet::new()).unwrap());
}

#[test]
fn removing_every_block_leaves_the_embedding() {
    let (model, tokens) = (toy(), tokens());
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on_each(HookPoint::parse_list("blocks.*.hook_mlp_out", N_LAYERS).unwrap(), edit::zero());
    hooks.on(site("hook_embed"), &mut cache);
    let logits = model.run(&tokens, hooks).unwrap();
    let embed = cache.take(site("hook_embed")).unwrap();
    assert_same("logits", &logits, &model.unembed(&embed, &mut HookSet::new()).unwrap());
}

#[test]
fn the_residual_stream_is_a_sum() {
    let model = toy();
    let (_, cache) = model.run_with_cache(&tokens(), &model.sites()).unwrap();
    let mut sum = cache.get(site("hook_embed")).unwrap().shallow_clone();
    for l in 0..N_LAYERS {
        assert_close(
            "resid_pre",
            cache.get(site(&format!("blocks.{l}.hook_resid_pre"))).unwrap(),
            &sum,
            ROUNDING,
        );
        sum += cache.get(site(&format!("blocks.{l}.hook_mlp_out"))).unwrap();
        assert_close(
            "resid_post",
            cache.get(site(&format!("blocks.{l}.hook_resid_post"))).unwrap(),
            &sum,
            ROUNDING,
        );
    }
}

#[test]
fn nothing_is_left_for_the_next_run() {
    let (model, tokens) = (toy(), tokens());
    let plain = model.logits(&tokens).unwrap();
    let mut hooks = HookSet::new();
    hooks.on(site("hook_embed"), edit::zero());
    let edited = model.run(&tokens, hooks).unwrap();
    assert!(!edited.equal(&plain));
    assert_same("after", &model.logits(&tokens).unwrap(), &plain);
}

#[test]
fn a_set_may_serve_several_runs() {
    let (model, tokens) = (toy(), tokens());
    let mut count = 0;
    let mut hooks = HookSet::new();
    hooks.on(
        site("hook_embed"),
        observe(|_, _| {
            count += 1;
            Ok(())
        }),
    );
    for _ in 0..3 {
        let _logits = model.forward(&tokens, &mut hooks).unwrap();
    }
    hooks.finish().unwrap();
    assert_eq!(count, 3);
}

#[test]
fn a_second_run_overwrites_what_a_cache_holds() {
    let model = toy();
    let at = site("hook_embed");
    let mut cache = ActivationCache::default();
    for ids in [vec![2, 3], vec![2, 9]] {
        let batch = hooks::TokenBatch::new(&[ids], &[]).unwrap();
        let mut hooks = HookSet::new();
        hooks.on(at, &mut cache);
        let _logits = model.run(&batch, hooks).unwrap();
        assert_same("latest", cache.get(at).unwrap(), model.harvest(&batch, &[at]).unwrap().get(at).unwrap());
    }
}

#[test]
fn a_set_tells_what_it_wants() {
    let mut hooks = HookSet::new();
    assert!(hooks.is_empty() && !hooks.wants(HookPoint::Embed));
    hooks.on(HookPoint::Embed, edit::zero()).on(HookPoint::LnFinalScale, edit::zero());
    assert!(!hooks.is_empty() && hooks.wants(HookPoint::Embed) && !hooks.wants(HookPoint::LnFinalNormalized));
    let mut sites: Vec<_> = hooks.sites().collect();
    sites.sort();
    assert_eq!(sites, [HookPoint::Embed, HookPoint::LnFinalScale]);
    assert!(format!("{hooks:?}").contains("Embed"));
}

#[test]
fn without_hooks_a_site_hands_back_its_argument() {
    let act = testkit::normal(&[1, 2, 3], 1);
    let mut other_site = HookSet::new();
    other_site.on(HookPoint::LnFinalScale, edit::zero());
    for mut hooks in [HookSet::new(), other_site] {
        let back = hooks.at(HookPoint::Embed, act.shallow_clone()).unwrap();
        // The same memory, not only the same values.
        assert_eq!(back.data_ptr(), act.data_ptr());
    }
}

#[test]
fn a_boxed_hook_and_a_borrowed_one_are_hooks() {
    let boxed: Box<dyn hooks::Hook> = Box::new(edit::zero());
    let zeroed = after(boxed, HookPoint::Embed).unwrap();
    assert_eq!(zeroed.abs().max().double_value(&[]), 0.0);
    let mut kept = edit::zero();
    assert_same("borrowed", &after(&mut kept, HookPoint::Embed).unwrap(), &zeroed);
}

#[test]
fn a_model_runs_in_another_thread() {
    let model = toy();
    let here = model.logits(&tokens()).unwrap();
    // The mode of gradients belongs to a thread: ours is off here, and on there.
    let _guard = tch::no_grad_guard();
    let there = thread::spawn(move || {
        let trained = Tensor::from(1.0f32).set_requires_grad(true);
        (model.logits(&tokens()).unwrap(), (&trained * 2.0).requires_grad())
    });
    let (logits, gradients) = there.join().unwrap();
    assert_same("thread", &logits, &here);
    assert!(gradients);
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn any_set_of_identity_hooks_changes_no_bit(
        n_layers in 0usize..4,
        seed in 0u64..1000,
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let model = ToyModel::new(n_layers, 4, 9, seed);
        let batch = hooks::TokenBatch::new(&[vec![2, 8, 0, 5]], &[]).unwrap();
        let plain = model.logits(&batch).unwrap();
        let mut hooks = HookSet::new();
        let sites = model.sites();
        for (i, index) in chosen.iter().enumerate() {
            match i % 3 {
                0 => hooks.on(*index.get(&sites), observe(|_, _| Ok(()))),
                1 => hooks.on(*index.get(&sites), replace(|_, act| Ok(act.shallow_clone()))),
                _ => hooks.on(*index.get(&sites), edit::add(Tensor::zeros([4], (Kind::Float, tch::Device::Cpu)), 1.0)),
            };
        }
        // x + 0 = x to the last bit (but for the sign of a zero, which no logit of these shows).
        prop_assert!(model.run(&batch, hooks).unwrap().equal(&plain));
    }
}
