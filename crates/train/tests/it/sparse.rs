//! The sparse step is automatic differentiation of the plain formulas, whatever the options.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal};
use train::{
    Adam, AdamOptions, Params,
    config::{
        Aux, AuxForm, Config, Decoder, FrequencyPenalty, Objective, Over, PrefixLoss, ReconstructionLoss,
        Sparsity, Threshold,
    },
    objective::{Batch, Moment, gradients, threshold_of},
    sparse::{Outcome, Route, Update, step, step_by, supports},
};

use crate::objectives_common::{Rows, gated, jumprelu, map, moment, params, relu, sae, topk, transcoder};

/// What the issue asks for: of a gradient's largest magnitude.
const TOLERANCE: f64 = 1e-5;
/// Float32 sums of a loss's terms, in another order.
const LOSS: f64 = 1e-5;
/// A comparison that is nearer than this may go either way in float32.
const UNDECIDED: f64 = 1e-5;

fn objective(rng: &mut StdRng, d_sae: i64, is_jumprelu: bool) -> Objective {
    let prefixes = [vec![], vec![], vec![d_sae], vec![5, 30, d_sae]].choose(rng).unwrap().clone();
    let prefix_loss = *[PrefixLoss::Mean, PrefixLoss::Sum].choose(rng).unwrap();
    if is_jumprelu {
        let target_l0 = 10.0;
        let sparsity = [Sparsity::L0, Sparsity::Quadratic { target_l0 }, Sparsity::Relative { target_l0 }];
        return Objective::Jumprelu(train::config::JumpRelu {
            sparsity: *sparsity.choose(rng).unwrap(),
            bandwidth: *[0.1, 0.5, 1.5].choose(rng).unwrap(),
            threshold: *[Threshold::Log, Threshold::Direct].choose(rng).unwrap(),
            frequency_penalty: *[None, Some(FrequencyPenalty { coefficient: 0.02, scale: 0.1 })]
                .choose(rng)
                .unwrap(),
            prefixes,
            prefix_loss,
            ..jumprelu()
        });
    }
    let (k, over) =
        *[(4.0, Over::Row), (9.0, Over::Row), (3.7, Over::Batch), (40.0, Over::Batch)].choose(rng).unwrap();
    let form = *[AuxForm::Ratio, AuxForm::Scaled, AuxForm::Mean].choose(rng).unwrap();
    let aux = Aux { coefficient: 0.3, k: *[None, Some(3), Some(50)].choose(rng).unwrap(), form };
    Objective::Topk(train::config::TopK {
        reconstruction: *[ReconstructionLoss::Sum, ReconstructionLoss::Mean, ReconstructionLoss::Normalized]
            .choose(rng)
            .unwrap(),
        rescale_by_decoder_norm: rng.random(),
        aux: [None, Some(aux), Some(aux)].choose(rng).copied().unwrap(),
        prefixes,
        prefix_loss,
        ..topk(k, over)
    })
}

struct Case {
    config: Config,
    at: Moment,
}

/// A configuration with an option for each number that the seed draws.
fn case(seed: u64) -> Case {
    let rng = &mut StdRng::seed_from_u64(seed);
    let (d_in, d_out, d_sae) = (rng.random_range(3..40), rng.random_range(3..40), rng.random_range(40..90));
    let objective = objective(rng, d_sae, seed.is_multiple_of(2));
    let mut config = match rng.random_range(0..4) {
        0 => transcoder(d_in, d_out, d_sae, false, objective),
        1 => transcoder(d_in, d_out, d_sae, true, objective),
        _ => sae(d_in, d_sae, objective),
    };
    config.pre_encoder_bias &= rng.random_bool(0.7);
    let dead: Vec<i64> = match rng.random_range(0..3) {
        0 => vec![],
        _ => (0..d_sae).filter(|_| rng.random_bool(0.2)).collect(),
    };
    let at = Moment { variance: 2.5, ..moment(0.04, d_sae, &dead) };
    Case { config, at }
}

impl Case {
    /// A batch on which no comparison is so near that rounding decides it.
    fn rows(&self, p: &Params, n: i64, seed: u64) -> Rows {
        let drawn = (0..200).map(|i| Rows::new(&self.config, n, 1000 * seed + i));
        drawn.into_iter().find(|rows| self.is_decided(p, &rows.x)).expect("a batch without near comparisons")
    }

