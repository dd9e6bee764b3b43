//! Evaluations of several SAEs: what `peer_bench.py sweep` does with SAELens' way of doing it, and a suite over all of a model.

use anyhow::Result;
use gemma_scope::{
    eval::{EvalOptions, Judged, Means, Suite},
    hooks::{HookPoint, HookedModel, LayerIdx, Positions, TokenBatch},
    model::LoadOptions,
    sae::Sae,
    tch::{Kind, Tensor},
    tiny,
};
use serde_json::json;

use crate::{
    sae::Shape,
    timing::Clock,
    work::{On, finish, model, tokens},
};

/// SAEs at the middle residual site of a 2B-shaped model: every metric but the weights', the pass that takes the mean included.
/// The peers make the clean, spliced and zero-ablated losses alone.
pub(crate) fn sweep(layers: usize, seq: usize, saes: usize, on: On) -> Result<()> {
    let model = model(layers, on)?;
    let site = HookPoint::ResidPost(LayerIdx(layers / 2));
    let shape = Shape { batch: 1, d_in: 2304, width: 16_384, l0: 70.0, k: 64 };
    let saes = (0..saes).map(|_| shape.jumprelu(on)).collect::<Result<Vec<_>>>()?;
    let tokens = tokens(seq)?.to_device(on.device)?;
    Clock::new(1, (seq * saes.len()) as f64).time("ours.sweep", || {
        let judged = saes.iter().enumerate().map(|(i, sae)| Judged::new(i.to_string(), site, sae)).collect();
        let suite = judge(&model, judged, std::slice::from_ref(&tokens))?;
        finish(on);
        suite.reports().map_err(Into::into)
    })
}

/// SAEs at three sites of every layer of the embedded model.
pub(crate) fn suite(per_site: usize, n_tokens: usize, width: i64, on: On) -> Result<()> {
    let model = tiny::model(&LoadOptions { device: on.device, kind: on.kind })?;
    let dims = model.dims().clone();
    let sites = (0..dims.n_layers).flat_map(|l| {
        let l = LayerIdx(l);
        [HookPoint::AttnZ(l), HookPoint::MlpOut(l), HookPoint::ResidPost(l)]
    });
    let mut all: Vec<(HookPoint, Sae)> = Vec::new();
    for site in sites {
        let d_in = site.shape(&dims, 1, 1).iter().skip(2).product();
        for _ in 0..per_site {
            let shape = Shape { batch: 1, d_in, width, l0: 40.0, k: 64 };
            all.push((site, shape.jumprelu(on)?));
        }
    }
    let batches = (0..n_tokens.div_ceil(8 * dims.n_ctx)).map(|_| {
        let size = [8, dims.n_ctx as i64];
        let ids = Tensor::f_randint_low(
            5,
            dims.d_vocab as i64,
            size,
            (Kind::Int64, gemma_scope::tch::Device::Cpu),
        )?;
        Ok(TokenBatch::new(&Vec::<Vec<i64>>::try_from(&ids)?, &[])?.to_device(on.device)?)
    });
    let batches: Vec<TokenBatch> = batches.collect::<Result<_>>()?;
    let start = std::time::Instant::now();
    let judged = all
        .iter()
        .enumerate()
        .map(|(i, (site, sae))| Judged::new(format!("{site}/{i}"), *site, sae))
        .collect();
    let suite = judge(&model, judged, &batches)?;
    let seconds = start.elapsed().as_secs_f64();
    let times = suite.timings();
    let share = |part: std::time::Duration| (1000.0 * part.as_secs_f64() / seconds).round() / 1000.0;
    println!(
        "{}",
        json!({
            "what": "ours.suite", "seconds": seconds, "saes": all.len(), "tokens": suite.sums().tokens(),
            "seconds_per_sae": seconds / all.len() as f64,
            "per_second": (all.len() as f64 * suite.sums().tokens() as f64 / seconds).round(),
            "share": {
                "blocks": share(times.blocks), "head": share(times.head), "saes": share(times.saes),
                "metrics": share(times.metrics),
            },
        })
    );
    Ok(())
}

fn judge<'a>(
    model: &'a dyn HookedModel,
    judged: Vec<Judged<'a>>,
    batches: &[TokenBatch],
) -> Result<Suite<'a>> {
    let options = EvalOptions { positions: Positions::All, ..EvalOptions::default() };
    let mut means = Means::new(model, judged.iter().map(|judged| judged.site_out))?;
    for tokens in batches {
        means.add(model, tokens, options.positions)?;
    }
    let mut suite = Suite::new(model, judged, &means, options)?;
    for tokens in batches {
        suite.add(tokens, None)?;
    }
    Ok(suite)
}
