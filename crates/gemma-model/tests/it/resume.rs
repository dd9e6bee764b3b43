//! A run that begins behind a site with an activation of one's own is the whole run with that one set there.

use gemma_model::Gemma2;
use hooks::{
    ActivationCache, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, LayerIdx, edit, observe,
    replace,
};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal, relative_error};

use crate::common::{CASES, ONE_STEP, Run, refused, small, tokens};

/// The sites where a run can begin.
fn starts(n_layers: usize) -> Vec<HookPoint> {
    HookPoint::all(n_layers).filter(|site| site.stream().is_some()).collect()
}

fn act(run: &Run, site: HookPoint) -> Tensor {
    run.raw(&site.to_string()).shallow_clone()
}

/// What stands at the site of `act`'s stream.
fn stream(run: &Run, site: HookPoint) -> Tensor {
    act(run, site.stream().unwrap())
}

fn resumed(run: &Run, site: HookPoint, act: &Tensor, end: usize, hooks: &mut HookSet<'_>) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    run.model.resume(site, act, &stream(run, site), &run.tokens, end, hooks).unwrap()
}

#[test]
fn nine_sites_of_the_model_let_a_run_begin() {
    // The stretches of the stream, and the ends of the branches that are added to it.
    assert_eq!(starts(2).len(), 1 + 2 * 8);
    for site in starts(2) {
        let stream = site.stream().unwrap();
        assert!(stream <= site && stream.layer() == site.layer(), "{site} is added to {stream}");
    }
}

#[test]
fn resuming_with_the_runs_own_activation_is_the_run() {
    for case in CASES {
        let run = Run::of(case);
        let n_layers = run.layers().end;
        for site in starts(n_layers) {
            for end in site.blocks_needed(n_layers).max(1)..=n_layers {
                let resid = resumed(&run, site, &act(&run, site), end, &mut HookSet::new());
                let want = run.raw(&format!("blocks.{}.hook_resid_post", end - 1));
                assert_same(&format!("{case}: {site} to block {end}"), &resid, want);
            }
            let resid = resumed(&run, site, &act(&run, site), n_layers, &mut HookSet::new());
            let logits = run.model.unembed(&resid, &mut HookSet::new()).unwrap();
            assert_same(&format!("{case}: {site}"), &logits, &run.logits);
        }
    }
}

#[test]
fn resuming_with_another_activation_is_the_run_with_it_set() {
    for case in CASES {
        let run = Run::of(case);
        let n_layers = run.layers().end;
        for (seed, site) in starts(n_layers).into_iter().enumerate() {
            let own = act(&run, site);
            let other = &own + normal(&own.size(), seed as u64) * own.std(false);
            let mut hooks = HookSet::new();
            hooks.on(site, edit::set(other.shallow_clone()));
            let want = run.model.run(&run.tokens, hooks).unwrap();
            let resid = resumed(&run, site, &other, n_layers, &mut HookSet::new());
            let logits = run.model.unembed(&resid, &mut HookSet::new()).unwrap();
            assert_same(&format!("{case}: {site}"), &logits, &want);
            assert!(relative_error(&want, &run.logits) > 1e-3, "{case}: {site} does nothing");
        }
    }
}

#[test]
fn sites_behind_fire_and_the_site_itself_does_not() {
    for case in CASES {
        let run = Run::of(case);
        let n_layers = run.layers().end;
        for site in starts(n_layers) {
            let mut met = Vec::new();
            let mut acts = ActivationCache::default();
            let mut hooks = HookSet::new();
            hooks.on_each(
                HookPoint::all(n_layers),
                observe(|site, _| {
                    met.push(site);
                    Ok(())
                }),
            );
            hooks.on_each(HookPoint::all(n_layers), &mut acts);
            let _resid = resumed(&run, site, &act(&run, site), n_layers, &mut hooks);
            drop(hooks);
            let behind = HookPoint::all(n_layers).skip_while(|s| *s != site).skip(1);
            let behind: Vec<_> = behind.filter(|s| !s.is_final()).collect();
            assert_eq!(met, behind, "{case}: behind {site}");
            for (at, got) in acts.iter() {
                assert_same(&format!("{case}: {at} behind {site}"), got, run.raw(&at.to_string()));
            }
        }
    }
}