    fn is_decided(&self, p: &Params, x: &Tensor) -> bool {
        let p = map(p, |_, t| t.to_kind(Kind::Double));
        let x = x.to_kind(Kind::Double);
        let x = if self.config.pre_encoder_bias { x - &p.b_dec } else { x };
        let pre = x.matmul(&p.w_enc.tr()) + &p.b_enc;
        let far = |t: Tensor| t.abs().min().double_value(&[]) > UNDECIDED;
        match &self.config.objective {
            Objective::Jumprelu(o) => {
                let over = pre - threshold_of(&self.config, &p).unwrap();
                far(over.abs() - o.bandwidth / 2.0) && far(over)
            }
            Objective::Topk(o) => {
                let scores = match o.rescale_by_decoder_norm {
                    true => pre * p.w_dec.norm_scalaropt_dim(2, [1i64], false),
                    false => pre,
                };
                let (rows, k) = (scores.size()[0], o.k * scores.size()[0] as f64);
                let chosen = match o.over {
                    Over::Row => gap(&scores, o.k as i64),
                    Over::Batch => gap(&scores.reshape([1, -1]), k as i64),
                };
                let of_dead = match (&o.aux, self.at.n_dead) {
                    (None, _) | (_, 0) => f64::INFINITY,
                    (Some(aux), _) => {
                        let dead = scores.masked_select(&self.at.dead).reshape([rows, -1]);
                        gap(&dead, aux.k.unwrap_or(self.config.d_in / 2).max(1))
                    }
                };
                chosen.min(of_dead) > UNDECIDED && far(scores)
            }
            _ => true,
        }
    }

    fn update(&self, step: u64, adam: AdamOptions, lr: f64, decoder: Decoder, clip: Option<f64>) -> Update {
        Update { lr, adam, step, decoder, clip, most_error: f64::INFINITY }
    }
}

/// The least distance between the k-th and the next of any row; infinite where there is none.
fn gap(scores: &Tensor, k: i64) -> f64 {
    if k >= scores.size()[1] {
        return f64::INFINITY;
    }
    let best = scores.topk(k + 1, 1, true, true).0;
    (best.select(1, k - 1) - best.select(1, k)).min().double_value(&[])
}

fn copy(p: &Params) -> Params {
    map(p, |_, t| t.copy())
}

fn adams(p: &Params, options: AdamOptions) -> Vec<(&'static str, Adam)> {
    p.named().into_iter().map(|(name, t)| (name, Adam::new(t, options).unwrap())).collect()
}

const AS_IS: Decoder = Decoder { unit_norm: false, project_gradient: false };

/// Adam whose first moment, after one step, is half the gradient.
const HALVES: AdamOptions = AdamOptions { beta1: 0.5, beta2: 0.9, eps: 1e-8, weight_decay: 0.0 };

