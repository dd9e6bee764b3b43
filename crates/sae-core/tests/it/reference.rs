//! The architectures as their papers write them, in plain loops over float64: nothing here calls what is tested.

use sae_core::{Activation, Normalize, SaeParts};
use tch::{Kind, Tensor};
use testkit::{normal, uniform};

/// A latent this near to where it would switch may be on in float32 and off in float64, or the other way round.
pub(crate) const MARGIN: f64 = 1e-5;

/// The activations, by a name for each.
pub(crate) const RULES: [&str; 8] = [
    "relu",
    "jumprelu",
    "jumprelu with thresholds below zero",
    "topk of one",
    "topk of five",
    "topk of all",
    "groupmax",
    "gated",
];

/// Groups of a `groupmax`: they divide every `d_sae` of these tests.
pub(crate) const GROUPS: i64 = 4;

pub(crate) fn activation(rule: &str, d_sae: i64, seed: u64) -> Activation {
    match rule {
        "relu" => Activation::Relu,
        "jumprelu" => Activation::JumpRelu { threshold: uniform(&[d_sae], 0.1, 0.8, seed) },
        "jumprelu with thresholds below zero" => {
            Activation::JumpRelu { threshold: uniform(&[d_sae], -0.8, 0.8, seed) }
        }
        "topk of one" => Activation::TopK { k: 1 },
        "topk of five" => Activation::TopK { k: 5 },
        "topk of all" => Activation::TopK { k: d_sae },
        "groupmax" => Activation::GroupMax { k: GROUPS },
        "gated" => {
            Activation::Gated { r_mag: normal(&[d_sae], seed) * 0.3, b_mag: normal(&[d_sae], seed + 1) * 0.2 }
        }
        other => panic!("no rule is called {other}"),
    }
}

/// An SAE of random weights, or a transcoder where the widths differ.
pub(crate) fn plain(rule: &str, [d_in, d_sae, d_out]: [i64; 3], seed: u64) -> SaeParts {
    let w_enc = normal(&[d_in, d_sae], seed) / (d_in as f64).sqrt();
    let w_dec = normal(&[d_sae, d_out], seed + 1) / (d_sae as f64).sqrt();
    let (b_enc, b_dec) = (normal(&[d_sae], seed + 2) * 0.2, normal(&[d_out], seed + 3) * 0.2);
    let parts = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, activation(rule, d_sae, seed + 4));
    SaeParts { transcoder: d_in != d_out, ..parts }
}

/// Every activation with everything that can be done to an input and an output.
pub(crate) fn all(d_in: i64, d_sae: i64, seed: u64) -> Vec<(String, SaeParts)> {
    let mut found = Vec::new();
    for rule in RULES {
        for normalize in [Normalize::None, Normalize::LayerNorm, Normalize::ConstantNorm] {
            for (shape, d_out, transcoder, skip, subtract_b_dec) in [
                ("sae", d_in, false, false, false),
                ("sae that subtracts b_dec", d_in, false, false, true),
                ("transcoder to another width", d_in + 3, true, false, false),
                ("transcoder to the same width", d_in, true, false, true),
                ("skip transcoder", d_in, true, true, false),
                ("skip transcoder to another width", d_in - 2, true, true, false),
            ] {
                let w_skip = skip.then(|| normal(&[d_in, d_out], seed + 9) * 0.3);
                let parts = plain(rule, [d_in, d_sae, d_out], seed);
                let parts = SaeParts { normalize, transcoder, w_skip, subtract_b_dec, ..parts };
                found.push((format!("{rule}, {}, {shape}", normalize.name()), parts));
            }
        }
    }
    found
}

#[derive(Debug, Clone)]
pub(crate) enum Rule {
    Relu,
    JumpRelu { threshold: Vec<f64> },
    TopK { k: usize },
    GroupMax { k: usize },
    Gated { r_mag: Vec<f64>, b_mag: Vec<f64> },
}

