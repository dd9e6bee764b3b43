//! What counting gives: unigram and interpolated bigram models with the model's tokenizer, scored on its held-out tokens.

use std::{collections::HashMap, path::Path};

use anyhow::Result;

use crate::{data, lm};

/// Mean losses in nats per token.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(crate) struct Baselines {
    /// Add-one unigram.
    pub(crate) unigram: f64,
    /// Bigram interpolated with the unigram by Witten and Bell's weight c(v) / (c(v) + distinct followers of v).
    pub(crate) bigram_witten_bell: f64,
    /// Bigram interpolated with one weight for all, the best of a grid on the held-out tokens themselves (which flatters it).
    pub(crate) bigram_best_weight: f64,
}

pub(crate) fn print(run: &Path) -> Result<()> {
    println!("{:#?}", score(run)?);
    Ok(())
}

/// Counts on the training documents, scores on the held-out windows: the same tokens that the model is scored on.
pub(crate) fn score(run: &Path) -> Result<Baselines> {
    let config = lm::config();
    let (bos, d_vocab) = (config.bos, config.dims.d_vocab);
    let mut single = vec![1.0f64; d_vocab]; // add one
    let mut pairs: HashMap<(i64, i64), f64> = HashMap::new();
    for document in data::load(run, "train")? {
        let mut before = bos;
        for id in document {
            single[id as usize] += 1.0;
            *pairs.entry((before, id)).or_default() += 1.0;
            before = id;
        }
    }
    let total: f64 = single.iter().sum();
    let (mut seen, mut followers) = (vec![0.0f64; d_vocab], vec![0.0f64; d_vocab]);
    for ((before, _), count) in &pairs {
        seen[*before as usize] += count;
        followers[*before as usize] += 1.0;
    }
    let weights: Vec<f64> = (1..20).map(|w| f64::from(w) / 20.0).collect();
    let (mut unigram, mut witten_bell, mut fixed, mut n) = (0.0, 0.0, vec![0.0; weights.len()], 0.0);
    for window in data::windows(&data::load(run, "heldout")?, config.dims.n_ctx, bos) {
        for pair in window.windows(2) {
            let (before, id) = (pair[0], pair[1]);
            let p1 = single[id as usize] / total;
            let (c, t) = (seen[before as usize], followers[before as usize]);
            let p2 = pairs.get(&(before, id)).copied().unwrap_or(0.0) / c.max(1.0);
            let mix = |w: f64| -(w * p2 + (1.0 - w) * p1).ln();
            unigram -= p1.ln();
            witten_bell += mix(c / (c + t).max(1.0));
            fixed.iter_mut().zip(&weights).for_each(|(sum, &w)| *sum += mix(w));
            n += 1.0;
        }
    }
    Ok(Baselines {
        unigram: unigram / n,
        bigram_witten_bell: witten_bell / n,
        bigram_best_weight: fixed.iter().copied().fold(f64::INFINITY, f64::min) / n,
    })
}