/// The gradients of one step, taken from Adam's first moments.
fn taken(
    case: &Case,
    route: Option<Route>,
    p: &Params,
    batch: Batch<'_>,
) -> (Outcome, Vec<(&'static str, Tensor)>) {
    let (mut p, mut adams) = (copy(p), adams(p, HALVES));
    let update = case.update(1, HALVES, 1e-3, AS_IS, None);
    let outcome = match route {
        Some(route) => step_by(route, &case.config, &mut p, &mut adams, batch, &case.at, &update),
        None => step(&case.config, &mut p, &mut adams, batch, &case.at, &update),
    };
    let grads = adams.iter().map(|(name, adam)| (*name, adam.state().1[0].1 * 2.0)).collect();
    (outcome.unwrap(), grads)
}

fn routes(config: &Config) -> Vec<Option<Route>> {
    let mut routes = vec![None, Some(Route::Kernels), Some(Route::Libtorch)];
    routes.extend(matches!(config.objective, Objective::Jumprelu(_)).then_some(Some(Route::Dense)));
    routes
}

#[test]
fn gradients_are_those_of_the_plain_formulas() {
    for seed in 0..120 {
        let case = case(seed);
        let p = params(&case.config, seed);
        assert!(supports(&case.config, &p), "{:?}", case.config.objective);
        let rows = case.rows(&p, 37, seed);
        let (loss, want) = gradients(&case.config, &p, rows.batch(), &case.at).unwrap();
        for route in routes(&case.config) {
            let what = format!("seed {seed}, {route:?}, {:?}", case.config);
            let (outcome, got) = taken(&case, route, &p, rows.batch());
            for ((name, want), (same, got)) in want.iter().zip(&got) {
                assert_eq!(name, same);
                assert_close(&format!("{name}; {what}"), got, want, TOLERANCE);
            }
            assert_outcome(&what, &outcome, &loss, &rows);
        }
    }
}

fn assert_outcome(what: &str, got: &Outcome, want: &train::objective::Loss, rows: &Rows) {
    let names: Vec<_> = got.parts.iter().map(|(name, _)| name).collect();
    assert_eq!(names, want.parts.iter().map(|(name, _)| name).collect::<Vec<_>>(), "{what}");
    let total = want.total().unwrap().double_value(&[]);
    for ((name, got), (_, want)) in got.parts.iter().zip(&want.parts) {
        let want = want.double_value(&[]);
        assert!((got - want).abs() <= LOSS * total.abs(), "{name} is {got}, not {want}; {what}");
    }
    assert!((got.loss() - total).abs() <= LOSS * total.abs(), "{what}");
    let error = (&want.recon - &rows.target).square().sum(Kind::Double).double_value(&[]);
    assert!((got.squared_error - error).abs() <= LOSS * error, "{what}");
    let on = want.features.gt(0.0);
    let active = Vec::<i64>::try_from(on.sum_dim_intlist(0, false, Kind::Int64)).unwrap();
    assert_eq!(got.active.iter().map(|n| i64::from(*n)).collect::<Vec<_>>(), active, "{what}");
    if let Some(smallest) = got.smallest_active {
        let want = want.features.masked_select(&on).min().double_value(&[]);
        assert!((smallest - want).abs() <= LOSS * want, "{smallest} {want} {what}");
    }
}

/// What a step does, written plainly. Returns the gradients' norm.
fn plain_step(
    config: &Config,
    p: &mut Params,
    adams: &mut [(&'static str, Adam)],
    batch: Batch<'_>,
    at: &Moment,
    update: &Update,
) -> f64 {
    let (_, mut grads) = gradients(config, p, batch, at).unwrap();
    let sums = |t: Tensor| t.sum_dim_intlist(1, true, Kind::Float);
    if update.decoder.project_gradient {
        let grad = &mut grads[2].1;
        let along = sums(&*grad * &p.w_dec) / sums(p.w_dec.square());
        *grad -= &p.w_dec * along;
    }
    let norm = grads.iter().map(|(_, g)| g.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt();
    let scale = update.clip.map_or(1.0, |clip| (clip / norm).min(1.0));
    for (((_, t), (_, adam)), (_, grad)) in p.named().into_iter().zip(adams).zip(&grads) {
        adam.step(t, &(grad * scale), update.lr).unwrap();
    }
    if update.decoder.unit_norm {
        p.w_dec = &p.w_dec / sums(p.w_dec.square()).sqrt();
    }
    if let (Objective::Jumprelu(o), Some(threshold)) = (&config.objective, &mut p.threshold)
        && o.threshold == Threshold::Direct
    {
        let _ = threshold.clamp_min_(0.0);
    }
    norm
}

#[test]
fn several_steps_are_those_of_the_plain_path() {
    for seed in 0..40 {
        let case = case(seed);
        let rng = &mut StdRng::seed_from_u64(seed + 5000);
        // ε as large as gradients: their rounding is not blown up where they are small.
        let options = AdamOptions {
            beta1: *[0.0, 0.9].choose(rng).unwrap(),
            beta2: *[0.99, 0.999].choose(rng).unwrap(),
            eps: 1e-2,
            weight_decay: *[0.0, 0.0, 0.1].choose(rng).unwrap(),
        };
        let decoder = Decoder { unit_norm: rng.random(), project_gradient: rng.random() };
        let clip = *[None, Some(1e3), Some(0.05)].choose(rng).unwrap();
        for route in routes(&case.config) {
            let what =
                format!("seed {seed}, {route:?}, {options:?}, {decoder:?}, {clip:?}, {:?}", case.config);
            let (mut got, mut want) = (params(&case.config, seed), params(&case.config, seed));
            let (mut got_adams, mut want_adams) = (adams(&got, options), adams(&want, options));
            for n in 1..=4 {
                let rows = case.rows(&want, 23, 10 * seed + n);
                let (batch, at) = (rows.batch(), &case.at);
                let update = case.update(n, options, 3e-3, decoder, clip);
                let outcome = match route {
                    Some(route) => step_by(route, &case.config, &mut got, &mut got_adams, batch, at, &update),
                    None => step(&case.config, &mut got, &mut got_adams, batch, at, &update),
                };
                let norm = plain_step(&case.config, &mut want, &mut want_adams, batch, at, &update);
                let same = |got: f64| (got - norm).abs() <= TOLERANCE * norm;
                assert_eq!(outcome.unwrap().grad_norm.map(same), clip.map(|_| true), "{what}");
            }
            for ((name, got), (_, want)) in got.named().into_iter().zip(want.named()) {
                assert_close(&format!("{name}; {what}"), got, want, TOLERANCE);
            }
            for ((name, got), (_, want)) in got_adams.iter().zip(&want_adams) {
                assert_eq!(got.state().0, want.state().0, "{name}; {what}");
                for ((moment, got), (_, want)) in got.state().1.into_iter().zip(want.state().1) {
                    assert_close(&format!("{name}#{moment}; {what}"), got, want, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let options = AdamOptions { beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let decoder = Decoder { unit_norm: true, project_gradient: true };
    let aux = Aux { coefficient: 0.1, k: Some(8), form: AuxForm::Ratio };
    let objectives = [
        Objective::Jumprelu(jumprelu()),
        Objective::Topk(train::config::TopK { aux: Some(aux), ..topk(8.0, Over::Row) }),
        Objective::Topk(topk(7.5, Over::Batch)),
    ];
    for objective in objectives {
        let config = sae(96, 700, objective);
        let case = Case { at: moment(0.02, 700, &[3, 4, 5, 400, 401, 650, 651, 652, 653, 654]), config };
        let rows = Rows::new(&case.config, 300, 1);
        let before = tch::get_num_threads();
        let mut results = Vec::new();
        for threads in [1, 2, 2] {
            tch::set_num_threads(threads);
            let mut p = params(&case.config, 1);
            let mut adams = adams(&p, options);
            for n in 1..=3 {
                let update = case.update(n, options, 1e-3, decoder, Some(1.0));
                step_by(Route::Kernels, &case.config, &mut p, &mut adams, rows.batch(), &case.at, &update)
                    .unwrap();
            }
            results.push(p);
        }
        tch::set_num_threads(before);
        for other in &results[1..] {
            for ((name, got), (_, want)) in other.named().into_iter().zip(results[0].named()) {
                assert_same(name, got, want);
            }
        }
    }
}

#[test]
fn a_loss_that_is_no_number_changes_nothing() {
    for seed in 0..12 {
        let case = case(seed);
        let p = params(&case.config, seed);
        let rows = Rows::new(&case.config, 20, seed);
        for (x, target) in [(f64::NAN, 0.0), (0.0, f64::NAN), (f64::INFINITY, 0.0)] {
            let rows = Rows { x: spoil(&rows.x, x), target: spoil(&rows.target, target) };
            for route in routes(&case.config) {
                let (mut got, mut moments) = (copy(&p), adams(&p, HALVES));
                let update = case.update(1, HALVES, 1e-3, AS_IS, Some(1.0));
                let batch = rows.batch();
                let outcome = match route {
                    Some(route) => {
                        step_by(route, &case.config, &mut got, &mut moments, batch, &case.at, &update)
                    }
                    None => step(&case.config, &mut got, &mut moments, batch, &case.at, &update),
                };
                assert!(!outcome.unwrap().loss().is_finite(), "seed {seed}, {route:?}, {x}, {target}");
                for ((name, got), (_, want)) in got.named().into_iter().zip(p.named()) {
                    assert_same(name, got, want);
                }
                for (name, adam) in &moments {
                    assert_eq!(adam.state().0, 0);
                    adam.state().1.iter().for_each(|(_, t)| assert_same(name, t, &t.zeros_like()));
                }
            }
        }
    }
}

/// With this added to one number.
fn spoil(t: &Tensor, by: f64) -> Tensor {
    let t = t.copy();
    let _ = t.get(1).get(0).g_add_scalar_(by);
    t
}

#[test]
fn latents_that_no_row_uses_rest() {
    let options = AdamOptions { beta1: 0.0, beta2: 0.9, eps: 1e-8, weight_decay: 0.0 };
    let config = sae(8, 40, Objective::Topk(topk(3.0, Over::Row)));
    let case = Case { at: moment(0.0, 40, &[]), config };
    let mut p = params(&case.config, 3);
    let _ = p.b_enc.get(7).fill_(-1e3);
    let before = copy(&p);
    let mut adams = adams(&p, options);
    for (_, adam) in &mut adams {
        let ones = adam.state().1[0].1.ones_like();
        adam.restore(4, |_| Ok(ones.copy())).unwrap();
    }
    let rows = Rows::new(&case.config, 50, 3);
    let update = case.update(5, options, 0.1, AS_IS, None);
    let outcome = step(&case.config, &mut p, &mut adams, rows.batch(), &case.at, &update).unwrap();
    assert_eq!(outcome.active[7], 0);
    assert_same("W_enc", &p.w_enc.get(7), &before.w_enc.get(7));
    assert_same("W_dec", &p.w_dec.get(7), &before.w_dec.get(7));
    let v = adams[0].1.state().1[0].1.get(7);
    assert_close("v", &v, &(v.ones_like() * 0.9), 1e-6);
    assert!(adams.iter().all(|(_, adam)| adam.state().0 == 5));
}

#[test]
fn equal_values_go_to_the_lower_latent() {
    let config = sae(2, 6, Objective::Topk(topk(2.0, Over::Row)));
    // Of a batch the first row's come first.
    let batch = sae(2, 6, Objective::Topk(topk(1.5, Over::Batch)));
    for (config, want) in [(config, vec![4, 4, 0, 0, 0, 0]), (batch, vec![1; 6])] {
        let case = Case { at: moment(0.0, 6, &[]), config };
        let mut p = params(&case.config, 1);
        p.w_enc = p.w_enc.zeros_like();
        p.b_enc = p.b_enc.ones_like();
        let rows = Rows::new(&case.config, 4, 1);
        let (outcome, _) = taken(&case, Some(Route::Kernels), &p, rows.batch());
        assert_eq!(outcome.active, want, "{:?}", case.config.objective);
    }
}

#[test]
fn the_others_go_the_plain_way() {
    let with = |change: fn(&mut train::config::JumpRelu)| {
        let mut o = jumprelu();
        change(&mut o);
        Objective::Jumprelu(o)
    };
    let refused = [
        with(|o| o.gradient_to_input = true),
        with(|o| o.sparsity = Sparsity::Tanh { scale: 4.0 }),
        with(|o| {
            o.pre_act =
                Some(train::config::PreAct { coefficient: 0.1, latents: train::config::PreActLatents::All })
        }),
        Objective::Gated(gated()),
        Objective::Relu(relu()),
    ];
    for objective in refused {
        let config = sae(4, 12, objective);
        assert!(!supports(&config, &params(&config, 1)), "{:?}", config.objective);
    }
    let config = sae(4, 12, Objective::Jumprelu(jumprelu()));
    let p = params(&config, 1);
    assert!(supports(&config, &p));
    assert!(!supports(&config, &map(&p, |_, t| t.to_kind(Kind::Double))), "float64 goes the plain way");
}

#[test]
fn other_widths_are_refused_and_change_nothing() {
    let config = sae(4, 12, Objective::Jumprelu(jumprelu()));
    let case = Case { at: moment(0.1, 12, &[]), config };
    let (mut p, before) = (params(&case.config, 1), params(&case.config, 1));
    let mut moments = adams(&p, HALVES);
    let update = case.update(1, HALVES, 1e-3, AS_IS, None);
    for (x, target, named) in
        [([5, 4], [5, 3], "d_out=4"), ([5, 3], [5, 4], "d_in=4"), ([0, 4], [0, 4], "no rows")]
    {
        let (x, target) = (normal(&x, 1), normal(&target, 2));
        let batch = Batch { x: &x, target: &target };
        let error = step(&case.config, &mut p, &mut moments, batch, &case.at, &update).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    for ((name, got), (_, want)) in p.named().into_iter().zip(before.named()) {
        assert_same(name, got, want);
    }
}