/// An SAE's parameters in float64, matrices row by row.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) d_sae: usize,
    pub(crate) d_out: usize,
    pub(crate) w_enc: Vec<f64>,
    pub(crate) b_enc: Vec<f64>,
    pub(crate) w_dec: Vec<f64>,
    pub(crate) b_dec: Vec<f64>,
    pub(crate) w_skip: Option<Vec<f64>>,
    pub(crate) rule: Rule,
    normalize: Normalize,
    subtract_b_dec: bool,
    transcoder: bool,
}

/// A token's latents, and how far each is from where it would switch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latents {
    pub(crate) values: Vec<f64>,
    pub(crate) margins: Vec<f64>,
}

impl Reference {
    pub(crate) fn of(parts: &SaeParts) -> Self {
        let held = |matrix: &sae_core::Matrix| flat(matrix.held().unwrap());
        let d_sae = parts.w_enc.size()[1];
        Self {
            d_sae: d_sae as usize,
            d_out: parts.w_dec.size()[1] as usize,
            w_enc: held(&parts.w_enc),
            b_enc: flat(&parts.b_enc),
            w_dec: held(&parts.w_dec),
            b_dec: flat(&parts.b_dec),
            w_skip: parts.w_skip.as_ref().map(flat),
            rule: match &parts.activation {
                Activation::Relu => Rule::Relu,
                Activation::JumpRelu { threshold } => Rule::JumpRelu { threshold: flat(threshold) },
                Activation::TopK { k } => Rule::TopK { k: *k as usize },
                Activation::GroupMax { k } => Rule::GroupMax { k: *k as usize },
                Activation::Gated { r_mag, b_mag } => Rule::Gated { r_mag: flat(r_mag), b_mag: flat(b_mag) },
                other => panic!("no formula for {other:?}"),
            },
            normalize: parts.normalize,
            subtract_b_dec: parts.subtract_b_dec,
            transcoder: parts.transcoder,
        }
    }

    /// What is subtracted, what is then divided by, and what undoing multiplies by before it adds the first again.
    fn statistics(&self, x: &[f64]) -> (f64, f64, f64) {
        let d = x.len() as f64;
        match self.normalize {
            Normalize::None => (0.0, 1.0, 1.0),
            Normalize::LayerNorm => {
                let mean = x.iter().sum::<f64>() / d;
                let std = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (d - 1.0)).sqrt();
                (mean, std + 1e-5, std)
            }
            Normalize::ConstantNorm => {
                let scale = x.iter().map(|x| x * x).sum::<f64>().sqrt() / d.sqrt();
                (0.0, scale, scale)
            }
        }
    }

    pub(crate) fn encode(&self, x: &[f64]) -> Latents {
        let (shift, divisor, _) = self.statistics(x);
        let mut g = vec![0.0; self.d_sae];
        for (i, x) in x.iter().enumerate() {
            let mut input = (x - shift) / divisor;
            if self.subtract_b_dec {
                input -= self.b_dec[i];
            }
            for (j, g) in g.iter_mut().enumerate() {
                *g += input * self.w_enc[i * self.d_sae + j];
            }
        }
        let pre: Vec<f64> = (0..self.d_sae).map(|j| g[j] + self.b_enc[j]).collect();
        let far = vec![f64::INFINITY; self.d_sae];
        match &self.rule {
            Rule::Relu => Latents { values: pre.iter().map(|p| p.max(0.0)).collect(), margins: far },
            Rule::JumpRelu { threshold } => {
                let one = |(p, t): (&f64, &f64)| if p > t { p.max(0.0) } else { 0.0 };
                let margins = pre.iter().zip(threshold).map(|(p, t)| (p - t).abs()).collect();
                Latents { values: pre.iter().zip(threshold).map(one).collect(), margins }
            }
            Rule::TopK { k } => largest(&pre, *k),
            Rule::GroupMax { k } => {
                let groups: Vec<Latents> =
                    pre.chunks(self.d_sae / k).map(|group| largest(group, 1)).collect();
                Latents {
                    values: groups.iter().flat_map(|g| g.values.clone()).collect(),
                    margins: groups.iter().flat_map(|g| g.margins.clone()).collect(),
                }
            }
            Rule::Gated { r_mag, b_mag } => {
                let magnitude = |j: usize| (g[j] * r_mag[j].exp() + b_mag[j]).max(0.0);
                let values = (0..self.d_sae).map(|j| if pre[j] > 0.0 { magnitude(j) } else { 0.0 }).collect();
                Latents { values, margins: pre.iter().map(|p| p.abs()).collect() }
            }
        }
    }

    pub(crate) fn decode(&self, latents: &[f64]) -> Vec<f64> {
        let mut out = self.b_dec.clone();
        for (j, latent) in latents.iter().enumerate() {
            for (o, out) in out.iter_mut().enumerate() {
                *out += latent * self.w_dec[j * self.d_out + o];
            }
        }
        out
    }

    pub(crate) fn finish(&self, decoded: &[f64], x: &[f64]) -> Vec<f64> {
        let mut out = decoded.to_vec();
        if !self.transcoder {
            let (shift, _, factor) = self.statistics(x);
            out.iter_mut().for_each(|out| *out = *out * factor + shift);
        }
        if let Some(w_skip) = &self.w_skip {
            for (i, x) in x.iter().enumerate() {
                for (o, out) in out.iter_mut().enumerate() {
                    *out += x * w_skip[i * self.d_out + o];
                }
            }
        }
        out
    }

    pub(crate) fn output(&self, x: &[f64]) -> Vec<f64> {
        self.finish(&self.decode(&self.encode(x).values), x)
    }
}

