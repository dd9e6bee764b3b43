//! Generation: what a full run says comes next, again and again.

use std::{cell::RefCell, collections::HashMap};

use gemma_model::{Gemma2, GenerateOptions, Generation, Sampling, generate};
use hooks::{
    ActivationCache, BoxError, Hook, HookPoint, HookSet, HookedModelExt as _, LayerIdx, Positions, Visit,
    edit, observe,
};
use proptest::prelude::*;
use tch::Tensor;
use testkit::{assert_close, normal};

use crate::common::{self, CASES, batch, cases, refused};

/// Rows of other lengths in other shapes: the same sums in another order.
const OTHER_ORDER: f64 = 1e-5;

/// A checkpoint with other gains, of random sign, behind the last block: tied embeddings make a random model
/// repeat its last token for ever, and a model that ignores its text would pass these tests.
fn model(case: &str) -> Gemma2 {
    let repetitive = common::model(case);
    let weights: HashMap<String, &Tensor> = repetitive.parameters().into_iter().collect();
    let config = repetitive.config().clone();
    let d_model = config.dims.d_model as i64;
    let weight = |name: &str| match name {
        "model.norm.weight" => normal(&[d_model], 13) - 1.0,
        _ => weights[name].shallow_clone(),
    };
    Gemma2::from_fn(config, |name, _| Ok(weight(name))).unwrap()
}

#[test]
fn the_models_of_these_tests_do_not_repeat_themselves() {
    for case in CASES {
        let rows = plain(&model(case), &prompts(), greedy(20));
        for row in &rows {
            let distinct: std::collections::HashSet<_> = row.iter().collect();
            assert!(distinct.len() > 4, "{case}: {row:?}");
        }
        assert_ne!(rows[0][1..], rows[1][1..], "{case}");
    }
}

/// Options without stop tokens.
fn endless(max_new_tokens: usize, sampling: Sampling) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sampling, stop: Some(vec![]) }
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    endless(max_new_tokens, Sampling::default())
}

fn plain(model: &Gemma2, prompts: &[Vec<i64>], options: GenerateOptions) -> Vec<Vec<i64>> {
    generate(model, prompts, options, HookSet::new(), |_| {}).unwrap()
}

/// The likeliest token behind a text, by a full run.
fn likeliest(logits: &Tensor) -> i64 {
    logits.get(0).get(-1).argmax(-1, false).int64_value(&[])
}

fn prompts() -> Vec<Vec<i64>> {
    vec![vec![2, 40, 50, 60, 70, 80, 90, 100, 110, 120], vec![2], vec![2, 77, 78, 79]]
}

#[test]
fn greedy_is_the_likeliest_token_of_full_runs() {
    for case in CASES {
        let model = model(case);
        for prompt in prompts() {
            let mut text = prompt.clone();
            for _ in 0..20 {
                text.push(likeliest(&model.logits(&batch(std::slice::from_ref(&text))).unwrap()));
            }
            let got = plain(&model, std::slice::from_ref(&prompt), greedy(20));
            assert_eq!(got, [text[prompt.len()..].to_vec()], "{case}: {prompt:?}");
        }
    }
}

#[test]
fn a_row_in_a_batch_is_the_row_alone() {
    for case in CASES {
        let model = model(case);
        let together = plain(&model, &prompts(), greedy(30));
        for (prompt, got) in prompts().iter().zip(&together) {
            let alone = plain(&model, std::slice::from_ref(prompt), greedy(30));
            assert_eq!(*got, alone[0], "{case}: {prompt:?}");
        }
    }
}

#[test]
fn the_context_may_be_filled_to_the_last_token() {
    let model = model("mini-2b");
    assert_eq!(plain(&model, &[vec![2; 10]], greedy(54))[0].len(), 54);
    assert_eq!(plain(&model, &[vec![2; 63]], greedy(1))[0].len(), 1);
}

#[test]
fn a_stop_token_ends_its_row_and_is_given_out() {
    let model = model("mini-9b");
    let free = plain(&model, &prompts(), greedy(20));
    for stop in [free[0][3], free[1][0], free[2][7]] {
        let options = GenerateOptions { stop: Some(vec![250, stop]), ..greedy(20) };
        let want: Vec<Vec<i64>> = free
            .iter()
            .map(|row| {
                let end = row.iter().position(|id| [250, stop].contains(id));
                let length = end.map_or(row.len(), |at| at + 1);
                row[..length].to_vec()
            })
            .collect();
        assert_ne!(want, free);
        assert_eq!(plain(&model, &prompts(), options), want, "stop at {stop}");
    }
}

