use activations::{Moments, Normalisation, Site};

use super::{Config, EncoderInit, Objective, Over, Scale, Span, Sparsity};
use crate::{Result, TrainError};

impl Config {
    /// Width of what is written.
    pub fn d_out(&self) -> i64 {
        self.d_out.unwrap_or(self.d_in)
    }

    /// Whether the target is another activation than what is read.
    pub fn is_transcoder(&self) -> bool {
        self.d_out.is_some()
    }

    /// Refuses what can't be trained.
    ///
    /// # Errors
    /// [`TrainError::Config`], which names the key.
    pub fn validate(&self) -> Result<()> {
        self.validate_shape()?;
        let o = &self.optimizer;
        positive("optimizer.lr", o.lr)?;
        positive("optimizer.eps", o.eps)?;
        span("optimizer.lr_warmup", o.lr_warmup)?;
        span("optimizer.lr_decay", o.lr_decay)?;
        not_negative("optimizer.lr_warmup_from", o.lr_warmup_from)?;
        not_negative("optimizer.lr_decay_to", o.lr_decay_to)?;
        below_one("optimizer.beta1", o.beta1)?;
        below_one("optimizer.beta2", o.beta2)?;
        if let Some(clip) = o.clip {
            positive("optimizer.clip", clip)?;
        }
        if let Some(ema) = o.ema {
            below_one("optimizer.ema", ema)?;
        }
        positive("init.decoder_norm", self.init.decoder_norm)?;
        if self.decoder.unit_norm && self.init.decoder_norm != 1.0 {
            return bad("init.decoder_norm", "must be 1 where `decoder.unit_norm` keeps rows at norm 1");
        }
        if let Some(resample) = self.resample {
            if resample.every == 0 {
                return bad("resample.every", "must be at least 1");
            }
            if !matches!(self.objective, Objective::Relu(_) | Objective::Gated(_)) {
                return bad(
                    "resample",
                    "is for ReLU and Gated objectives: the others have other means against dead latents",
                );
            }
        }
        self.validate_objective()
    }

    fn validate_shape(&self) -> Result<()> {
        for (key, n) in [("d_in", self.d_in), ("d_sae", self.d_sae), ("d_out", self.d_out())] {
            if n < 1 {
                return bad(key, &format!("must be at least 1, but is {n}"));
            }
        }
        // A matrix of 2³⁸ numbers is a TiB.
        let most = self.d_sae.checked_mul(self.d_in.max(self.d_out()));
        if most.is_none_or(|n| n > 1 << 38) {
            return bad("d_sae", &format!("is {}: a matrix of that width is more than a TiB", self.d_sae));
        }
        if self.init.encoder == EncoderInit::Transpose && self.d_in != self.d_out() {
            return bad("init.encoder", "must be \"random\" where the output is not as wide as the input");
        }
        if self.skip && !self.is_transcoder() {
            return bad("skip", "is for transcoders: an SAE with a skip connection has nothing to learn");
        }
        if self.pre_encoder_bias && self.is_transcoder() {
            return bad(
                "pre_encoder_bias",
                "must be false for a transcoder: its `b_dec` belongs to another site",
            );
        }
        if self.dead_after == 0 {
            return bad("dead_after", "must be at least 1 token");
        }
        Ok(())
    }

    fn validate_objective(&self) -> Result<()> {
        match &self.objective {
            Objective::Jumprelu(j) => {
                not_negative("objective.lambda", j.lambda)?;
                span("objective.lambda_warmup", j.lambda_warmup)?;
                positive("objective.bandwidth", j.bandwidth)?;
                positive("objective.initial_threshold", j.initial_threshold)?;
                match j.sparsity {
                    Sparsity::L0 => {}
                    Sparsity::Tanh { scale } => positive("objective.sparsity.tanh.scale", scale)?,
                    Sparsity::Quadratic { target_l0 } | Sparsity::Relative { target_l0 } => {
                        positive("objective.sparsity.target_l0", target_l0)?;
                        if target_l0 > self.d_sae as f64 {
                            return bad(
                                "objective.sparsity.target_l0",
                                &format!("is {target_l0}, more than all {} latents", self.d_sae),
                            );
                        }
                    }
                }
                if let Some(pre_act) = j.pre_act {
                    not_negative("objective.pre_act.coefficient", pre_act.coefficient)?;
                }
                if let Some(penalty) = j.frequency_penalty {
                    not_negative("objective.frequency_penalty.coefficient", penalty.coefficient)?;
                    positive("objective.frequency_penalty.scale", penalty.scale)?;
                }
                self.validate_prefixes(&j.prefixes)
            }
            Objective::Gated(g) => {
                not_negative("objective.lambda", g.lambda)?;
                span("objective.lambda_warmup", g.lambda_warmup)
            }
            Objective::Relu(r) => {
                not_negative("objective.lambda", r.lambda)?;
                span("objective.lambda_warmup", r.lambda_warmup)
            }
            Objective::Topk(t) => {
                positive("objective.k", t.k)?;
                if t.k > self.d_sae as f64 {
                    return bad("objective.k", &format!("is {}, more than all {} latents", t.k, self.d_sae));
                }
                match (t.over, t.threshold_lr) {
                    (Over::Row, _) if t.k.fract() != 0.0 => {
                        return bad(
                            "objective.k",
                            &format!("must be whole for `over = \"row\"`, but is {}", t.k),
                        );
                    }
                    (Over::Row, Some(_)) => {
                        return bad(
                            "objective.threshold_lr",
                            "is for `over = \"batch\"`: k latents of a row need no threshold",
                        );
                    }
                    (Over::Batch, None) => {
                        return bad(
                            "objective.threshold_lr",
                            "is missing: `over = \"batch\"` needs it for its inference threshold",
                        );
                    }
                    (Over::Batch, Some(lr)) if !(lr > 0.0 && lr <= 1.0) => {
                        return bad(
                            "objective.threshold_lr",
                            &format!("must lie in 0..=1 and not be 0, but is {lr}"),
                        );
                    }
                    _ => {}
                }
                if let Some(aux) = t.aux {
                    not_negative("objective.aux.coefficient", aux.coefficient)?;
                    if let Some(k) = aux.k.filter(|k| *k < 1) {
                        return bad("objective.aux.k", &format!("must be at least 1, but is {k}"));
                    }
                }
                self.validate_prefixes(&t.prefixes)
            }
        }
    }

