//! Every number against one computed the plain way: one token at a time, with the dense encoder, in float64.

use std::collections::BTreeMap;

use dashboard::{Analysis, DashboardError, LatentActivation, PER_PROMPT, SaeAnalysis, SaeAt, analyze};
use hooks::{HookedModelExt as _, TokenBatch};
use sae_core::Sae;
use tch::{Kind, Tensor};
use testkit::{normal, uniform};

use crate::{D_MODEL, at, batch, example, rows, sae, silent, toy};

/// The two ways sum the same float32 products in different orders.
const ROUNDING: f64 = 1e-5;

fn near(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= ROUNDING * want.abs().max(1.0), "{what}: {got} is not {want}");
}

fn vector(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double)).unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// x, f and x̂ of every token of every prompt.
struct Plain {
    x: Vec<Vec<Vec<f64>>>,
    f: Vec<Vec<Vec<f64>>>,
    x_hat: Vec<Vec<Vec<f64>>>,
    mean: Vec<f64>,
    /// Of each latent, over the tokens that count.
    mean_f: Vec<f64>,
}

/// Each prompt runs alone, so nothing here is padded.
fn plain(at: &SaeAt<'_>, rows: &[Vec<i64>]) -> Plain {
    let mut plain =
        Plain { x: vec![], f: vec![], x_hat: vec![], mean: vec![0.0; D_MODEL as usize], mean_f: vec![] };
    for row in rows {
        let tokens = TokenBatch::new(std::slice::from_ref(row), &[0, 1, 2]).unwrap();
        let acts = toy().harvest(&tokens, &[at.site]).unwrap().take(at.site).unwrap().squeeze_dim(0);
        let each =
            |of: &dyn Fn(Tensor) -> Tensor| (0..row.len()).map(|t| vector(&of(acts.get(t as i64)))).collect();
        plain.x.push(each(&|x| x));
        plain.f.push(each(&|x| at.sae.encode(&x).unwrap()));
        plain.x_hat.push(each(&|x| at.sae.decode(&at.sae.encode(&x).unwrap()).unwrap()));
    }
    // BOS is first in each row, and the one token that does not count.
    let f: Vec<&Vec<f64>> = plain.f.iter().flat_map(|fs| &fs[1..]).collect();
    plain.mean_f = (0..f[0].len()).map(|i| f.iter().map(|f| f[i]).sum::<f64>() / f.len() as f64).collect();
    let counted: Vec<&Vec<f64>> = plain.x.iter().flat_map(|xs| &xs[1..]).collect();
    for x in &counted {
        plain.mean.iter_mut().zip(*x).for_each(|(m, x)| *m += x / counted.len() as f64);
    }
    plain
}