#[test]
fn what_is_given_is_left_as_it_was() {
    let run = Run::of("mini-2b");
    for site in starts(run.layers().end) {
        let (given, stream) = (act(&run, site), stream(&run, site));
        let (given_before, stream_before) = (given.copy(), stream.copy());
        let _resid = resumed(&run, site, &given, run.layers().end, &mut HookSet::new());
        assert_same(&format!("{site}"), &given, &given_before);
        assert_same(&format!("{site}'s stream"), &stream, &stream_before);
    }
}

/// Mean cross-entropy of each next token.
fn loss(logits: &Tensor, run: &Run) -> Tensor {
    let n = run.tokens.pos() - 1;
    let predicted = logits.narrow(1, 0, n).flatten(0, 1);
    predicted.cross_entropy_for_logits(&run.tokens.ids().narrow(1, 1, n).flatten(0, 1))
}

#[test]
fn gradients_are_those_of_the_whole_run() {
    for case in CASES {
        let run = Run::of(case);
        let n_layers = run.layers().end;
        for site in starts(n_layers) {
            let leaf = || act(&run, site).copy().set_requires_grad(true);
            let gradient = |logits: &Tensor, leaf: &Tensor| {
                Tensor::run_backward(&[loss(logits, &run)], &[leaf], false, false).remove(0)
            };

            let whole = leaf();
            let mut hooks = HookSet::new();
            hooks.on(site, replace(|_, _| Ok(whole.shallow_clone())));
            let logits = run.model.forward(&run.tokens, &mut hooks).unwrap();
            let want = gradient(&logits, &whole);

            let part = leaf();
            let none = &mut HookSet::new();
            let stream = stream_of(&run, site, &part);
            let resid = run.model.resume(site, &part, &stream, &run.tokens, n_layers, none);
            let logits = run.model.unembed(&resid.unwrap(), none).unwrap();
            assert_close(&format!("{case}: {site}"), &gradient(&logits, &part), &want, ONE_STEP);
            assert!(want.abs().max().double_value(&[]) > 0.0, "{case}: {site} has no gradient");
        }
    }
}

/// A stretch of the stream is its own stream, gradient and all.
fn stream_of(run: &Run, site: HookPoint, leaf: &Tensor) -> Tensor {
    if site.stream() == Some(site) { leaf.shallow_clone() } else { stream(run, site) }
}

#[test]
fn sites_where_no_run_can_begin_are_refused_by_name() {
    let run = Run::of("mini-2b");
    let n_layers = run.layers().end;
    let x = act(&run, HookPoint::Embed);
    for site in HookPoint::all(n_layers).filter(|site| site.stream().is_none()) {
        let none = &mut HookSet::new();
        refused(run.model.resume(site, &x, &x, &run.tokens, n_layers, none), &[&format!("`{site}`")]);
    }
}

#[test]
fn shapes_and_dtypes_that_the_site_does_not_have_are_refused() {
    let run = Run::of("mini-9b");
    let n_layers = run.layers().end;
    let none = &mut HookSet::new();
    for site in starts(n_layers) {
        let (own, stream) = (act(&run, site), stream(&run, site));
        // What enters a block as it is is called the residual.
        let enters = matches!(site, HookPoint::Embed | HookPoint::ResidPost(_));
        let name = if enters { "residual".to_owned() } else { site.to_string() };
        let mut resume =
            |act: &Tensor, stream: &Tensor| run.model.resume(site, act, stream, &run.tokens, n_layers, none);
        for bad in [
            own.unsqueeze(0),
            own.narrow(0, 0, 1),
            own.narrow(1, 0, 3),
            own.narrow(own.dim() as i64 - 1, 0, 5),
            own.flatten(0, -1),
        ] {
            let bad_stream = if name == "residual" { &bad } else { &stream };
            refused(resume(&bad, bad_stream), &[&name]);
        }
        let half = own.to_kind(Kind::Half);
        refused(resume(&half, if name == "residual" { &half } else { &stream }), &[&name, "F16"]);
        if site.stream() != Some(site) {
            refused(resume(&own, &stream.narrow(1, 0, 3)), &["residual"]);
            refused(resume(&own, &stream.to_kind(Kind::Half)), &["residual", "F16"]);
        }
    }
}