/// The k largest where they are positive, of equal ones the first.
fn largest(pre: &[f64], k: usize) -> Latents {
    let mut order: Vec<usize> = (0..pre.len()).collect();
    order.sort_by(|a, b| pre[*b].total_cmp(&pre[*a]).then(a.cmp(b)));
    let mut found = Latents { values: vec![0.0; pre.len()], margins: vec![f64::INFINITY; pre.len()] };
    for (rank, j) in order.iter().enumerate() {
        if rank < k {
            found.values[*j] = pre[*j].max(0.0);
        }
        let edge = if rank < k { order.get(k) } else { order.get(k - 1) };
        found.margins[*j] = edge.map_or(f64::INFINITY, |edge| (pre[*edge] - pre[*j]).abs());
    }
    found
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

/// A matrix row by row, in float64.
pub(crate) fn rows(matrix: &Tensor) -> Vec<Vec<f64>> {
    let width = matrix.size()[1].max(1) as usize;
    flat(&matrix.detach()).chunks(width).map(<[f64]>::to_vec).collect()
}

/// Rows of one width as float64, `[n, width]`.
pub(crate) fn table(rows: &[Vec<f64>], width: usize) -> Tensor {
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, width as i64])
}

/// Asserts that latents are those of the formula, but for some that are about to switch.
#[track_caller]
pub(crate) fn assert_latents(what: &str, got: &Tensor, want: &[Latents], tolerance: f64) {
    let got = rows(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().flat_map(|row| &row.values).fold(f64::MIN_POSITIVE, |a, b| a.max(*b));
    let (mut unsure, mut seen) = (0usize, 0usize);
    for (got, want) in got.iter().zip(want) {
        for (j, got) in got.iter().enumerate() {
            seen += 1;
            if want.margins[j] < MARGIN {
                unsure += 1;
                continue;
            }
            let off = (got - want.values[j]).abs();
            assert!(off <= tolerance * largest, "{what}: latent {j} is {got}, not {}", want.values[j]);
        }
    }
    assert!(unsure * 1000 <= seen, "{what}: {unsure} of {seen} latents are about to switch");
}
