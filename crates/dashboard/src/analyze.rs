use std::collections::{BTreeMap, HashMap};

use eval::{Reconstruction, Sparsity};
use hooks::{ActivationCache, Axis, HookPoint, HookedModel, HookedModelExt as _, TokenBatch};
use sae_core::{SaeExt as _, SparseAutoencoder, SparseFeatures, as_input};
use tch::{Kind, Tensor};
use tch_ext::expect_finite;

use crate::{
    ActiveTokens, Analysis, DashboardError, LatentActivation, LatentTrace, Metrics, PromptAnalysis,
    PromptLatent, PromptTokens, Result, SaeAnalysis, TokenAnalysis,
};

/// How many latents [`PromptAnalysis::strongest`] and [`PromptAnalysis::distinctive`] hold at most.
pub const PER_PROMPT: usize = 10;

/// The dense features that exist at one time inside an encoder: 128 MiB of float32.
const FEATURES_AT_A_TIME: i64 = 1 << 25;

const DEFINITIONS: [(&str, &str); 7] = [
    (
        "activation",
        "how strongly a latent is active on a token: f = encode(x); a latent that is not listed is 0 or weaker than those that are",
    ),
    ("counted", "whether a token takes part in the metrics: BOS, EOS and padding do not"),
    ("l0", "number of active latents: of a token, or the mean over the counted tokens of all prompts"),
    (
        "fvu",
        "fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2 over the counted tokens of all prompts",
    ),
    (
        "explained_variance",
        "1 - fvu; of a token: 1 - |x - x_hat|^2 / |x - mean(x)|^2, with the same mean: 1 is perfect, 0 no better than the mean, less is worse",
    ),
    ("cosine", "cosine of the angle between x and x_hat"),
    (
        "distinctive",
        "ranked by how far an activation (in a sentence: the largest on a counted token) exceeds the latent's mean over the counted tokens of all prompts: a latent that is active everywhere says little of one token",
    ),
];

/// An SAE and the site it reads.
#[derive(Debug)]
pub struct SaeAt<'a> {
    /// The name to show.
    pub id: String,
    /// The site.
    pub site: HookPoint,
    /// The SAE.
    pub sae: &'a dyn SparseAutoencoder,
}

/// A text and how its tokens read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// One for each token of its sequence, BOS included, padding left out.
    pub pieces: Vec<String>,
}