#[test]
fn rows_that_have_ended_give_nothing_and_in_the_end_all_have() {
    let model = model("mini-9b");
    let free = plain(&model, &prompts(), greedy(20));
    let stop = vec![free[0][3], free[1][0], free[2][7]];
    let mut steps = Vec::new();
    let options = GenerateOptions { stop: Some(stop), ..greedy(20) };
    let rows = generate(&model, &prompts(), options, HookSet::new(), |step| steps.push(step.to_vec()));
    let rows = rows.unwrap();
    let longest = rows.iter().map(Vec::len).max().unwrap();
    assert!(longest < 20, "all have ended before the last step");
    assert_eq!(steps.len(), longest);
    for (i, row) in rows.iter().enumerate() {
        let given: Vec<_> = steps.iter().map(|step| step[i]).collect();
        let want: Vec<_> = (0..longest).map(|at| row.get(at).copied()).collect();
        assert_eq!(given, want, "row {i}");
    }
}

#[test]
fn by_default_the_models_end_of_text_stops() {
    // Weights that know no end: the likeliest token is made one.
    let released = model("mini-2b");
    let first = plain(&released, &prompts()[..1], greedy(5))[0].clone();
    let config = gemma_model::Gemma2Config { eos: vec![1, first[2]], ..released.config().clone() };
    let ending = common::with_config(&released, config);
    let length = first.iter().position(|id| *id == first[2]).unwrap() + 1;
    let got = plain(&ending, &prompts()[..1], GenerateOptions::greedy(5));
    assert_eq!(got, [first[..length].to_vec()]);
}

#[test]
fn no_new_tokens_are_none() {
    let model = model("mini-2b");
    let mut called = false;
    let rows = generate(&model, &prompts(), greedy(0), HookSet::new(), |_| called = true).unwrap();
    assert_eq!(rows, vec![Vec::<i64>::new(); 3]);
    assert!(!called);
    let mut generation = Generation::new(&model, &prompts(), greedy(0)).unwrap();
    assert_eq!(generation.step(&mut HookSet::new()).unwrap(), None);
}

#[test]
fn after_the_last_step_there_is_none() {
    let model = model("mini-2b");
    let mut generation = Generation::new(&model, &prompts(), greedy(2)).unwrap();
    let none = &mut HookSet::new();
    assert_eq!((generation.prompt().batch(), generation.prompt().pos()), (3, 10));
    assert!(generation.step(none).unwrap().is_some());
    assert!(generation.step(none).unwrap().is_some());
    assert_eq!(generation.step(none).unwrap(), None);
    assert_eq!(generation.step(none).unwrap(), None);
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.5, seed, ..Sampling::default() }
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    for case in CASES {
        let model = model(case);
        let with = |seed| plain(&model, &prompts(), endless(30, sampled(seed)));
        assert_eq!(with(7), with(7), "{case}");
        assert_ne!(with(7), with(8), "{case}");
    }
}

#[test]
fn the_draws_of_a_row_are_its_own() {
    let model = model("mini-9b");
    let others = [vec![2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], vec![2, 200]];
    let of = |prompts: &[Vec<i64>]| plain(&model, prompts, endless(30, sampled(3)));
    let [a, b, c] = <[Vec<i64>; 3]>::try_from(prompts()).unwrap();
    let all = of(&[a.clone(), b, c.clone()]);
    for other in others {
        let with = of(&[a.clone(), other.clone(), c.clone()]);
        assert_eq!((&with[0], &with[2]), (&all[0], &all[2]), "beside {other:?}");
        assert_ne!(with[1], all[1]);
    }
    assert_eq!(of(std::slice::from_ref(&a))[0], all[0], "alone");
    // Neither does it matter that another row has ended.
    let options = GenerateOptions { stop: Some(vec![all[1][0]]), ..endless(30, sampled(3)) };
    let ended = plain(&model, &prompts(), options);
    assert_eq!(ended[1].len(), 1);
    assert_eq!(ended[2], all[2][..ended[2].len()]);
    // And the same prompt twice is drawn for twice.
    let twice = of(&[a.clone(), a]);
    assert_ne!(twice[0], twice[1]);
}

#[test]
fn top_k_of_one_is_greedy() {
    let model = model("mini-27b");
    let sampling = Sampling { temperature: 1.0, top_k: Some(1), ..Sampling::default() };
    assert_eq!(plain(&model, &prompts(), endless(20, sampling)), plain(&model, &prompts(), greedy(20)));
}

/// Notes where each visit begins and how many positions it sees.
#[derive(Default)]
struct Visits(Vec<(i64, i64)>);

impl Hook for Visits {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        self.0.push((at.first_pos, act.size()[1]));
        Ok(None)
    }
}