    fn validate_prefixes(&self, prefixes: &[i64]) -> Result<()> {
        let Some((last, first)) = prefixes.last().zip(prefixes.first()) else { return Ok(()) };
        if *first < 1 || prefixes.windows(2).any(|pair| pair[0] >= pair[1]) {
            return bad("objective.prefixes", &format!("must rise, but are {prefixes:?}"));
        }
        if *last != self.d_sae {
            return bad(
                "objective.prefixes",
                &format!("must end with d_sae = {}, but end with {last}", self.d_sae),
            );
        }
        Ok(())
    }

    /// λ after its warm-up and the warm-up; 0 and none for objectives without.
    pub fn lambda(&self) -> (f64, Span) {
        match &self.objective {
            Objective::Jumprelu(j) => (j.lambda, j.lambda_warmup),
            Objective::Gated(g) => (g.lambda, g.lambda_warmup),
            Objective::Relu(r) => (r.lambda, r.lambda_warmup),
            Objective::Topk(_) => (0.0, Span::Steps(0)),
        }
    }

    /// The architecture's name as the field says it: `jumprelu`, `gated`, `topk`, `batchtopk`, `matryoshka`, `relu`, with
    /// `_transcoder` or `_skip_transcoder` behind.
    pub fn architecture(&self) -> String {
        let base = match &self.objective {
            Objective::Jumprelu(_) => "jumprelu",
            Objective::Gated(_) => "gated",
            Objective::Relu(_) => "relu",
            Objective::Topk(t) if !t.prefixes.is_empty() => "matryoshka",
            Objective::Topk(t) if t.over == Over::Batch => "batchtopk",
            Objective::Topk(_) => "topk",
        };
        let kind = match (self.is_transcoder(), self.skip) {
            (false, _) => "",
            (true, false) => "_transcoder",
            (true, true) => "_skip_transcoder",
        };
        format!("{base}{kind}")
    }
}

impl Scale {
    /// The number itself, for a site whose activations have these sums.
    ///
    /// # Errors
    /// Activations that are all zero, where the number is measured.
    pub fn divisor(self, site: Site, moments: &Moments) -> Result<f64> {
        let normalisation = match self {
            Self::MeanSquare => Normalisation::UnitMeanSquare,
            Self::MeanNorm => Normalisation::MeanNormSqrtD,
            Self::SqrtWidth => return Ok((site.width as f64).sqrt()),
            Self::None => Normalisation::None,
        };
        Ok(activations::Scale::new(site, normalisation, moments)?.divisor)
    }

    /// Whether the number must be measured on activations.
    pub fn is_measured(self) -> bool {
        matches!(self, Self::MeanSquare | Self::MeanNorm)
    }
}

fn bad<T>(key: &str, problem: &str) -> Result<T> {
    Err(TrainError::Config(format!("`{key}` {problem}")))
}

fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        bad(key, &format!("must be positive, but is {value}"))
    }
}

fn not_negative(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        bad(key, &format!("must be a number that is not negative, but is {value}"))
    }
}

fn below_one(key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { bad(key, &format!("must lie in 0..1, but is {value}")) }
}

fn span(key: &str, span: Span) -> Result<()> {
    match span {
        Span::Share(share) if !(0.0..=1.0).contains(&share) => {
            bad(key, &format!("must be a whole number of steps or a share in 0..=1, but is {share}"))
        }
        _ => Ok(()),
    }
}
