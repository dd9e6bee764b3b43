//! The naive way: four whole runs of the model for each SAE, and every metric from its definition, on all tokens at once, in
//! float64 and with dense latents.

use std::collections::BTreeMap;

use eval::{EvalOptions, Judged, Quality, Subsets};
use hooks::{HookPoint, HookSet, HookedModel, HookedModelExt as _, Positions, TokenBatch, edit};
use sae_core::{SaeExt as _, as_input};
use tch::{Kind, Tensor};
use testkit::ToyModel;

use crate::{
    common::{
        METRIC, SPECIAL, assert_metrics, assert_quality, assert_within, at, batch, gemma, judge, random_sae,
        suite, tokens, width,
    },
    counting::Counting,
};

/// What a position that counts is found to be.
struct Place {
    sequence: usize,
    column: usize,
    l0: f64,
    error: f64,
    /// Squared distance from the mean.
    spread: f64,
    /// Clean and spliced cross-entropy, and the divergence, where the loss counts.
    losses: Option<[f64; 3]>,
}

pub(crate) struct Naive {
    /// Every metric by its name.
    pub(crate) values: BTreeMap<String, f64>,
    places: Vec<Place>,
    /// Share of positions by latent.
    frequency: Vec<f64>,
}

impl Naive {
    /// The quality on a part of the positions.
    fn quality(&self, part: impl Fn(usize, usize) -> bool) -> Quality {
        let places: Vec<&Place> = self.places.iter().filter(|p| part(p.sequence, p.column)).collect();
        let losses: Vec<[f64; 3]> = places.iter().filter_map(|p| p.losses).collect();
        let of = |f: &dyn Fn(&Place) -> f64| places.iter().map(|p| f(p)).sum::<f64>();
        let over = |sum: f64, n: usize| (n > 0).then(|| sum / n as f64);
        let loss = |i: usize| over(losses.iter().map(|l| l[i]).sum(), losses.len());
        let (error, spread) = (of(&|p| p.error), of(&|p| p.spread));
        Quality {
            tokens: places.len() as u64,
            scored: losses.len() as u64,
            ce_clean: loss(0),
            ce_spliced: loss(1),
            delta_loss: loss(1).zip(loss(0)).map(|(spliced, clean)| spliced - clean),
            kl: loss(2),
            mse: over(error, places.len()),
            fvu: (spread > 0.0).then(|| error / spread),
            l0: over(of(&|p| p.l0), places.len()),
        }
    }
}