/// Active latents, strongest first.
fn ranked(f: &[f64]) -> Vec<(usize, f64)> {
    let mut ranked: Vec<_> = f.iter().copied().enumerate().filter(|(_, a)| *a > 0.0).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

fn check(got: &SaeAnalysis, want: &Plain, top: usize) {
    let (mut l0, mut error, mut variance, mut n) = (0.0, 0.0, 0.0, 0.0);
    for (p, found) in got.prompts.iter().enumerate() {
        assert_eq!(found.tokens.len(), want.x[p].len());
        for (t, token) in found.tokens.iter().enumerate() {
            let (x, x_hat, order) = (&want.x[p][t], &want.x_hat[p][t], ranked(&want.f[p][t]));
            let what = format!("{} prompt {p} token {t}", got.id);
            assert_eq!(token.l0, order.len() as i64, "{what}");
            let unexplained = distance(x, x_hat) / distance(x, &want.mean);
            near(&what, token.explained_variance.unwrap(), 1.0 - unexplained);
            let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let dot: f64 = x.iter().zip(x_hat).map(|(a, b)| a * b).sum();
            near(&what, token.cosine.unwrap(), dot / norm(x) / norm(x_hat));
            assert_eq!(token.top.len(), top.min(order.len()), "{what}");
            for (LatentActivation { latent, activation }, (want, value)) in token.top.iter().zip(&order) {
                assert_eq!(latent, want, "{what}");
                near(&what, f64::from(*activation), *value);
            }
            let mut order = order;
            order.sort_by(|a, b| (b.1 - want.mean_f[b.0]).total_cmp(&(a.1 - want.mean_f[a.0])));
            let distinctive: Vec<usize> = token.distinctive.iter().map(|entry| entry.latent).collect();
            assert_eq!(
                distinctive,
                order.iter().take(top).map(|(latent, _)| *latent).collect::<Vec<_>>(),
                "{what}"
            );
            if t > 0 {
                l0 += order.len() as f64;
                error += distance(x, x_hat);
                variance += distance(x, &want.mean);
                n += 1.0;
            }
        }
        check_strongest(got, p, want);
    }
    assert_eq!(got.metrics.tokens as f64, n);
    near("l0", got.metrics.l0.unwrap(), l0 / n);
    near("fvu", got.metrics.fvu.unwrap(), error / variance);
    near("explained variance", got.metrics.explained_variance.unwrap(), 1.0 - error / variance);
    check_traces(got, want);
}

fn check_strongest(got: &SaeAnalysis, p: usize, want: &Plain) {
    let f = &want.f[p];
    let mut best: BTreeMap<usize, f64> = BTreeMap::new();
    for (latent, value) in f[1..].iter().flat_map(|f| ranked(f)) {
        let entry = best.entry(latent).or_insert(value);
        *entry = entry.max(value);
    }
    let mut order: Vec<_> = best.into_iter().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut by_contrast = order.clone();
    by_contrast.sort_by(|a, b| (b.1 - want.mean_f[b.0]).total_cmp(&(a.1 - want.mean_f[a.0])));
    let (strongest, distinctive) = (&got.prompts[p].strongest, &got.prompts[p].distinctive);
    assert_eq!(strongest.len(), order.len().min(PER_PROMPT));
    assert_eq!(distinctive.len(), order.len().min(PER_PROMPT));
    for (strong, (latent, max)) in strongest.iter().zip(order).chain(distinctive.iter().zip(by_contrast)) {
        assert_eq!(strong.latent, latent);
        near("max", f64::from(strong.max_activation), max);
        assert!(strong.max_token > 0, "BOS does not count");
        assert_eq!(strong.activations[strong.max_token], strong.max_activation);
        assert_eq!(strong.active_tokens, f[1..].iter().filter(|f| f[latent] > 0.0).count());
        for (t, value) in strong.activations.iter().enumerate() {
            near("activation", f64::from(*value), f[t][latent]);
        }
    }
}

fn check_traces(got: &SaeAnalysis, want: &Plain) {
    let tokens = got.prompts.iter().flat_map(|p| &p.tokens).flat_map(|t| t.top.iter().chain(&t.distinctive));
    let prompts = got.prompts.iter().flat_map(|p| p.strongest.iter().chain(&p.distinctive));
    let mut named: Vec<usize> = tokens.map(|l| l.latent).chain(prompts.map(|l| l.latent)).collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(got.latents.iter().map(|l| l.latent).collect::<Vec<_>>(), named);
    for trace in &got.latents {
        let (mut max, mut active) = (0.0f64, 0);
        for (p, f) in want.f.iter().enumerate() {
            let on: Vec<usize> = (0..f.len()).filter(|&t| f[t][trace.latent] > 0.0).collect();
            let found = trace.active.iter().find(|a| a.prompt == p);
            assert_eq!(found.map_or(&[][..], |a| &a.tokens), on, "latent {} in prompt {p}", trace.latent);
            for (i, &t) in on.iter().enumerate() {
                near("trace", f64::from(found.unwrap().activations[i]), f[t][trace.latent]);
                if t > 0 {
                    max = max.max(f[t][trace.latent]);
                    active += 1;
                }
            }
        }
        near("max", f64::from(trace.max_activation), max);
        near("mean", trace.mean_activation, want.mean_f[trace.latent]);
        assert_eq!(trace.active_tokens, active);
    }
}

#[test]
fn every_number_is_the_dense_one() {
    let (tokens, prompts) = batch(&rows());
    let (one, two) = (sae(64, 1), sae(300, 2));
    let saes = [at("one", "blocks.1.hook_resid_post", &one), at("two", "blocks.2.hook_mlp_out", &two)];
    for top in [1, 4, 1000] {
        let analysis = analyze(&toy(), "toy", &tokens, &prompts, &saes, top).unwrap();
        assert_eq!(analysis.saes.len(), 2);
        for (got, at) in analysis.saes.iter().zip(&saes) {
            assert_eq!((got.id.as_str(), got.hook, got.d_sae), (at.id.as_str(), at.site, at.sae.d_sae()));
            check(got, &plain(at, &rows()), top);
        }
    }
}

#[test]
fn prompts_come_back_without_padding() {
    let analysis = example();
    for (prompt, row) in analysis.prompts.iter().zip(rows()) {
        assert_eq!(prompt.ids, row);
        assert_eq!(prompt.tokens.len(), row.len());
        assert_eq!(prompt.counted, (0..row.len()).map(|t| t > 0).collect::<Vec<_>>());
    }
}

#[test]
fn padding_on_the_left_is_left_out_as_well() {
    let ids = [vec![2, 5, 9], vec![0, 2, 7]];
    let tokens = TokenBatch::with_mask(&ids, &[vec![1, 1, 1], vec![0, 1, 1]], &[0, 1, 2]).unwrap();
    let (_, prompts) = batch(&[vec![2, 5, 9], vec![2, 7]]);
    let one = sae(64, 1);
    let analysis = analyze(&toy(), "toy", &tokens, &prompts, &[at("one", "hook_embed", &one)], 3).unwrap();
    assert_eq!(analysis.prompts[1].ids, [2, 7]);
    assert_eq!(analysis.prompts[1].counted, [false, true]);
    // At the embedding a token is the same wherever it stands.
    assert_eq!(analysis.saes[0].prompts[0].tokens[0].top, analysis.saes[0].prompts[1].tokens[0].top);
}

/// The same tokens in another batch give the same features.
#[test]
fn a_longer_prompt_beside_it_changes_nothing_of_a_token() {
    let alone = {
        let (tokens, prompts) = batch(&[rows()[1].clone()]);
        let one = sae(64, 1);
        analyze(&toy(), "toy", &tokens, &prompts, &[at("one", "blocks.1.hook_resid_post", &one)], 4).unwrap()
    };
    for (a, b) in alone.saes[0].prompts[0].tokens.iter().zip(&example().saes[0].prompts[1].tokens) {
        assert_eq!(a.l0, b.l0);
        for (a, b) in a.top.iter().zip(&b.top) {
            assert_eq!(a.latent, b.latent);
            near("activation", f64::from(a.activation), f64::from(b.activation));
        }
    }
}

#[test]
fn json_holds_no_nan_and_reads_back() {
    let analysis = example();
    let json = serde_json::to_string(&analysis).unwrap();
    assert!(!json.contains("NaN") && !json.contains("null"), "all is defined here");
    let back: Analysis = serde_json::from_str(&json).unwrap();
    assert_eq!((&back.prompts, &back.definitions), (&analysis.prompts, &analysis.definitions));
    for (back, sae) in back.saes.iter().zip(&analysis.saes) {
        // Activations come back to the last bit; float64, which serde_json reads to the last bit but one, does not.
        assert_eq!(back.prompts[0].strongest, sae.prompts[0].strongest);
        near("fvu", back.metrics.fvu.unwrap(), sae.metrics.fvu.unwrap());
    }
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["saes"][0]["hook"], "blocks.1.hook_resid_post");
    assert_eq!(value["saes"][0]["architecture"], "jumprelu");
    let defined = value["definitions"].as_object().unwrap();
    for name in ["l0", "fvu", "explained_variance"] {
        assert!(value["saes"][0]["metrics"][name].is_number() && defined.contains_key(name), "{name}");
    }
}

