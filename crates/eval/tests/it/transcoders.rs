//! Transcoders whose scores are known beforehand, and an SAE of another make.

use std::ops::Range;

use eval::{EvalOptions, Judged, weight_metrics};
use hooks::{HookPoint, HookedModel, HookedModelExt as _, LayerIdx};
use sae_core::{Result, SparseAutoencoder, SparseFeatures, as_input};
use tch::{Kind, Tensor};
use testkit::ToyModel;

use crate::{
    common::{FLOAT64, LOSS, assert_within, gemma, judge, random_sae, tokens, width, zeros},
    trivial::constant,
};

/// Knows what to say to each row that it has seen: latent i reads exactly row i, and writes its answer.
#[derive(Debug)]
struct Oracle {
    /// `[n, d_in]`.
    asked: Tensor,
    /// `[n, d_out]`.
    answers: Tensor,
}

impl SparseAutoencoder for Oracle {
    fn architecture(&self) -> &'static str {
        "oracle"
    }

    fn d_in(&self) -> i64 {
        self.asked.size()[1]
    }

    fn d_sae(&self) -> i64 {
        self.asked.size()[0]
    }

    fn d_out(&self) -> i64 {
        self.answers.size()[1]
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let same = x.unsqueeze(-2).eq_tensor(&self.asked).all_dim(-1, false);
        // Of equal rows the first answers.
        let first = same.to_kind(Kind::Float).cumsum(-1, Kind::Float).eq(1.0).logical_and(&same);
        Ok(first.to_kind(Kind::Float))
    }

    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        SparseFeatures::from_dense(&self.encode(x)?)
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features.matmul(&self.answers))
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        self.decode(&features.to_dense()?)
    }

    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor> {
        Ok(self.answers.narrow(0, latents.start, latents.end - latents.start))
    }
}

/// The activations at the positions that count.
fn rows_at(model: &dyn HookedModel, site: HookPoint) -> Tensor {
    let act = model.harvest(&tokens(), &[site]).unwrap().take(site).unwrap();
    let counted = tokens().counted().flatten(0, 1).nonzero().squeeze_dim(1);
    as_input(site, &act).unwrap().flatten(0, 1).index_select(0, &counted)
}