#[test]
fn blocks_that_the_model_does_not_have_are_refused() {
    let run = Run::of("mini-sharded");
    let none = &mut HookSet::new();
    let mut resume = |site: HookPoint, end: usize| {
        let own = run.raw(&site_in_block_0(site).to_string());
        let stream = run.raw(&site_in_block_0(site).stream().unwrap().to_string());
        run.model.resume(site, own, stream, &run.tokens, end, none)
    };
    for site in starts(1).into_iter().filter(|site| *site != HookPoint::Embed) {
        for l in [4, 5, usize::MAX - 1] {
            refused(resume(in_layer(site, l), 4), &["out of range", "4"]);
        }
        // An end that the model does not have, and one that lies before the site.
        refused(resume(in_layer(site, 1), 5), &["out of range", "5", "4"]);
        refused(resume(in_layer(site, 2), 1), &["out of range", "1"]);
    }
    refused(resume(HookPoint::Embed, 5), &["out of range", "5", "4"]);
}

#[test]
fn a_layer_that_no_layer_can_follow_is_refused() {
    let run = Run::of("mini-sharded");
    for site in starts(1).into_iter().filter(|site| *site != HookPoint::Embed) {
        let (own, stream) = (act(&run, site), stream(&run, site));
        let far = in_layer(site, usize::MAX);
        refused(run.model.resume(far, &own, &stream, &run.tokens, 4, &mut HookSet::new()), &["out of range"]);
    }
}

/// The same site of another block.
fn in_layer(site: HookPoint, l: usize) -> HookPoint {
    format!("blocks.{l}.{}", site.short_name()).parse().unwrap()
}

fn site_in_block_0(site: HookPoint) -> HookPoint {
    if site == HookPoint::Embed { site } else { in_layer(site, 0) }
}

#[test]
fn the_caller_decides_about_gradients() {
    let model = Gemma2::init(small(), 3).unwrap();
    let tokens = hooks::TokenBatch::new(&[vec![2, 5, 9]], &[2]).unwrap();
    let x = normal(&[1, 3, 16], 1);
    let site = HookPoint::ResidPre(LayerIdx(1));
    let resume = || model.resume(site, &x, &x, &tokens, 2, &mut HookSet::new()).unwrap();
    assert!(resume().requires_grad(), "the weights ask for gradients");
    let _no_grad = tch::no_grad_guard();
    assert!(!resume().requires_grad());
}

#[test]
fn padding_is_hidden_as_in_the_whole_run() {
    // Resuming under another mask is another run: the tokens say what attention may see.
    let run = Run::of("mini-padded");
    let site = HookPoint::ResidPre(LayerIdx(1));
    let all = hooks::TokenBatch::new(tokens("mini-padded").rows(), &[2]).unwrap();
    let x = act(&run, site);
    let none = &mut HookSet::new();
    let unmasked = run.model.resume(site, &x, &x, &all, 3, none).unwrap();
    let masked = resumed(&run, site, &x, 3, none);
    assert_same("masked", &masked, run.raw("blocks.2.hook_resid_post"));
    // Right padding is seen by padding alone.
    let of = |t: &Tensor, row: i64, from: i64| t.get(row).narrow(0, from, 14 - from);
    assert!(relative_error(&of(&unmasked, 2, 9), &of(&masked, 2, 9)) > 1e-4);
}