#[test]
fn what_is_undefined_is_null() {
    let one = sae(64, 1);
    let saes = [at("one", "blocks.1.hook_resid_post", &one)];
    // BOS alone: nothing counts. One token: it has an L0, but does not vary.
    for (row, l0) in [(vec![2], false), (vec![2, 5], true)] {
        let (tokens, prompts) = batch(std::slice::from_ref(&row));
        let analysis = analyze(&toy(), "toy", &tokens, &prompts, &saes, 4).unwrap();
        let found = &analysis.saes[0];
        assert_eq!(found.metrics.l0.is_some(), l0);
        assert_eq!((found.metrics.fvu, found.metrics.explained_variance), (None, None));
        assert_eq!(found.prompts[0].strongest.is_empty(), !l0);
        assert!(found.prompts[0].tokens.iter().all(|t| t.explained_variance.is_none() && t.cosine.is_some()));
        let json = serde_json::to_value(&analysis).unwrap();
        assert!(json["saes"][0]["metrics"]["fvu"].is_null());
        assert!(serde_json::from_value::<Analysis>(json).unwrap().saes[0].metrics.fvu.is_none());
        assert!(dashboard::page(&analysis).is_ok());
        assert!(dashboard::table(&analysis, &Default::default()).contains("FVU undefined"));
    }
}