pub(crate) fn naive(
    model: &dyn HookedModel,
    judged: &Judged<'_>,
    tokens: &TokenBatch,
    positions: Positions,
) -> Naive {
    let Judged { site, site_out, sae, .. } = judged;
    let mask = positions.mask(tokens).unwrap();
    let kept: Vec<(usize, usize)> = everywhere(tokens).filter(|(b, p)| is(&mask, *b, *p)).collect();
    let document = |b: usize, p: usize| tokens.documents().map(|d| d.int64_value(&[b as i64, p as i64]));
    let scored: Vec<(usize, usize)> = kept
        .iter()
        .copied()
        .filter(|(b, p)| kept.contains(&(*b, p + 1)) && document(*b, *p) == document(*b, p + 1))
        .collect();

    let at = |site: HookPoint| {
        let act = model.harvest(tokens, &[site]).unwrap().take(site).unwrap();
        let rows: Vec<Tensor> = {
            let x = as_input(site, &act).unwrap();
            kept.iter().map(|(b, p)| x.get(*b as i64).get(*p as i64)).collect()
        };
        (act, Tensor::stack(&rows, 0))
    };
    let ((_, input), (act, target)) = (at(*site), at(*site_out));
    let features = sae.encode(&input).unwrap();
    let output = sae.reconstruct(&input).unwrap();
    let x = target.to_kind(Kind::Double);
    let mean = x.mean_dim(Some([0].as_slice()), true, Kind::Double);

    let log_p = |rows: Option<&Tensor>| {
        let mut hooks = HookSet::new();
        if let Some(rows) = rows {
            // The positions that count one by one.
            let mut put = as_input(*site_out, &act).unwrap().copy();
            for (i, (b, p)) in kept.iter().enumerate() {
                put.get(*b as i64).get(*p as i64).copy_(&rows.get(i as i64));
            }
            put = put.reshape(act.size()).to_kind(act.kind());
            hooks.on(*site_out, edit::set(put));
        }
        model.run(tokens, hooks).unwrap().to_kind(Kind::Double).log_softmax(-1, Kind::Double)
    };
    let clean = log_p(None);
    let spliced = log_p(Some(&output));
    let zero = log_p(Some(&output.zeros_like()));
    let averaged = log_p(Some(&mean.to_kind(Kind::Float).expand_as(&output)));
    let ce = |log_p: &Tensor, (b, p): (usize, usize)| {
        -log_p.double_value(&[b as i64, p as i64, tokens.rows()[b][p + 1]])
    };
    let kl = |other: &Tensor, (b, p): (usize, usize)| {
        let [own, other] = [&clean, other].map(|t| t.get(b as i64).get(p as i64));
        (own.exp() * (own - other)).sum(Kind::Double).double_value(&[])
    };
    let average = |of: &dyn Fn((usize, usize)) -> f64| {
        scored.iter().map(|at| of(*at)).sum::<f64>() / scored.len() as f64
    };

    let mut values = BTreeMap::new();
    let mut say = |name: &str, value: f64| {
        assert!(value.is_finite(), "{name}");
        values.insert(name.to_owned(), value);
    };
    let ces = [&clean, &spliced, &zero, &averaged].map(|log_p| average(&|at| ce(log_p, at)));
    let kls = [&spliced, &zero, &averaged].map(|log_p| average(&|at| kl(log_p, at)));
    for (name, value) in ["ce_clean", "ce_spliced", "ce_zero", "ce_mean"].into_iter().zip(ces) {
        say(name, value);
    }
    for (name, value) in ["kl", "kl_zero", "kl_mean"].into_iter().zip(kls) {
        say(name, value);
    }
    say("delta_loss", ces[1] - ces[0]);
    say("loss_recovered_zero", (ces[2] - ces[1]) / (ces[2] - ces[0]));
    say("loss_recovered_mean", (ces[3] - ces[1]) / (ces[3] - ces[0]));
    say("kl_score_zero", (kls[1] - kls[0]) / kls[1]);
    say("kl_score_mean", (kls[2] - kls[0]) / kls[2]);

    let floats = |t: &Tensor| Vec::<f64>::try_from(t).unwrap();
    let squares = |t: &Tensor| floats(&t.square().sum_dim_intlist(-1, false, Kind::Double));
    let x_hat = output.to_kind(Kind::Double);
    let (error, spread) = (squares(&(&x - &x_hat)), squares(&(&x - &mean)));
    let (own, theirs) = (squares(&x), squares(&x_hat));
    let dot = floats(&(&x * &x_hat).sum_dim_intlist(-1, false, Kind::Double));
    let n = kept.len();
    let mean_of = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
    let sum = |v: &[f64]| v.iter().sum::<f64>();
    let variance =
        |t: &Tensor| squares(&(t - t.mean_dim(Some([0].as_slice()), true, Kind::Double))).iter().sum::<f64>();
    say("fvu", sum(&error) / sum(&spread));
    say("explained_variance", 1.0 - sum(&error) / sum(&spread));
    say("explained_variance_legacy", mean_of(&|i| 1.0 - error[i] / spread[i]));
    say("frac_variance_explained", 1.0 - variance(&(&x - &x_hat)) / variance(&x));
    say("mse", mean_of(&|i| error[i]));
    say("normalized_mse", mean_of(&|i| error[i] / own[i]));
    say("l2_loss", mean_of(&|i| error[i].sqrt()));
    say("cosine", mean_of(&|i| if theirs[i] > 0.0 { dot[i] / (own[i] * theirs[i]).sqrt() } else { 0.0 }));
    say("l2_ratio", mean_of(&|i| (theirs[i] / own[i]).sqrt()));
    say("l2_norm_in", mean_of(&|i| own[i].sqrt()));
    say("l2_norm_out", mean_of(&|i| theirs[i].sqrt()));
    say("relative_reconstruction_bias", sum(&theirs) / sum(&dot));

    let on = features.gt(0.0).to_kind(Kind::Double);
    let active = floats(&on.sum_dim_intlist(1, false, Kind::Double));
    let frequency = floats(&on.mean_dim(Some([0].as_slice()), false, Kind::Double));
    let l0 = mean_of(&|i| active[i]);
    let mut sorted = active.clone();
    sorted.sort_by(f64::total_cmp);
    say("l0", l0);
    say("l0_std", mean_of(&|i| (active[i] - l0).powi(2)).sqrt());
    say("l0_median", sorted[(n - 1) / 2]);
    say("l0_max", sorted[n - 1]);
    say("l1", features.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]) / n as f64);
    let share = |limit: f64| frequency.iter().filter(|f| **f > limit).count() as f64 / frequency.len() as f64;
    let mass = |limit: f64| frequency.iter().filter(|f| **f > limit).sum::<f64>() / sum(&frequency);
    say("dead_fraction", frequency.iter().filter(|f| **f == 0.0).count() as f64 / frequency.len() as f64);
    for (percent, limit) in [("1", 0.01), ("10", 0.1)] {
        say(&format!("frac_over_{percent}_percent"), share(limit));
        say(&format!("mass_over_{percent}_percent"), mass(limit));
    }
    let consistency: Vec<f64> = (0..sae.d_sae())
        .filter_map(|j| {
            let fires: Vec<usize> =
                (0..n).filter(|i| on.double_value(&[*i as i64, j]) > 0.0).map(|i| kept[i].0).collect();
            let mut sequences = fires.clone();
            sequences.dedup();
            (!fires.is_empty()).then(|| fires.len() as f64 / sequences.len() as f64)
        })
        .collect();
    say("consistent_activation_heuristic", sum(&consistency) / consistency.len() as f64);

    let places = kept.iter().enumerate().map(|(i, (sequence, column))| {
        let place = (*sequence, *column);
        let losses = || [ce(&clean, place), ce(&spliced, place), kl(&spliced, place)];
        Place {
            sequence: *sequence,
            column: *column,
            l0: active[i],
            error: error[i],
            spread: spread[i],
            losses: scored.contains(&place).then(losses),
        }
    });
    Naive { places: places.collect(), values, frequency }
}

