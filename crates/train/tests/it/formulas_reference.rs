//! Every objective and its gradient derived by hand from the papers' formulas, in float64 and plain loops: no tensor
//! library, no automatic differentiation.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use train::{
    Params,
    config::{
        Aux, AuxForm, Config, Gated, JumpRelu, Objective, Over, PreActLatents, PrefixLoss,
        ReconstructionLoss, Relu, Sparsity, Threshold, TopK,
    },
    objective::{Batch, Moment},
};

pub(crate) type Mat = Vec<Vec<f64>>;

/// What a loss and its gradient should be.
pub(crate) struct Reference {
    pub(crate) parts: BTreeMap<String, f64>,
    pub(crate) features: Mat,
    pub(crate) recon: Mat,
    pub(crate) grads: BTreeMap<&'static str, Vec<f64>>,
}

fn mat(t: &Tensor) -> Mat {
    Vec::try_from(t.to_kind(Kind::Double)).unwrap()
}

fn vec(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double)).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += s · from`.
fn add(to: &mut [f64], s: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += s * from);
}

fn norm(row: &[f64]) -> f64 {
    dot(row, row).sqrt()
}

/// Parameters, or their gradients.
#[derive(Clone)]
struct Values {
    w_enc: Mat,
    b_enc: Vec<f64>,
    w_dec: Mat,
    b_dec: Vec<f64>,
    threshold: Vec<f64>,
    r_mag: Vec<f64>,
    b_mag: Vec<f64>,
    w_skip: Mat,
}

impl Values {
    fn of(p: &Params) -> Self {
        let optional = |t: &Option<Tensor>| t.as_ref().map(vec).unwrap_or_default();
        Self {
            w_enc: mat(&p.w_enc),
            b_enc: vec(&p.b_enc),
            w_dec: mat(&p.w_dec),
            b_dec: vec(&p.b_dec),
            threshold: optional(&p.threshold),
            r_mag: optional(&p.r_mag),
            b_mag: optional(&p.b_mag),
            w_skip: p.w_skip.as_ref().map(mat).unwrap_or_default(),
        }
    }

    fn zeros(&self) -> Self {
        let mut zeros = self.clone();
        for m in [&mut zeros.w_enc, &mut zeros.w_dec, &mut zeros.w_skip] {
            m.iter_mut().for_each(|row| row.fill(0.0));
        }
        for v in
            [&mut zeros.b_enc, &mut zeros.b_dec, &mut zeros.threshold, &mut zeros.r_mag, &mut zeros.b_mag]
        {
            v.fill(0.0);
        }
        zeros
    }

    fn named(self) -> BTreeMap<&'static str, Vec<f64>> {
        [
            ("W_enc", self.w_enc.concat()),
            ("b_enc", self.b_enc),
            ("W_dec", self.w_dec.concat()),
            ("b_dec", self.b_dec),
            ("threshold", self.threshold),
            ("r_mag", self.r_mag),
            ("b_mag", self.b_mag),
            ("W_skip", self.w_skip.concat()),
        ]
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .collect()
    }
}

/// A problem and what is known of its answer so far.
struct Work<'w> {
    config: &'w Config,
    v: Values,
    grad: Values,
    x: Mat,
    target: Mat,
    /// What the encoder multiplies.
    read: Mat,
    dead: Vec<bool>,
    at: &'w Moment,
    parts: BTreeMap<String, f64>,
}

/// The loss of `batch` and its gradient.
pub(crate) fn reference(config: &Config, p: &Params, batch: Batch<'_>, at: &Moment) -> Reference {
    let v = Values::of(p);
    let x = mat(batch.x);
    let read = match config.pre_encoder_bias {
        true => x.iter().map(|x| x.iter().zip(&v.b_dec).map(|(x, b)| x - b).collect()).collect(),
        false => x.clone(),
    };
    let dead = vec(&at.dead.to_kind(Kind::Double)).iter().map(|d| *d > 0.0).collect();
    let target = mat(batch.target);
    let grad = v.zeros();
    let mut work = Work { config, v, grad, x, target, read, dead, at, parts: BTreeMap::new() };
    let (features, recon) = match &config.objective {
        Objective::Jumprelu(o) => work.jumprelu(o),
        Objective::Gated(o) => work.gated(o),
        Objective::Topk(o) => work.topk(o),
        Objective::Relu(o) => work.relu(o),
    };
    Reference { parts: work.parts, features, recon, grads: work.grad.named() }
}

impl Work<'_> {
    fn rows(&self) -> usize {
        self.x.len()
    }

    fn per_row(&self) -> f64 {
        1.0 / self.rows() as f64
    }

    fn latents(&self) -> usize {
        self.v.b_enc.len()
    }

    fn part(&mut self, name: &str, value: f64) {
        *self.parts.entry(name.to_owned()).or_default() += value;
    }

    /// `W_enc_i · x_c`.
    fn dots(&self) -> Mat {
        self.read.iter().map(|x| self.v.w_enc.iter().map(|w| dot(w, x)).collect()).collect()
    }

    fn pre_acts(&self) -> Mat {
        let add_bias = |row: Vec<f64>| row.iter().zip(&self.v.b_enc).map(|(d, b)| d + b).collect();
        self.dots().into_iter().map(add_bias).collect()
    }

    /// Takes `∂/∂(W_enc_i · x_c)` to `W_enc` and, with a pre-encoder bias, `b_dec`.
    fn back_dots(&mut self, d: &Mat) {
        for (d, read) in d.iter().zip(&self.read) {
            for (i, d) in d.iter().enumerate() {
                add(&mut self.grad.w_enc[i], *d, read);
                if self.config.pre_encoder_bias {
                    add(&mut self.grad.b_dec, -d, &self.v.w_enc[i]);
                }
            }
        }
    }

    fn back_pre_acts(&mut self, d: &Mat) {
        self.back_dots(d);
        for d in d {
            add(&mut self.grad.b_enc, 1.0, d);
        }
    }

    /// `b_dec + W_skip x + Σ_{i < width} a_i d_i`.
    fn decode(&self, acts: &[f64], x: &[f64], width: usize) -> Vec<f64> {
        let mut out = self.v.b_dec.clone();
        for (o, row) in out.iter_mut().zip(&self.v.w_skip) {
            *o += dot(row, x);
        }
        for (a, row) in acts.iter().zip(&self.v.w_dec).take(width) {
            add(&mut out, *a, row);
        }
        out
    }

    /// Takes `∂/∂x̂` of one row to the decoder; gives `∂/∂a`.
    fn back_decode(&mut self, e: &[f64], acts: &[f64], b: usize, width: usize) -> Vec<f64> {
        add(&mut self.grad.b_dec, 1.0, e);
        for (row, e) in self.grad.w_skip.iter_mut().zip(e) {
            add(row, *e, &self.x[b]);
        }
        let mut d = vec![0.0; acts.len()];
        for i in 0..width {
            d[i] = dot(e, &self.v.w_dec[i]);
            add(&mut self.grad.w_dec[i], acts[i], e);
        }
        d
    }

    /// The reconstruction of all latents and of prefixes; `unit` is what a squared error of 1 in one row costs.
    fn reconstruct(&mut self, acts: &Mat, prefixes: &[i64], join: PrefixLoss, unit: f64) -> (Mat, Mat) {
        let n = self.latents();
        let mut widths: Vec<usize> = prefixes.iter().map(|w| *w as usize).collect();
        let mut weight = 1.0;
        if widths.is_empty() {
            widths = vec![n];
        } else if join == PrefixLoss::Mean {
            widths.insert(0, 0);
            weight = 1.0 / widths.len() as f64;
        }
        let mut d_acts = vec![vec![0.0; n]; self.rows()];
        let mut recon = vec![];
        for b in 0..self.rows() {
            for width in &widths {
                let out = self.decode(&acts[b], &self.x[b], *width);
                let error: Vec<f64> = out.iter().zip(&self.target[b]).map(|(o, t)| o - t).collect();
                let cost = weight * unit * self.per_row();
                let name =
                    if *width == n { "reconstruction".to_owned() } else { format!("reconstruction_{width}") };
                self.part(&name, cost * dot(&error, &error));
                let e: Vec<f64> = error.iter().map(|e| 2.0 * cost * e).collect();
                let d = self.back_decode(&e, &acts[b], b, *width);
                add(&mut d_acts[b], 1.0, &d);
                if *width == n {
                    recon.push(out);
                }
            }
        }
        (recon, d_acts)
    }

    /// `∂‖d_i‖` to `d_i`.
    fn back_norm(&mut self, i: usize, d: f64) {
        let row = self.v.w_dec[i].clone();
        add(&mut self.grad.w_dec[i], d / norm(&row), &row);
    }

    fn jumprelu(&mut self, o: &JumpRelu) -> (Mat, Mat) {
        let (n, rows, share, lambda) = (self.latents(), self.rows(), self.per_row(), self.at.lambda);
        let theta: Vec<f64> = match o.threshold {
            Threshold::Log => self.v.threshold.iter().map(|t| t.exp()).collect(),
            Threshold::Direct => self.v.threshold.iter().map(|t| t.max(0.0)).collect(),
        };
        let pi = self.pre_acts();
        let on: Mat = pi
            .iter()
            .map(|row| row.iter().zip(&theta).map(|(p, t)| f64::from(u8::from(p > t))).collect())
            .collect();
        let features: Mat =
            pi.iter().zip(&on).map(|(p, h)| p.iter().zip(h).map(|(p, h)| p * h).collect()).collect();
        let (recon, mut d_features) = self.reconstruct(&features, &o.prefixes, o.prefix_loss, 1.0);

        // ∂/∂H(π − θ) of the terms that count latents.
        let mut d_step = vec![vec![0.0; n]; rows];
        let l0: Vec<f64> = on.iter().map(|row| row.iter().sum()).collect();
        match o.sparsity {
            Sparsity::L0 => {
                self.part("sparsity", lambda * share * l0.iter().sum::<f64>());
                d_step.iter_mut().flatten().for_each(|d| *d += lambda * share);
            }
            Sparsity::Quadratic { target_l0: t } => {
                for b in 0..rows {
                    self.part("sparsity", lambda * share * 2.0 / t * (l0[b] - t) * (l0[b] - t));
                    d_step[b].iter_mut().for_each(|d| *d += lambda * share * 4.0 / t * (l0[b] - t));
                }
            }
            Sparsity::Relative { target_l0: t } => {
                let off = share * l0.iter().sum::<f64>() / t - 1.0;
                self.part("sparsity", lambda * off * off);
                d_step.iter_mut().flatten().for_each(|d| *d += lambda * 2.0 * off / t * share);
            }
            Sparsity::Tanh { scale: c } => {
                for b in 0..rows {
                    for i in 0..n {
                        let length = norm(&self.v.w_dec[i]);
                        let tanh = (c * features[b][i] * length).tanh();
                        self.part("sparsity", lambda * share * tanh);
                        let slope = lambda * share * (1.0 - tanh * tanh) * c;
                        d_features[b][i] += slope * length;
                        self.back_norm(i, slope * features[b][i]);
                    }
                }
            }
        }
        if let Some(penalty) = &o.frequency_penalty {
            for i in 0..n {
                let frequency = share * on.iter().map(|row| row[i]).sum::<f64>();
                let in_scale = frequency / penalty.scale;
                self.part("frequency", penalty.coefficient * in_scale * in_scale);
                let slope = penalty.coefficient * 2.0 * in_scale / penalty.scale * share;
                d_step.iter_mut().for_each(|row| row[i] += slope);
            }
        }

        let mut d_pi = vec![vec![0.0; n]; rows];
        let mut d_theta = vec![0.0; n];
        for b in 0..rows {
            for i in 0..n {
                let near = ((pi[b][i] - theta[i]) / o.bandwidth).abs() < 0.5;
                let kernel = if near { 1.0 / o.bandwidth } else { 0.0 };
                let through = kernel * (theta[i] * d_features[b][i] + d_step[b][i]);
                d_theta[i] -= through;
                d_pi[b][i] += on[b][i] * d_features[b][i];
                if o.gradient_to_input {
                    d_pi[b][i] += through;
                }
            }
        }
        if let Some(pre_act) = &o.pre_act {
            self.part("pre_act", 0.0);
            for b in 0..rows {
                for i in 0..n {
                    let below = theta[i] - pi[b][i];
                    if below <= 0.0 || (pre_act.latents == PreActLatents::Dead && !self.dead[i]) {
                        continue;
                    }
                    let (length, unit) = (norm(&self.v.w_dec[i]), pre_act.coefficient * share);
                    self.part("pre_act", unit * below * length);
                    d_theta[i] += unit * length;
                    d_pi[b][i] -= unit * length;
                    self.back_norm(i, unit * below);
                }
            }
        }
        for i in 0..n {
            let factor = if o.threshold == Threshold::Log { theta[i] } else { 1.0 };
            self.grad.threshold[i] = factor * d_theta[i];
        }
        self.back_pre_acts(&d_pi);
        (features, recon)
    }

    fn gated(&mut self, o: &Gated) -> (Mat, Mat) {
        let (n, rows, share, lambda) = (self.latents(), self.rows(), self.per_row(), self.at.lambda);
        let dots = self.dots();
        let mut gate = dots.clone();
        let mut magnitude = dots.clone();
        for b in 0..rows {
            for i in 0..n {
                gate[b][i] += self.v.b_enc[i];
                magnitude[b][i] = self.v.r_mag[i].exp() * dots[b][i] + self.v.b_mag[i];
            }
        }
        let is_on = |b: usize, i: usize| gate[b][i] > 0.0 && magnitude[b][i] > 0.0;
        let feature = |b: usize, i: usize| if is_on(b, i) { magnitude[b][i] } else { 0.0 };
        let features: Mat = (0..rows).map(|b| (0..n).map(|i| feature(b, i)).collect()).collect();
        let (recon, d_features) = self.reconstruct(&features, &[], PrefixLoss::Sum, 1.0);

        let (mut d_dots, mut d_gate) = (vec![vec![0.0; n]; rows], vec![vec![0.0; n]; rows]);
        for b in 0..rows {
            let open: Vec<f64> = gate[b].iter().map(|g| g.max(0.0)).collect();
            let out = self.decode(&open, &self.x[b], n);
            let error: Vec<f64> = out.iter().zip(&self.target[b]).map(|(o, t)| o - t).collect();
            self.part("aux", share * dot(&error, &error));
            let e: Vec<f64> = error.iter().map(|e| 2.0 * share * e).collect();
            let d_open = if o.frozen_decoder {
                self.v.w_dec.iter().map(|row| dot(row, &e)).collect()
            } else {
                self.back_decode(&e, &open, b, n)
            };
            for i in 0..n {
                if is_on(b, i) {
                    let (d, factor) = (d_features[b][i], self.v.r_mag[i].exp());
                    d_dots[b][i] += d * factor;
                    self.grad.r_mag[i] += d * factor * dots[b][i];
                    self.grad.b_mag[i] += d;
                }
                let weight = if o.l1_by_decoder_norm { norm(&self.v.w_dec[i]) } else { 1.0 };
                self.part("sparsity", lambda * share * weight * open[i]);
                if o.l1_by_decoder_norm {
                    self.back_norm(i, lambda * share * open[i]);
                }
                if open[i] > 0.0 {
                    d_gate[b][i] += lambda * share * weight + d_open[i];
                }
            }
        }
        self.back_pre_acts(&d_gate);
        self.back_dots(&d_dots);
        (features, recon)
    }

    fn relu(&mut self, o: &Relu) -> (Mat, Mat) {
        let (n, rows, share, lambda) = (self.latents(), self.rows(), self.per_row(), self.at.lambda);
        let features: Mat =
            self.pre_acts().iter().map(|row| row.iter().map(|p| p.max(0.0)).collect()).collect();
        let (recon, mut d) = self.reconstruct(&features, &[], PrefixLoss::Sum, 1.0);
        for b in 0..rows {
            for i in 0..n {
                let weight = if o.l1_by_decoder_norm { norm(&self.v.w_dec[i]) } else { 1.0 };
                self.part("sparsity", lambda * share * weight * features[b][i]);
                if o.l1_by_decoder_norm {
                    self.back_norm(i, lambda * share * features[b][i]);
                }
                d[b][i] = if features[b][i] > 0.0 { d[b][i] + lambda * share * weight } else { 0.0 };
            }
        }
        self.back_pre_acts(&d);
        (features, recon)
    }

    /// A rescaled latent `π ‖d‖` decodes by `d / ‖d‖`: what is decoded, and so every gradient, is π's. Only the choice and the
    /// reported value know the norm.
    fn topk(&mut self, o: &TopK) -> (Mat, Mat) {
        let (n, rows) = (self.latents(), self.rows());
        let pi = self.pre_acts();
        let lengths: Vec<f64> = match o.rescale_by_decoder_norm {
            true => self.v.w_dec.iter().map(|row| norm(row)).collect(),
            false => vec![1.0; n],
        };
        let score = |b: usize, i: usize| pi[b][i] * lengths[i];
        let all: Vec<(usize, usize)> = (0..rows).flat_map(|b| (0..n).map(move |i| (b, i))).collect();
        let kept = match o.over {
            Over::Batch => largest(all, (o.k * rows as f64).floor() as usize, score),
            Over::Row => (0..rows)
                .flat_map(|b| largest((0..n).map(|i| (b, i)).collect(), o.k as usize, score))
                .collect(),
        };
        let mut acts = vec![vec![0.0; n]; rows];
        for (b, i) in kept {
            acts[b][i] = pi[b][i].max(0.0);
        }
        let unit = match o.reconstruction {
            ReconstructionLoss::Sum => 1.0,
            ReconstructionLoss::Mean => 1.0 / self.v.b_dec.len() as f64,
            ReconstructionLoss::Normalized => 1.0 / self.at.variance,
        };
        let (recon, mut d) = self.reconstruct(&acts, &o.prefixes, o.prefix_loss, unit);
        for (d, a) in d.iter_mut().flatten().zip(acts.iter().flatten()) {
            *d = if *a > 0.0 { *d } else { 0.0 };
        }
        if let Some(aux) = &o.aux {
            self.aux_k(aux, &pi, score, &recon, &mut d);
        }
        self.back_pre_acts(&d);
        let features =
            acts.iter().map(|row| row.iter().zip(&lengths).map(|(a, l)| a * l).collect()).collect();
        (features, recon)
    }

    fn aux_k(
        &mut self,
        aux: &Aux,
        pi: &Mat,
        score: impl Fn(usize, usize) -> f64,
        recon: &Mat,
        d_pi: &mut Mat,
    ) {
        self.part("aux", 0.0);
        let dead: Vec<usize> = (0..self.latents()).filter(|i| self.dead[*i]).collect();
        if dead.is_empty() {
            return;
        }
        let rest: Mat = (0..self.rows())
            .map(|b| self.target[b].iter().zip(&recon[b]).map(|(t, r)| t - r).collect())
            .collect();
        let k = aux.k.unwrap_or(self.config.d_in / 2) as usize;
        let unit = aux.coefficient
            * match aux.form {
                AuxForm::Ratio => 1.0 / rest.iter().map(|e| dot(e, e)).sum::<f64>(),
                AuxForm::Scaled => self.per_row() * (dead.len() as f64 / k as f64).min(1.0),
                AuxForm::Mean => self.per_row() / self.v.b_dec.len() as f64,
            };
        for b in 0..self.rows() {
            let chosen = largest(dead.iter().map(|i| (b, *i)).collect(), k, &score);
            let mut rebuilt = vec![0.0; self.v.b_dec.len()];
            let act = |i: usize| if aux.form == AuxForm::Scaled { pi[b][i] } else { pi[b][i].max(0.0) };
            for (_, i) in &chosen {
                add(&mut rebuilt, act(*i), &self.v.w_dec[*i]);
            }
            let error: Vec<f64> = rebuilt.iter().zip(&rest[b]).map(|(r, e)| r - e).collect();
            self.part("aux", unit * dot(&error, &error));
            let e: Vec<f64> = error.iter().map(|e| 2.0 * unit * e).collect();
            for (_, i) in chosen {
                add(&mut self.grad.w_dec[i], act(i), &e);
                if aux.form == AuxForm::Scaled || pi[b][i] > 0.0 {
                    d_pi[b][i] += dot(&self.v.w_dec[i], &e);
                }
            }
        }
    }
}

/// The `k` places of largest score; of equals, the first.
fn largest(
    mut places: Vec<(usize, usize)>,
    k: usize,
    score: impl Fn(usize, usize) -> f64,
) -> Vec<(usize, usize)> {
    places.sort_by(|a, b| score(b.0, b.1).total_cmp(&score(a.0, a.1)).then(a.cmp(b)));
    places.truncate(k);
    places
}