#[test]
fn an_sae_that_is_never_active() {
    let (tokens, prompts) = batch(&rows());
    let none = silent(64);
    let analysis = analyze(&toy(), "toy", &tokens, &prompts, &[at("none", "hook_embed", &none)], 4).unwrap();
    let found = &analysis.saes[0];
    assert_eq!(found.metrics.l0, Some(0.0));
    // It always says b_dec, which is worse than the mean.
    assert!(found.metrics.fvu.unwrap() > 1.0);
    assert!(found.latents.is_empty());
    assert!(
        found.prompts.iter().all(|p| p.strongest.is_empty() && p.tokens.iter().all(|t| t.top.is_empty()))
    );
    assert!(dashboard::page(&analysis).is_ok());
}

/// It is the strongest, but says nothing of any token.
#[test]
fn a_latent_that_is_active_everywhere_does_not_stand_out() {
    let (tokens, prompts) = batch(&rows());
    let some = sae(64, 1);
    let mut some = some.parameters().unwrap().into_iter().map(|(_, t)| t.copy());
    let [w_enc, w_dec, b_enc, b_dec, threshold] = std::array::from_fn(|_| some.next().unwrap());
    // Latent 7 reads nothing and is always 100.
    let w_enc = w_enc.index_fill(1, &Tensor::from_slice(&[7i64]), 0.0);
    let b_enc = b_enc.index_fill(0, &Tensor::from_slice(&[7i64]), 100.0);
    let dense = Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, threshold).unwrap();
    let saes = [at("dense", "blocks.1.hook_resid_post", &dense)];
    let analysis = analyze(&toy(), "toy", &tokens, &prompts, &saes, 1000).unwrap();
    let found = &analysis.saes[0];
    for prompt in &found.prompts {
        assert_eq!(prompt.strongest[0].latent, 7);
        assert_ne!(prompt.distinctive[0].latent, 7);
        for token in prompt.tokens.iter().filter(|t| t.l0 > 1) {
            assert_eq!((token.top[0].latent, token.distinctive[0].latent == 7), (7, false));
        }
    }
    let trace = found.latents.iter().find(|trace| trace.latent == 7).unwrap();
    assert_eq!((trace.max_activation, trace.mean_activation, trace.active_tokens), (100.0, 100.0, 12));
}