/// One run of the model over the batch, no deeper than the deepest site, then each SAE on its activations.
///
/// Each token gets its `top` strongest latents. Metrics are over the counted tokens. An SAE whose output is as wide as its
/// input is taken to reconstruct it; for others (transcoders) FVU and what follows from it are not defined.
///
/// # Errors
/// No SAE, an SAE that does not fit its site, prompts that are not those of the batch, activations that are not finite, and
/// whatever the model, the SAEs or libtorch say.
pub fn analyze(
    model: &dyn HookedModel,
    model_name: &str,
    tokens: &TokenBatch,
    prompts: &[Prompt],
    saes: &[SaeAt<'_>],
    top: usize,
) -> Result<Analysis> {
    let _no_grad = tch::no_grad_guard();
    let layout = Layout::new(tokens, prompts)?;
    let acts = harvest(model, tokens, saes)?;
    let saes =
        saes.iter().map(|at| analyze_one(at, acts.get(at.site)?, &layout, top)).collect::<Result<_>>()?;
    let definitions = DEFINITIONS.map(|(name, text)| (name.to_owned(), text.to_owned()));
    Ok(Analysis {
        model: model_name.to_owned(),
        prompts: layout.prompts,
        saes,
        definitions: definitions.into(),
    })
}

/// Which positions of the batch are which tokens of which prompt.
struct Layout {
    prompts: Vec<PromptTokens>,
    /// Prompt and token of each row that the SAEs read: first those that count, then the others.
    places: Vec<(usize, usize)>,
    n_counted: i64,
    /// Where the rows lie in `[batch · pos]`: int64.
    positions: Tensor,
}

impl Layout {
    fn new(tokens: &TokenBatch, prompts: &[Prompt]) -> Result<Self> {
        if prompts.len() as i64 != tokens.batch() {
            return Err(DashboardError::Prompts { prompts: prompts.len(), batch: tokens.batch() });
        }
        let flags = |mask: &Tensor| Ok::<_, DashboardError>(Vec::<bool>::try_from(mask.f_flatten(0, 1)?)?);
        let counted = flags(tokens.counted())?;
        let attended = tokens.attended().map(flags).transpose()?;
        let n_pos = tokens.pos() as usize;

        let (mut all, mut counting, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (prompt, row)) in prompts.iter().zip(tokens.rows()).enumerate() {
            let seen = |pos: &usize| attended.as_ref().is_none_or(|a| a.get(i * n_pos + pos) == Some(&true));
            let positions: Vec<usize> = (0..n_pos).filter(seen).collect();
            let (pieces, n_tokens) = (prompt.pieces.len(), positions.len());
            if pieces != n_tokens {
                return Err(DashboardError::Pieces { prompt: i, pieces, tokens: n_tokens });
            }
            let counts = |pos: &usize| counted.get(i * n_pos + pos) == Some(&true);
            for (token, pos) in positions.iter().enumerate() {
                let rows = if counts(pos) { &mut counting } else { &mut others };
                rows.push(((i, token), (i * n_pos + pos) as i64));
            }
            all.push(PromptTokens {
                text: prompt.text.clone(),
                tokens: prompt.pieces.clone(),
                ids: positions.iter().filter_map(|&pos| row.get(pos).copied()).collect(),
                counted: positions.iter().map(counts).collect(),
            });
        }
        let n_counted = counting.len() as i64;
        let (places, positions): (Vec<_>, Vec<_>) = counting.into_iter().chain(others).unzip();
        Ok(Self { prompts: all, places, n_counted, positions: Tensor::f_from_slice(&positions)? })
    }
}

fn harvest(model: &dyn HookedModel, tokens: &TokenBatch, saes: &[SaeAt<'_>]) -> Result<ActivationCache> {
    if saes.is_empty() {
        return Err(DashboardError::NoSae);
    }
    for SaeAt { id, site, sae } in saes {
        if site.axes().get(..2) != Some(&[Axis::Batch, Axis::Pos]) {
            return Err(DashboardError::Site { id: id.clone(), site: *site });
        }
        let width = site.shape(model.dims(), 1, 1).iter().product();
        if sae.d_in() != width {
            return Err(DashboardError::Misfit { id: id.clone(), site: *site, d_in: sae.d_in(), width });
        }
    }
    let mut sites: Vec<HookPoint> = saes.iter().map(|at| at.site).collect();
    sites.sort();
    sites.dedup();
    Ok(model.harvest(tokens, &sites)?)
}

fn analyze_one(at: &SaeAt<'_>, act: &Tensor, layout: &Layout, top: usize) -> Result<SaeAnalysis> {
    let x = as_input(at.site, act)?.f_flatten(0, 1)?; // [batch · pos, d_in]
    let x = x.f_index_select(0, &layout.positions.f_to_device(x.device())?)?; // [n, d_in]
    expect_finite(&at.site.to_string(), &x)?;
    let mut reading = Reading::new(at.sae, &x, layout.n_counted, top)?;
    let at_a_time = (FEATURES_AT_A_TIME / at.sae.d_sae().max(1)).clamp(1, 512);
    let n = layout.places.len() as i64;
    // No chunk holds tokens that count and others.
    for (from, to) in [(0, layout.n_counted), (layout.n_counted, n)] {
        let mut start = from;
        while start < to {
            let length = at_a_time.min(to - start);
            reading.add(&x.f_narrow(0, start, length)?, start < layout.n_counted)?;
            start += length;
        }
    }
    let metrics = reading.metrics(layout.n_counted);
    let mut rows = by_prompt(reading.rows, layout);
    let means = Means::new(&rows, layout);
    for row in rows.iter_mut().flatten() {
        row.token.distinctive = means.distinctive(&row.active, top);
    }
    let named: Vec<_> =
        rows.iter().zip(&layout.prompts).map(|(r, p)| of_prompt(r, &p.counted, &means)).collect();
    let latents = traces(&rows, &named, &means, layout);
    let prompts = rows.into_iter().zip(named).map(|(rows, [strongest, distinctive])| PromptAnalysis {
        tokens: rows.into_iter().map(|row| row.token).collect(),
        strongest,
        distinctive,
    });
    Ok(SaeAnalysis {
        id: at.id.clone(),
        hook: at.site,
        architecture: at.sae.architecture().to_owned(),
        d_sae: at.sae.d_sae(),
        metrics,
        prompts: prompts.collect(),
        latents,
    })
}

/// A token, and all of its active latents.
struct Row {
    token: TokenAnalysis,
    active: Vec<LatentActivation>,
}

/// An SAE that reads rows, and what it has read.
struct Reading<'a> {
    sae: &'a dyn SparseAutoencoder,
    top: usize,
    /// The mean of the rows that count, `[d_in]`, float64; `None` where they do not vary, and for transcoders.
    mean: Option<Tensor>,
    quality: Reconstruction,
    sparsity: Sparsity,
    rows: Vec<Row>,
}

impl<'a> Reading<'a> {
    fn new(sae: &'a dyn SparseAutoencoder, x: &Tensor, n_counted: i64, top: usize) -> Result<Self> {
        let counted = x.f_narrow(0, 0, n_counted)?;
        let mut varies = Reconstruction::new(sae.d_in());
        varies.add(&counted, &counted)?;
        let mean = match varies.fvu() {
            Some(_) if !sae.is_transcoder() => Some(counted.f_mean_dim(0, false, Kind::Double)?),
            _ => None,
        };
        let (quality, sparsity) = (Reconstruction::new(sae.d_in()), Sparsity::new(sae.d_sae()));
        Ok(Self { sae, top, mean, quality, sparsity, rows: Vec::new() })
    }

    /// Reads `[n, d_in]`, all of which count or none.
    fn add(&mut self, x: &Tensor, counted: bool) -> Result<()> {
        let features = self.sae.encode_sparse(x)?;
        if counted {
            self.sparsity.add(&features, None)?;
        }
        let n = features.n_rows() as usize;
        let (mut explained, mut cosines) = (vec![None; n], vec![None; n]);
        if !self.sae.is_transcoder() {
            let x_hat = self.sae.reconstruct_from(&features, x)?;
            if counted {
                self.quality.add(x, &x_hat)?;
            }
            let (x, x_hat) = (x.f_to_kind(Kind::Double)?, x_hat.f_to_kind(Kind::Double)?);
            if let Some(mean) = &self.mean {
                let ratio = squares(&x.f_sub(&x_hat)?)?.into_iter().zip(squares(&x.f_sub(mean)?)?);
                explained = ratio.map(|(error, variance)| finite(1.0 - error / variance)).collect();
            }
            let dots = Vec::<f64>::try_from(x.f_mul(&x_hat)?.f_sum_dim_intlist(1, false, Kind::Double)?)?;
            let norms = squares(&x)?.into_iter().zip(squares(&x_hat)?).map(|(a, b)| a.sqrt() * b.sqrt());
            // Rounding may carry a cosine past 1 by an ulp.
            cosines =
                dots.iter().zip(norms).map(|(dot, norm)| finite((dot / norm).clamp(-1.0, 1.0))).collect();
        }
        let top = features.top_k(self.top)?;
        for (((active, top), explained_variance), cosine) in
            active_latents(&features)?.into_iter().zip(top).zip(explained).zip(cosines)
        {
            // The activations came from float32 and go back to it unchanged.
            let top = top
                .into_iter()
                .map(|(id, value)| LatentActivation { latent: id.0, activation: value as f32 });
            let token = TokenAnalysis {
                l0: active.len() as i64,
                explained_variance,
                cosine,
                top: top.collect(),
                distinctive: Vec::new(), // when the means are known
            };
            self.rows.push(Row { token, active });
        }
        Ok(())
    }

    fn metrics(&self, tokens: i64) -> Metrics {
        let fvu = self.quality.fvu().and_then(finite);
        Metrics { tokens, l0: self.sparsity.l0(), fvu, explained_variance: fvu.map(|fvu| 1.0 - fvu) }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// `‖row‖²` of `[n, d]`.
fn squares(rows: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(rows.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?)?)
}

fn active_latents(features: &SparseFeatures) -> Result<Vec<Vec<LatentActivation>>> {
    let indptr = Vec::<i64>::try_from(features.indptr())?;
    let latents = Vec::<i64>::try_from(features.indices())?;
    let values = Vec::<f32>::try_from(features.values().f_to_kind(Kind::Float)?)?;
    let mut entries = latents
        .into_iter()
        .zip(values)
        .map(|(latent, activation)| LatentActivation { latent: latent as usize, activation });
    Ok(indptr.windows(2).map(|w| entries.by_ref().take((w[1] - w[0]) as usize).collect()).collect())
}

/// Puts rows back into the order of the prompts' tokens.
fn by_prompt(rows: Vec<Row>, layout: &Layout) -> Vec<Vec<Row>> {
    let mut placed: Vec<_> = layout.places.iter().zip(rows).collect();
    placed.sort_by_key(|(place, _)| **place);
    let mut prompts: Vec<Vec<Row>> =
        layout.prompts.iter().map(|p| Vec::with_capacity(p.tokens.len())).collect();
    for ((prompt, _), row) in placed {
        if let Some(rows) = prompts.get_mut(*prompt) {
            rows.push(row);
        }
    }
    prompts
}

/// The mean activation of each latent over the tokens that count.
struct Means(HashMap<usize, f64>);

impl Means {
    fn new(rows: &[Vec<Row>], layout: &Layout) -> Self {
        let mut sums: HashMap<usize, f64> = HashMap::new();
        let counted = layout.prompts.iter().flat_map(|prompt| &prompt.counted);
        for (row, _) in rows.iter().flatten().zip(counted).filter(|(_, counted)| **counted) {
            for entry in &row.active {
                *sums.entry(entry.latent).or_default() += f64::from(entry.activation);
            }
        }
        sums.values_mut().for_each(|sum| *sum /= layout.n_counted as f64);
        Self(sums)
    }

    fn of(&self, latent: usize) -> f64 {
        self.0.get(&latent).copied().unwrap_or_default()
    }

    /// How far an activation exceeds the mean.
    fn contrast(&self, latent: usize, activation: f32) -> f64 {
        f64::from(activation) - self.of(latent)
    }

    fn distinctive(&self, active: &[LatentActivation], top: usize) -> Vec<LatentActivation> {
        let key = |entry: &LatentActivation| (self.contrast(entry.latent, entry.activation), *entry);
        let mut order: Vec<_> = active.iter().map(key).collect();
        // Where none stands out, as on the one token of a text, the strongest come first.
        order.sort_by(|(x, a), (y, b)| {
            y.total_cmp(x).then(b.activation.total_cmp(&a.activation)).then(a.latent.cmp(&b.latent))
        });
        order.into_iter().take(top).map(|(_, entry)| entry).collect()
    }
}

/// The strongest latents of a prompt, and those that stand out.
fn of_prompt(rows: &[Row], counted: &[bool], means: &Means) -> [Vec<PromptLatent>; 2] {
    // Latent to its largest activation, where that is, and on how many tokens it is active.
    let mut latents: HashMap<usize, (f32, usize, usize)> = HashMap::new();
    for (token, (row, _)) in rows.iter().zip(counted).enumerate().filter(|(_, (_, counted))| **counted) {
        for &LatentActivation { latent, activation } in &row.active {
            let (max, at, active) = latents.entry(latent).or_insert((activation, token, 0));
            *active += 1;
            if activation > *max {
                (*max, *at) = (activation, token);
            }
        }
    }
    let largest = |(&latent, &(activation, ..)): (&usize, &(f32, usize, usize))| LatentActivation {
        latent,
        activation,
    };
    let mut strongest: Vec<LatentActivation> = latents.iter().map(largest).collect();
    strongest.sort_by(|a, b| b.activation.total_cmp(&a.activation).then(a.latent.cmp(&b.latent)));
    let distinctive = means.distinctive(&strongest, PER_PROMPT);
    strongest.truncate(PER_PROMPT);

    let on = |row: &Row, latent: usize| {
        let found = row.active.binary_search_by_key(&latent, |entry| entry.latent).ok();
        found.and_then(|i| row.active.get(i)).map_or(0.0, |entry| entry.activation)
    };
    let describe = |LatentActivation { latent, activation }| {
        let (_, max_token, active_tokens) = latents.get(&latent).copied().unwrap_or_default();
        let activations = rows.iter().map(|row| on(row, latent)).collect();
        PromptLatent { latent, max_activation: activation, max_token, active_tokens, activations }
    };
    [strongest, distinctive].map(|entries| entries.into_iter().map(describe).collect())
}

/// Every latent that is named anywhere, on all tokens.
fn traces(
    rows: &[Vec<Row>],
    named: &[[Vec<PromptLatent>; 2]],
    means: &Means,
    layout: &Layout,
) -> Vec<LatentTrace> {
    let tokens = rows.iter().flatten().flat_map(|row| row.token.top.iter().chain(&row.token.distinctive));
    let named =
        tokens.map(|entry| entry.latent).chain(named.iter().flatten().flatten().map(|named| named.latent));
    let empty = |latent| LatentTrace {
        latent,
        max_activation: 0.0,
        mean_activation: means.of(latent),
        active_tokens: 0,
        active: Vec::new(),
    };
    let mut traces: BTreeMap<usize, LatentTrace> = named.map(|latent| (latent, empty(latent))).collect();
    for (prompt, (rows, tokens)) in rows.iter().zip(&layout.prompts).enumerate() {
        for (token, (row, &counted)) in rows.iter().zip(&tokens.counted).enumerate() {
            for &LatentActivation { latent, activation } in &row.active {
                let Some(trace) = traces.get_mut(&latent) else { continue };
                if counted {
                    trace.max_activation = trace.max_activation.max(activation);
                    trace.active_tokens += 1;
                }
                match trace.active.last_mut() {
                    Some(last) if last.prompt == prompt => {
                        last.tokens.push(token);
                        last.activations.push(activation);
                    }
                    _ => trace.active.push(ActiveTokens {
                        prompt,
                        tokens: vec![token],
                        activations: vec![activation],
                    }),
                }
            }
        }
    }
    traces.into_values().collect()
}