#[test]
fn hooks_fire_at_every_step_and_know_where_they_are() {
    let model = model("mini-9b");
    let mut blocks = Visits::default();
    let mut end = Visits::default();
    let mut hooks = HookSet::new();
    hooks.on(HookPoint::ResidPost(LayerIdx(2)), &mut blocks).on(HookPoint::LnFinalNormalized, &mut end);
    generate(&model, &prompts(), greedy(4), hooks, |_| {}).unwrap();
    // The prompt at once, then token after token; nobody asks what follows the last one.
    assert_eq!(blocks.0, [(0, 10), (10, 1), (11, 1), (12, 1)]);
    assert_eq!(end.0, [(9, 1), (10, 1), (11, 1), (12, 1)]);
}

#[test]
fn steering_acts_on_every_token() {
    for case in CASES {
        let model = model(case);
        let site = HookPoint::ResidPost(LayerIdx(1));
        let step = || edit::add(normal(&[model.config().dims.d_model as i64], 9), 6.0);
        let prompt = prompts().remove(0);
        let mut text = prompt.clone();
        for _ in 0..15 {
            let mut hooks = HookSet::new();
            hooks.on(site, step());
            text.push(likeliest(&model.run(&batch(std::slice::from_ref(&text)), hooks).unwrap()));
        }
        let mut hooks = HookSet::new();
        hooks.on(site, step());
        let prompts = [prompt.clone()];
        let steered = generate(&model, &prompts, greedy(15), hooks, |_| {}).unwrap();
        assert_eq!(steered[0], text[prompt.len()..], "{case}");
        assert_ne!(steered, plain(&model, &prompts, greedy(15)), "{case}");
    }
}

#[test]
fn steering_from_a_position_on_leaves_what_comes_before() {
    let model = model("mini-2b");
    let prompts = [prompts().remove(0)];
    let free = plain(&model, &prompts, greedy(15));
    let generation = Generation::new(&model, &prompts, greedy(15)).unwrap();
    // Column 15 is the sixth new token's: it is seen by the seventh.
    let positions = Positions::Range { start: 15, end: None }.over(generation.prompt()).unwrap();
    let mut hooks = HookSet::new();
    hooks.on(HookPoint::ResidPost(LayerIdx(1)), edit::add(normal(&[48], 9), 60.0).at(positions));
    let steered = generate(&model, &prompts, greedy(15), hooks, |_| {}).unwrap();
    assert_eq!(steered[0][..6], free[0][..6]);
    assert_ne!(steered[0], free[0]);
}

#[test]
fn logits_at_each_step_are_those_of_the_whole_text() {
    // What the norm behind the last block shows at each step is the last position of a full run.
    let model = model("mini-padded");
    let prompts = [prompts().remove(0)];
    let seen = RefCell::new(Vec::new());
    let mut hooks = HookSet::new();
    hooks.on(
        HookPoint::LnFinalNormalized,
        observe(|_, act| {
            seen.borrow_mut().push(act.copy());
            Ok(())
        }),
    );
    let new = generate(&model, &prompts, greedy(12), hooks, |_| {}).unwrap();
    let text = [&prompts[0][..], &new[0][..11]].concat();
    let site = HookPoint::LnFinalNormalized;
    let whole = model.harvest(&batch(&[text]), &[site]).unwrap().take(site).unwrap();
    assert_close("steps", &Tensor::cat(&seen.take(), 1), &whole.narrow(1, 9, 12), OTHER_ORDER);
}

#[test]
fn activations_of_all_steps_are_those_of_the_whole_text() {
    let model = model("mini-2b");
    let prompts = [prompts().remove(0)];
    let by_position = |site: &HookPoint| {
        !site.is_final() && !matches!(site, HookPoint::AttnScores(_) | HookPoint::AttnPattern(_))
    };
    let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).filter(by_position).collect();
    let mut acts = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on_each(sites.iter().copied(), &mut acts);
    let new = generate(&model, &prompts, greedy(20), hooks, |_| {}).unwrap();
    let text = [&prompts[0][..], &new[0][..19]].concat();
    let whole = model.harvest(&batch(&[text]), &sites).unwrap();
    for (site, want) in whole.iter() {
        assert_close(&site.to_string(), acts.get(site).unwrap(), want, OTHER_ORDER);
    }
}

#[test]
fn a_hook_that_never_fires_is_an_error() {
    let model = model("mini-2b");
    let site = HookPoint::ResidPost(LayerIdx(1));
    let mut hooks = HookSet::new();
    hooks.on(site, edit::zero());
    refused(generate(&model, &prompts(), greedy(0), hooks, |_| {}), &["did not fire", &site.to_string()]);
}