/// A latent that BOS alone activates can be looked at, but is not among the strongest.
#[test]
fn bos_does_not_count() {
    let (tokens, prompts) = batch(&rows());
    let site = "hook_embed";
    let bos = toy().harvest(&tokens, &[site.parse().unwrap()]).unwrap().take(site.parse().unwrap()).unwrap();
    let bos = bos.get(0).get(0);
    let norm = bos.square().sum(Kind::Double).double_value(&[]);
    // x · bos > ‖bos‖² · 0.95 for x = bos alone.
    let w_enc = bos.unsqueeze(1);
    let threshold = Tensor::from_slice(&[(norm * 0.95) as f32]);
    let zero = Tensor::from_slice(&[0.0f32]);
    let only =
        Sae::jumprelu(w_enc, zero, normal(&[1, D_MODEL], 3), normal(&[D_MODEL], 4), threshold).unwrap();
    let analysis = analyze(&toy(), "toy", &tokens, &prompts, &[at("only", site, &only)], 4).unwrap();
    let found = &analysis.saes[0];
    assert_eq!(found.metrics.l0, Some(0.0));
    assert!(found.prompts.iter().all(|p| p.tokens[0].top.len() == 1 && p.strongest.is_empty()));
    assert_eq!((found.latents[0].max_activation, found.latents[0].active_tokens), (0.0, 0));
    assert_eq!(found.latents[0].active.len(), 3);
}

/// Of a transcoder the latents are known, but its output is no reconstruction of its input.
#[test]
fn a_transcoder_has_latents_and_no_fvu() {
    let (tokens, prompts) = batch(&rows());
    let (d_sae, d_out) = (64, 5);
    let threshold = uniform(&[d_sae], 2.0, 6.0, 5);
    let (w_dec, b_dec) = (normal(&[d_sae, d_out], 3), normal(&[d_out], 4));
    let transcoder =
        Sae::jumprelu(normal(&[D_MODEL, d_sae], 1), normal(&[d_sae], 2), w_dec, b_dec, threshold).unwrap();
    let analysis =
        analyze(&toy(), "toy", &tokens, &prompts, &[at("t", "hook_embed", &transcoder)], 4).unwrap();
    let found = &analysis.saes[0];
    assert!(found.metrics.l0.unwrap() > 0.0 && found.metrics.fvu.is_none());
    assert!(found.prompts[0].tokens.iter().all(|t| t.explained_variance.is_none() && t.cosine.is_none()));
    assert!(!found.prompts[0].strongest.is_empty());
}

#[test]
fn mistakes_are_named() {
    let (tokens, prompts) = batch(&rows());
    let one = sae(64, 1);
    let run =
        |prompts: &[_], saes: &[SaeAt<'_>]| analyze(&toy(), "toy", &tokens, prompts, saes, 4).unwrap_err();
    let good = || [at("one", "hook_embed", &one)];
    assert!(matches!(run(&prompts, &[]), DashboardError::NoSae));
    assert!(matches!(run(&prompts[1..], &good()), DashboardError::Prompts { prompts: 2, batch: 3 }));
    let mut short = prompts.clone();
    short[2].pieces.pop();
    assert!(matches!(run(&short, &good()), DashboardError::Pieces { prompt: 2, pieces: 4, tokens: 5 }));
    let error = run(&prompts, &[at("one", "blocks.0.attn.hook_pattern", &one)]);
    assert!(matches!(error, DashboardError::Site { .. }), "{error}");
    let error = run(&prompts, &[at("one", "blocks.0.ln1.hook_scale", &one)]);
    assert!(matches!(error, DashboardError::Misfit { d_in: 8, width: 1, .. }), "{error}");
    let error = run(&prompts, &[at("one", "blocks.7.hook_resid_post", &one)]).to_string();
    assert!(error.contains("blocks.7.hook_resid_post"), "{error}");
}