fn everywhere(tokens: &TokenBatch) -> impl Iterator<Item = (usize, usize)> {
    let (batch, pos) = (tokens.batch() as usize, tokens.pos() as usize);
    (0..batch).flat_map(move |b| (0..pos).map(move |p| (b, p)))
}

fn is(mask: &Tensor, b: usize, p: usize) -> bool {
    mask.int64_value(&[b as i64, p as i64]) != 0
}

#[track_caller]
fn assert_same_as_naive(
    model: &dyn HookedModel,
    judged: &Judged<'_>,
    tokens: TokenBatch,
    positions: Positions,
) {
    let what = format!("{} to {}, {positions}", judged.site, judged.site_out);
    let want = naive(model, judged, &tokens, positions);
    // What each position belongs to: by its token, with some that belong nowhere.
    let names = ["even".to_owned(), "odd".to_owned(), "empty".to_owned()];
    let of: Vec<Vec<Option<u32>>> = tokens
        .rows()
        .iter()
        .map(|row| row.iter().map(|id| (id % 5 != 0).then(|| (id % 2) as u32)).collect())
        .collect();
    let mut suite = suite(model, std::slice::from_ref(judged), &[batch_again(&tokens)], at(positions));
    suite.add(&tokens, Some(Subsets { names: &names, of: &of })).unwrap();
    let got = suite.reports().unwrap().pop().unwrap();
    assert_metrics(&what, &got.metrics.values, &want.values, METRIC);
    assert_eq!(got.metrics.frequency.len(), want.frequency.len(), "{what}");
    for (got, want) in got.metrics.frequency.iter().zip(&want.frequency) {
        assert_within(&what, "frequency", *got, *want, 1e-12);
    }
    let whole = want.quality(|_, _| true);
    assert_eq!((got.tokens, got.scored), (whole.tokens, whole.scored), "{what}");
    assert_eq!(got.by_position.len() as i64, tokens.pos(), "{what}");
    for (p, got) in got.by_position.iter().enumerate() {
        assert_quality(&format!("{what}, position {p}"), got, &want.quality(|_, column| column == p), METRIC);
    }
    for (i, name) in names.iter().enumerate() {
        let want = want.quality(|sequence, column| of[sequence][column] == Some(i as u32));
        match got.by_subset.get(name) {
            Some(got) => assert_quality(&format!("{what}, {name}"), got, &want, METRIC),
            None => assert_eq!(want.tokens, 0, "{what}, {name}"),
        }
    }
}

