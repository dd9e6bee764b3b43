//! SAEs whose scores are known beforehand.

use hooks::{HookPoint, HookedModel, HookedModelExt as _, LayerIdx, Positions};
use sae_core::Sae;
use tch::{Device, Kind, Tensor};
use testkit::ToyModel;

use crate::common::{FLOAT64, LOSS, gemma, report, tokens, width, zeros};

/// `x̂ = relu(x) − relu(−x) = x`, with `W_enc = [I, −I]` and `W_dec = [I; −I]`: exact in float32.
fn identity(d: i64) -> Sae {
    let eye = Tensor::eye(d, (Kind::Float, Device::Cpu));
    let (w_enc, w_dec) = (Tensor::cat(&[&eye, &-&eye], 1), Tensor::cat(&[&eye, &-&eye], 0));
    Sae::jumprelu(w_enc, zeros(&[2 * d]), w_dec, zeros(&[d]), zeros(&[2 * d])).unwrap()
}

/// Always says the same, whatever it reads.
pub(crate) fn constant(d_in: i64, answer: Tensor) -> Sae {
    let d_out = answer.numel() as i64;
    let threshold = Tensor::full([7], 1e30, (Kind::Float, Device::Cpu));
    Sae::jumprelu(zeros(&[d_in, 7]), zeros(&[7]), zeros(&[7, d_out]), answer, threshold).unwrap()
}

fn models_and_sites() -> Vec<(Box<dyn HookedModel>, HookPoint)> {
    let l = LayerIdx(1);
    let in_gemma = [
        HookPoint::Embed,
        HookPoint::ResidPre(l),
        HookPoint::AttnZ(l),
        HookPoint::AttnOut(l),
        HookPoint::ResidMid(l),
        HookPoint::Ln2Normalized(l),
        HookPoint::MlpOut(l),
        HookPoint::ResidPost(l),
        HookPoint::ResidPost(LayerIdx(3)),
    ];
    let gemma = in_gemma.map(|site| (Box::new(gemma()) as Box<dyn HookedModel>, site));
    let toy = || ToyModel::new(3, 6, 320, 1);
    let in_toy = toy().sites().into_iter().map(|site| (Box::new(toy()) as Box<dyn HookedModel>, site));
    gemma.into_iter().chain(in_toy).collect()
}

#[test]
fn the_identity_costs_nothing() {
    for (model, site) in models_and_sites() {
        let d = width(model.dims(), site);
        let got = report(model.as_ref(), site, &identity(d), vec![tokens()], Positions::Counted);
        let metric = |name| got.metrics[name];
        assert!(metric("delta_loss").abs() <= LOSS, "{site}: {}", metric("delta_loss"));
        assert!(metric("fvu").abs() <= FLOAT64, "{site}: {}", metric("fvu"));
        assert!((metric("explained_variance") - 1.0).abs() <= FLOAT64, "{site}");
        // One of the two latents of each coordinate is on, unless it is exactly zero.
        assert_eq!(metric("l0"), d as f64, "{site}");
        assert!(metric("kl") <= LOSS, "{site}: {}", metric("kl"));
        for (name, tolerance) in [("kl_score_zero", 1e-3), ("cosine", FLOAT64), ("l2_ratio", FLOAT64)] {
            assert!((metric(name) - 1.0).abs() <= tolerance, "{site}: {name} is {}", metric(name));
        }
        assert!(
            (metric("loss_recovered_zero") - 1.0).abs() <= 1e-3,
            "{site}: {}",
            metric("loss_recovered_zero")
        );
    }
}

#[test]
fn nothing_is_as_good_as_zero() {
    for (model, site) in models_and_sites() {
        let d = width(model.dims(), site);
        let got = report(model.as_ref(), site, &constant(d, zeros(&[d])), vec![tokens()], Positions::Counted);
        assert_eq!(got.metrics["ce_spliced"], got.metrics["ce_zero"], "{site}");
        assert_eq!((got.metrics["l0"], got.metrics["dead_fraction"]), (0.0, 1.0), "{site}");
        assert_eq!(got.metrics["loss_recovered_zero"], 0.0, "{site}");
        assert_eq!(got.metrics["kl"], got.metrics["kl_zero"], "{site}");
        assert_eq!(got.metrics["kl_score_zero"], 0.0, "{site}");
        assert!(got.metrics["fvu"] >= 1.0, "{site}: zero can't beat the mean");
        assert_eq!(got.metrics.frequency, [0.0; 7], "{site}");
    }
}

#[test]
fn the_mean_explains_no_variance() {
    /// The mean is rounded to float32.
    const ROUNDED: f64 = 1e-6;
    for (model, site) in models_and_sites() {
        let act = model.harvest(&tokens(), &[site]).unwrap().take(site).unwrap();
        let x = act.flatten(0, 1).reshape([240, -1]);
        let counted = tokens().counted().flatten(0, 1).nonzero().squeeze_dim(1);
        let mean = x.index_select(0, &counted).to_kind(Kind::Double);
        let mean = mean.mean_dim(Some([0].as_slice()), false, Kind::Double).to_kind(Kind::Float);
        let got = report(
            model.as_ref(),
            site,
            &constant(width(model.dims(), site), mean),
            vec![tokens()],
            Positions::Counted,
        );
        assert!((got.metrics["fvu"] - 1.0).abs() <= ROUNDED, "{site}: {}", got.metrics["fvu"]);
        let metric = |name| got.metrics[name];
        assert!((metric("ce_spliced") - metric("ce_mean")).abs() <= LOSS, "{site}");
        assert!((metric("kl") - metric("kl_mean")).abs() <= LOSS, "{site}");
        assert!(metric("explained_variance_legacy").abs() <= ROUNDED, "{site}");
    }
}