/// Input and output in one block, across blocks, of other widths, and where the output is the last thing before the logits.
fn models_and_sites() -> Vec<(Box<dyn HookedModel>, HookPoint, HookPoint)> {
    let gemma = [
        ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"),
        ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"),
        ("blocks.1.hook_mlp_out", "blocks.2.hook_resid_mid"),
    ];
    let toy = [
        ("hook_embed", "blocks.2.hook_resid_post"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
        ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"),
    ];
    let of = |model: fn() -> Box<dyn HookedModel>| {
        move |(site, site_out): (&str, &str)| (model(), site.parse().unwrap(), site_out.parse().unwrap())
    };
    let gemma = gemma.into_iter().map(of(|| Box::new(self::gemma())));
    gemma.chain(toy.into_iter().map(of(|| Box::new(ToyModel::new(3, 6, 320, 1))))).collect()
}

#[test]
fn one_that_is_always_right_costs_nothing() {
    for (model, site, site_out) in models_and_sites() {
        let oracle =
            Oracle { asked: rows_at(model.as_ref(), site), answers: rows_at(model.as_ref(), site_out) };
        let judged = [Judged::new("oracle", site, &oracle).put_at(site_out)];
        let got = judge(model.as_ref(), &judged, &[tokens()], EvalOptions::default()).pop().unwrap();
        let what = format!("{site} to {site_out}");
        let metric = |name| got.metrics[name];
        // Embeddings of equal tokens are equal, and what becomes of them later is not.
        if [HookPoint::Embed, HookPoint::ResidPre(LayerIdx(0))].contains(&site) {
            assert!(metric("fvu") > 0.0 && metric("kl") > LOSS, "{what}");
            continue;
        }
        assert_eq!((metric("fvu"), metric("explained_variance"), metric("mse")), (0.0, 1.0, 0.0), "{what}");
        assert_eq!((metric("l0"), metric("l0_std"), metric("l1")), (1.0, 0.0, 1.0), "{what}");
        for (name, want) in [("delta_loss", 0.0), ("kl", 0.0)] {
            assert_within(&what, name, metric(name), want, LOSS);
        }
        for (name, want) in [("kl_score_zero", 1.0), ("kl_score_mean", 1.0), ("loss_recovered_zero", 1.0)] {
            assert_within(&what, name, metric(name), want, 1e-3);
        }
        assert_within(&what, "cosine", metric("cosine"), 1.0, FLOAT64);
    }
}

#[test]
fn one_that_says_nothing_is_zero_ablation() {
    for (model, site, site_out) in models_and_sites() {
        let (d_in, d_out) = (width(model.dims(), site), width(model.dims(), site_out));
        let nothing = constant(d_in, zeros(&[d_out]));
        let judged = [Judged::new("nothing", site, &nothing).put_at(site_out)];
        let got = judge(model.as_ref(), &judged, &[tokens()], EvalOptions::default()).pop().unwrap();
        let metric = |name| got.metrics[name];
        let what = format!("{site} to {site_out}");
        assert_eq!((metric("ce_spliced"), metric("kl")), (metric("ce_zero"), metric("kl_zero")), "{what}");
        assert_eq!((metric("loss_recovered_zero"), metric("kl_score_zero")), (0.0, 0.0), "{what}");
        assert_eq!((metric("l0"), metric("dead_fraction"), metric("l2_norm_out")), (0.0, 1.0, 0.0), "{what}");
        assert!(metric("fvu") >= 1.0, "{what}: zero can't beat the mean");
    }
}

#[test]
fn one_that_says_the_mean_is_mean_ablation() {
    for (model, site, site_out) in models_and_sites() {
        let target = rows_at(model.as_ref(), site_out);
        let mean = target.mean_dim(Some([0].as_slice()), false, Kind::Double).to_kind(Kind::Float);
        let mean = constant(width(model.dims(), site), mean);
        let judged = [Judged::new("mean", site, &mean).put_at(site_out)];
        let got = judge(model.as_ref(), &judged, &[tokens()], EvalOptions::default()).pop().unwrap();
        let metric = |name| got.metrics[name];
        let what = format!("{site} to {site_out}");
        assert_within(&what, "ce_spliced", metric("ce_spliced"), metric("ce_mean"), LOSS);
        assert_within(&what, "kl", metric("kl"), metric("kl_mean"), LOSS);
        // The mean is rounded to float32.
        assert_within(&what, "fvu", metric("fvu"), 1.0, 1e-6);
        assert_within(&what, "frac_variance_explained", metric("frac_variance_explained"), 0.0, FLOAT64);
        assert_within(&what, "explained_variance_legacy", metric("explained_variance_legacy"), 0.0, 1e-6);
    }
}

/// An encoder that is no matrix has no columns to tell of.
#[test]
fn an_encoder_that_is_no_matrix() {
    let (model, site) = (gemma(), "blocks.1.hook_resid_post".parse().unwrap());
    let oracle = Oracle { asked: rows_at(&model, site), answers: rows_at(&model, site) };
    let weights = weight_metrics(&oracle, true).unwrap();
    assert_eq!(
        weights.keys().map(String::as_str).collect::<Vec<_>>(),
        ["decoder_norm", "max_decoder_cosine"]
    );
    let judged = [Judged::new("oracle", site, &oracle)];
    let got = judge(&model, &judged, &[tokens()], EvalOptions { uniformity: 2, ..EvalOptions::default() });
    // One latent is on, so that all of those on are in use.
    assert_eq!((got[0].metrics["uniformity"], got[0].metrics["l0_max"]), (1.0, 1.0));
    let got = got.into_iter().next().unwrap().with_weights(weights);
    for name in ["encoder_norm", "encoder_bias", "encoder_decoder_cosine", "max_encoder_cosine"] {
        assert_eq!(got.metrics.get(name), None, "{name}");
    }
    assert_within("oracle", "decoder_norm", got.metrics["decoder_norm"], got.metrics["l2_norm_in"], 1e-5);
    assert_eq!(got.provenance.architecture, "oracle");
}

/// Beside others, a transcoder is judged as alone.
#[test]
fn a_transcoder_and_an_sae_share_the_site_of_their_output() {
    let model = gemma();
    let (site, out): (HookPoint, HookPoint) =
        ("blocks.1.ln2.hook_normalized".parse().unwrap(), "blocks.1.hook_mlp_out".parse().unwrap());
    let (transcoder, sae, reader) =
        (random_sae(48, 32, 48, 1), random_sae(48, 40, 48, 2), random_sae(48, 24, 48, 3));
    let judged = [
        Judged::new("transcoder", site, &transcoder).put_at(out),
        Judged::new("sae", out, &sae),
        Judged::new("reader", site, &reader),
    ];
    let together = judge(&model, &judged, &[tokens()], EvalOptions::default());
    for name in ["ce_zero", "ce_mean", "kl_zero", "kl_mean"] {
        assert_eq!(together[0].metrics[name], together[1].metrics[name], "one ablation for both: {name}");
    }
    // (Zero ablation costs the same at both sites: an MLP without bias makes zero of zero.)
    for name in ["ce_mean", "kl_mean"] {
        assert_ne!(together[0].metrics[name], together[2].metrics[name], "another site: {name}");
    }
    assert_eq!(
        together[0].metrics["l2_norm_in"], together[1].metrics["l2_norm_in"],
        "the target is what is replaced"
    );
}