/// The same batch, for the means.
fn batch_again(tokens: &TokenBatch) -> TokenBatch {
    tokens.to_device(tch::Device::Cpu).unwrap()
}

/// A random SAE at a site.
#[track_caller]
fn assert_one_same_as_naive(
    model: &dyn HookedModel,
    site: HookPoint,
    tokens: TokenBatch,
    positions: Positions,
) {
    let d = width(model.dims(), site);
    let sae = random_sae(d, 32, d, 3);
    assert_same_as_naive(model, &Judged::new("sae", site, &sae), tokens, positions);
}

#[test]
fn sharing_the_prefix_changes_no_metric() {
    let model = gemma();
    for name in [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.2.hook_resid_pre",
        "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_v",
        "blocks.0.attn.hook_z",
        "blocks.3.attn.hook_z",
        "blocks.1.hook_attn_out",
        "blocks.2.hook_resid_mid",
        "blocks.1.hook_mlp_in",
        "blocks.2.ln2.hook_normalized",
        "blocks.1.mlp.hook_post",
        "blocks.0.hook_mlp_out",
        "blocks.3.hook_mlp_out",
        "blocks.0.hook_resid_post",
        "blocks.3.hook_resid_post",
    ] {
        assert_one_same_as_naive(&model, name.parse().unwrap(), tokens(), Positions::Counted);
    }
}

#[test]
fn every_set_of_positions() {
    let model = gemma();
    for positions in [
        Positions::Counted,
        Positions::All,
        Positions::Range { start: 1, end: None },
        Positions::Range { start: 3, end: Some(9) },
        Positions::Range { start: 18, end: Some(20) },
    ] {
        for name in ["blocks.2.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"] {
            assert_one_same_as_naive(&model, name.parse().unwrap(), tokens(), positions);
        }
    }
}

#[test]
fn padded_and_packed_texts() {
    let model = gemma();
    let texts: Vec<Vec<i64>> = tokens().rows()[..6]
        .iter()
        .zip([20, 4, 9, 13, 1, 7])
        .map(|(row, n)| row.iter().copied().take(n).collect())
        .collect();
    let kinds: [(&str, &dyn Fn() -> TokenBatch); 5] = [
        ("right", &|| TokenBatch::padded(&texts, 0, &SPECIAL).unwrap()),
        ("left", &|| TokenBatch::left_padded(&texts, 0, &SPECIAL).unwrap()),
        ("packed", &|| TokenBatch::packed(&texts, 11, 0, &SPECIAL).unwrap()),
        // Where BOS counts, the last token of a document still does not predict it.
        ("packed, BOS counts", &|| TokenBatch::packed(&texts, 11, 0, &[0]).unwrap()),
        ("across", &|| TokenBatch::packed(&texts, 11, 0, &[0]).unwrap().across_documents().unwrap()),
    ];
    for (what, tokens) in kinds {
        println!("{what}");
        for positions in [Positions::Counted, Positions::All, Positions::Range { start: 2, end: Some(8) }] {
            for name in ["blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"] {
                assert_one_same_as_naive(&model, name.parse().unwrap(), tokens(), positions);
            }
        }
    }
}

#[test]
fn a_model_of_another_kind() {
    let model = ToyModel::new(3, 6, 320, 1);
    for site in model.sites() {
        assert_one_same_as_naive(&model, site, tokens(), Positions::Counted);
    }
}

#[test]
fn transcoders_of_all_kinds() {
    let model = gemma();
    for (site, site_out) in [
        ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"),
        ("hook_embed", "blocks.2.hook_resid_post"),
        ("blocks.2.hook_mlp_out", "blocks.3.hook_resid_mid"),
        ("blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post"),
    ] {
        let [site, site_out]: [HookPoint; 2] = [site, site_out].map(|name| name.parse().unwrap());
        let sae = random_sae(width(model.dims(), site), 32, width(model.dims(), site_out), 3);
        let judged = Judged::new("transcoder", site, &sae).put_at(site_out);
        assert_same_as_naive(&model, &judged, tokens(), Positions::Counted);
        assert_same_as_naive(&model, &judged, tokens(), Positions::Range { start: 2, end: Some(9) });
    }
}