#[test]
fn a_site_that_the_model_does_not_have_is_refused_before_anything_runs() {
    let model = model("mini-2b");
    let mut visits = Visits::default();
    let mut hooks = HookSet::new();
    hooks.on(HookPoint::Embed, &mut visits).on(HookPoint::ResidPost(LayerIdx(4)), edit::zero());
    let result = generate(&model, &prompts(), greedy(3), hooks, |_| panic!("a token came"));
    refused(result, &["`blocks.4.hook_resid_post`", "layers 0 to 3"]);
    assert!(visits.0.is_empty());
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let model = model("mini-2b");
    let with = |sampling| Generation::new(&model, &prompts(), endless(3, sampling));
    for temperature in [-1.0, -1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused(with(Sampling::with_temperature(temperature)), &["temperature", &temperature.to_string()]);
    }
    let base = Sampling::with_temperature(1.0);
    refused(with(Sampling { top_k: Some(0), ..base }), &["top-k", "0"]);
    for p in [0.0, 1.5, -0.1, f64::NAN] {
        refused(with(Sampling { top_p: Some(p), ..base }), &["top-p", &p.to_string()]);
    }
    for p in [2.0, -0.1, f64::NAN] {
        refused(with(Sampling { min_p: Some(p), ..base }), &["min-p", &p.to_string()]);
    }
    // They are no settings of a greedy choice either.
    refused(with(Sampling { top_k: Some(0), ..Sampling::default() }), &["top-k", "0"]);
}

#[test]
fn prompts_that_nothing_can_follow_are_refused() {
    let model = model("mini-2b");
    let with = |prompts: &[Vec<i64>], new| Generation::new(&model, prompts, greedy(new));
    refused(with(&[], 3), &["at least one sequence"]);
    refused(with(&[vec![]], 3), &["sequence 0"]);
    refused(with(&[vec![2], vec![]], 3), &["sequence 1"]);
    refused(with(&[vec![2, 320]], 3), &["320"]);
    refused(with(&[vec![2, -1]], 3), &["-1"]);
    refused(with(&[vec![2], vec![2; 60]], 5), &["60 tokens", "5 new", "64"]);
    refused(with(&[vec![2; 65]], 0), &["65", "64"]);
    refused(with(&[vec![2]], usize::MAX), &["64"]);
    assert!(with(&[vec![2], vec![2; 60]], 4).is_ok());
}

/// Fails once, at one visit.
struct FailsOnce {
    in_visits: usize,
}

impl Hook for FailsOnce {
    fn visit(&mut self, _at: Visit, _act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        self.in_visits = self.in_visits.wrapping_sub(1);
        if self.in_visits == usize::MAX { Err("a reason of its own".into()) } else { Ok(None) }
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn a_failed_step_may_be_tried_again(
        case in prop::sample::select(&["mini-2b", "mini-9b", "mini-padded"][..]),
        chosen in any::<prop::sample::Index>(),
        at_step in 0usize..25,
        seed in any::<u64>(),
    ) {
        let model = model(case);
        // Final sites too: there the blocks have run when the hook fails.
        let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).collect();
        for site in [sites[chosen.index(sites.len())], HookPoint::LnFinalScale] {
            let want = plain(&model, &prompts(), endless(25, sampled(seed)));
            let mut generation = Generation::new(&model, &prompts(), endless(25, sampled(seed))).unwrap();
            let mut hooks = HookSet::new();
            hooks.on(site, FailsOnce { in_visits: at_step });
            let mut rows = vec![Vec::new(); 3];
            let mut failures = 0;
            loop {
                match generation.step(&mut hooks) {
                    Ok(None) => break,
                    Ok(Some(ids)) => rows.iter_mut().zip(ids).for_each(|(row, id)| row.extend(id)),
                    Err(error) => {
                        refused(Err::<(), _>(error), &[&site.to_string(), "of its own"]);
                        failures += 1;
                    }
                }
            }
            prop_assert_eq!(failures, 1);
            prop_assert_eq!(rows, want, "{}: {} failed at step {}", case, site, at_step);
        }
    }
}

#[test]
fn a_step_whose_logits_are_nan_may_be_tried_again() {
    let model = model("mini-9b");
    let want = plain(&model, &prompts(), greedy(10));
    for at_step in [0, 1, 5] {
        for site in [HookPoint::LnFinalNormalized, HookPoint::ResidPost(LayerIdx(4))] {
            let mut generation = Generation::new(&model, &prompts(), greedy(10)).unwrap();
            let mut rows = vec![Vec::new(); 3];
            for step in 0..10 {
                if step == at_step {
                    let mut hooks = HookSet::new();
                    hooks.on(site, edit::scale(f64::NAN));
                    refused(generation.step(&mut hooks), &["NaN"]);
                }
                let ids = generation.step(&mut HookSet::new()).unwrap().unwrap();
                rows.iter_mut().zip(ids).for_each(|(row, id): (&mut Vec<i64>, _)| row.extend(id));
            }
            assert_eq!(rows, want, "{site} gave NaN at step {at_step}");
        }
    }
}