/// `exp(S(p)) / ‖y‖₀` where the gradient flows through a whole run of one sequence.
#[test]
fn uniformity() {
    let gemma = gemma();
    let toy = ToyModel::new(3, 6, 320, 1);
    let rows = &tokens().rows()[..3].to_vec();
    let few = || batch(rows);
    for (model, name) in [
        (&gemma as &dyn HookedModel, "blocks.1.attn.hook_q"),
        (&gemma, "blocks.1.attn.hook_z"),
        (&gemma, "blocks.3.hook_resid_post"),
        (&gemma, "blocks.0.hook_resid_pre"),
        (&gemma, "blocks.2.hook_resid_mid"),
        (&toy, "hook_embed"),
        (&toy, "blocks.1.hook_mlp_out"),
    ] {
        let site: HookPoint = name.parse().unwrap();
        let d = width(model.dims(), site);
        let sae = random_sae(d, 32, d, 3);
        let act = model.harvest(&few(), &[site]).unwrap().take(site).unwrap();
        let x = as_input(site, &act).unwrap();
        let w_dec = sae_core::SparseAutoencoder::w_dec(&sae, 0..32).unwrap().to_kind(Kind::Double);
        let mut found = Vec::new();
        for (b, row) in rows.iter().enumerate() {
            for p in 0..row.len() - 1 {
                if SPECIAL.contains(&row[p]) || SPECIAL.contains(&row[p + 1]) {
                    continue;
                }
                let leaf = act.narrow(0, b as i64, 1).copy().set_requires_grad(true);
                let mut hooks = HookSet::new();
                let leaf_again = leaf.shallow_clone();
                hooks.on(site, edit::set(leaf_again));
                let logits = model.forward(&batch(&rows[b..=b]), &mut hooks).unwrap().get(0).get(p as i64);
                let l = logits.get(row[p + 1]) - logits.mean(Kind::Float);
                l.backward();
                let gradient =
                    as_input(site, &leaf.grad()).unwrap().get(0).get(p as i64).to_kind(Kind::Double);
                let f = sae_core::SparseAutoencoder::encode(&sae, &x.get(b as i64).get(p as i64)).unwrap();
                let y = (f.to_kind(Kind::Double) * w_dec.matmul(&gradient)).abs();
                let y: Vec<f64> = Vec::<f64>::try_from(y).unwrap().into_iter().filter(|y| *y > 0.0).collect();
                if !y.is_empty() {
                    let total: f64 = y.iter().sum();
                    let entropy: f64 = y.iter().map(|y| -(y / total) * (y / total).ln()).sum();
                    found.push(entropy.exp() / y.len() as f64);
                }
            }
        }
        let want = found.iter().sum::<f64>() / found.len() as f64;
        let options = EvalOptions { uniformity: 20, ..EvalOptions::default() };
        let got = judge(model, &[Judged::new("sae", site, &sae)], &[few()], options);
        // A float32 gradient through another path.
        assert_within(name, "uniformity", got[0].metrics["uniformity"], want, 10.0 * METRIC * want);
    }
}

/// More rows than have their logits made side by side, and a vocabulary that takes several slices.
#[test]
fn many_rows_and_a_large_vocabulary() {
    let site: HookPoint = "blocks.1.hook_mlp_out".parse().unwrap();
    let rows: Vec<Vec<i64>> = (0..48)
        .map(|b| (0..20).map(|p| if p == 0 { 2 } else { 3 + (b * 31 + p * 7) % 300 }).collect())
        .collect();
    let model = Counting::new(ToyModel::new(3, 6, 320, 1));
    assert_one_same_as_naive(&model, site, batch(&rows), Positions::Counted);
    let norms = model.take().norms;
    // 48 · 18 losses of four runs, 512 at a time; the naive way takes each run's all at once.
    assert!(norms.contains(&(4 * 512)) && norms.contains(&(4 * (48 * 18 - 512))), "{norms:?}");

    let model = Counting::new(ToyModel::new(3, 6, 256_000, 1));
    let few = vec![vec![2, 5, 255_999, 209_714, 8, 3, 3], vec![2, 7, 104_857, 104_858, 29, 5, 11]];
    assert_one_same_as_naive(&model, site, batch(&few), Positions::Counted);
    let slices = model.take().slices;
    assert!(slices.iter().filter(|len| **len < 256_000).count() >= 3, "{slices:?}");
}
