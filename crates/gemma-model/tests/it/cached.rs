//! A sequence fed through a cache of keys and values, piece by piece, is the sequence run at once.

use gemma_model::{Gemma2, Gemma2Config, KvCache, LayerKind, ModelError};
use hooks::{
    ActivationCache, BoxError, Hook, HookPoint, HookSet, HookedModelExt as _, LayerIdx, Positions,
    TokenBatch, Visit, edit, observe,
};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal, relative_error};

use crate::common::{CASES, batch, cases, model, refused, small, tokens, with_config};

/// The same sums over other numbers of rows and keys, so in another order.
const OTHER_ORDER: f64 = 1e-5;

const SPECIAL: [i64; 3] = [0, 1, 2];

/// A batch run at once, with every activation.
struct Whole {
    model: Gemma2,
    tokens: TokenBatch,
    logits: Tensor,
    acts: ActivationCache,
}

impl Whole {
    fn of(model: Gemma2, tokens: TokenBatch) -> Self {
        let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).collect();
        let (logits, acts) = model.run_with_cache(&tokens, &sites).unwrap();
        Self { model, tokens, logits, acts }
    }

    /// A golden checkpoint with its tokens, rows of different lengths padded on the left.
    fn golden(case: &str) -> Self {
        let tokens = tokens(case);
        let length = |i: usize| match tokens.attended() {
            Some(mask) => mask.get(i as i64).sum(Kind::Int64).int64_value(&[]) as usize,
            None => tokens.pos() as usize,
        };
        let rows: Vec<_> =
            tokens.rows().iter().enumerate().map(|(i, row)| row[..length(i)].to_vec()).collect();
        Self::of(model(case), TokenBatch::left_padded(&rows, 0, &SPECIAL).unwrap())
    }

    fn sites(&self) -> impl Iterator<Item = HookPoint> {
        HookPoint::all(self.model.config().dims.n_layers)
    }

    /// Sizes of pieces that make the whole: `first` columns, or more where a row has no token among
    /// them, then as told.
    fn sizes(&self, first: i64, then: &[i64]) -> Vec<i64> {
        let padding = self.tokens.attended().map_or(0, |mask| {
            let most = mask.logical_not().sum_dim_intlist(1, false, Kind::Int64).max();
            most.int64_value(&[])
        });
        let pos = self.tokens.pos();
        let mut sizes = vec![first.clamp(padding + 1, pos)];
        let mut left = pos - sizes[0];
        for size in then.iter().cycle() {
            if left == 0 {
                break;
            }
            sizes.push((*size).min(left));
            left -= sizes[sizes.len() - 1];
        }
        sizes
    }

    /// Columns of the batch as a batch of their own.
    fn columns(&self, first: i64, size: i64) -> TokenBatch {
        let of = |row: &Vec<i64>| row[first as usize..(first + size) as usize].to_vec();
        let rows: Vec<_> = self.tokens.rows().iter().map(of).collect();
        let mask = self.tokens.attended().map(|mask| mask.narrow(1, first, size));
        match mask.filter(|mask| mask.all().int64_value(&[]) == 0) {
            Some(mask) => {
                let mask = Vec::<Vec<i64>>::try_from(&mask.to_kind(Kind::Int64)).unwrap();
                TokenBatch::with_mask(&rows, &mask, &SPECIAL).unwrap()
            }
            None => TokenBatch::new(&rows, &SPECIAL).unwrap(),
        }
    }

    /// The logits of all pieces, one after the other.
    fn in_pieces(&self, sizes: &[i64], hooks: &mut HookSet<'_>) -> Tensor {
        let mut cache = self.model.cache(self.tokens.batch() as usize);
        let mut parts = Vec::new();
        for size in sizes {
            let tokens = self.next(&cache, *size);
            parts.push(step(&self.model, &mut cache, &tokens, hooks));
        }
        assert_eq!(cache.len(), self.tokens.pos());
        Tensor::cat(&parts, 1)
    }

    /// The `size` columns that follow what a cache holds.
    fn next(&self, cache: &KvCache, size: i64) -> TokenBatch {
        self.columns(cache.len(), size)
    }

    /// Zero where padding stands on the axis of positions (of queries, in scores and patterns).
    fn kept(&self, site: Option<HookPoint>, act: &Tensor) -> Tensor {
        let Some(attended) = self.tokens.attended() else { return act.shallow_clone() };
        let axis = match site {
            Some(HookPoint::AttnScores(_) | HookPoint::AttnPattern(_)) => 2,
            _ => 1,
        };
        let mut shape = vec![1; act.dim()];
        (shape[0], shape[axis]) = (attended.size()[0], attended.size()[1]);
        act.masked_fill(&attended.view(shape.as_slice()).logical_not(), 0.0)
    }

    /// Asserts that a run in pieces is this run, at every site.
    fn assert_same_run(&self, what: &str, sizes: &[i64]) {
        let mut acts = ActivationCache::default();
        let mut rows = Rows { whole: self, seen: 0 };
        let mut hooks = HookSet::new();
        hooks.on_each(self.sites(), &mut acts).on_each(self.sites().filter(|s| of_keys(*s)), &mut rows);
        let logits = self.in_pieces(sizes, &mut hooks);
        hooks.finish().unwrap();
        assert_eq!(rows.seen, 2 * self.model.config().dims.n_layers * sizes.len(), "{what}: {sizes:?}");
        let close = |name: &str, site, got: &Tensor, want: &Tensor| {
            let what = format!("{what} in {sizes:?}: {name}");
            assert_close(&what, &self.kept(site, got), &self.kept(site, want), OTHER_ORDER);
        };
        for site in self.sites().filter(|site| !of_keys(*site)) {
            close(&site.to_string(), Some(site), acts.get(site).unwrap(), self.acts.get(site).unwrap());
        }
        close("logits", None, &logits, &self.logits);
    }
}

/// The logits behind what is added to a cache.
fn step(model: &Gemma2, cache: &mut KvCache, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let first = cache.len();
    let resid = model.extend(cache, tokens, hooks).unwrap();
    hooks.begin_at(first);
    let logits = model.unembed(&resid, hooks).unwrap();
    hooks.begin_at(0);
    logits
}

fn of_keys(site: HookPoint) -> bool {
    matches!(site, HookPoint::AttnScores(_) | HookPoint::AttnPattern(_))
}

/// Sees at each step that scores and patterns are rows of the whole run's, over the keys that are still held,
/// and that no key is missing that the whole run sees.
struct Rows<'w> {
    whole: &'w Whole,
    seen: usize,
}

impl Hook for Rows<'_> {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        self.seen += 1;
        let whole = self.whole.kept(Some(at.site), self.whole.acts.get(at.site)?);
        let (new, held) = (act.size()[2], act.size()[3]);
        let end = at.first_pos + new;
        let rows = whole.narrow(2, at.first_pos, new);
        let got = match self.whole.tokens.attended() {
            Some(mask) => {
                let own = mask.narrow(1, at.first_pos, new).view([-1, 1, new, 1]);
                act.masked_fill(&own.logical_not(), 0.0)
            }
            None => act.shallow_clone(),
        };
        let what = format!("{} of positions {}..{end}", at.site, at.first_pos);
        assert_close(&what, &got, &rows.narrow(3, end - held, held), OTHER_ORDER);
        if matches!(at.site, HookPoint::AttnPattern(_)) {
            let forgotten = rows.narrow(3, 0, end - held).abs().sum(Kind::Double).double_value(&[]);
            assert_eq!(forgotten, 0.0, "{what} looks at keys that are gone");
        }
        Ok(None)
    }
}

#[test]
fn one_token_at_a_time_is_the_whole_run() {
    for case in CASES {
        let whole = Whole::golden(case);
        whole.assert_same_run(case, &whole.sizes(1, &[1]));
    }
}

#[test]
fn all_at_once_is_the_whole_run() {
    for case in CASES {
        let whole = Whole::golden(case);
        whole.assert_same_run(case, &[whole.tokens.pos()]);
    }
}

#[test]
fn a_prompt_and_single_steps_are_the_whole_run() {
    for case in CASES {
        let whole = Whole::golden(case);
        for prompt in [2, 6, whole.tokens.pos() - 1] {
            whole.assert_same_run(case, &whole.sizes(prompt, &[1]));
        }
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn any_pieces_are_the_whole_run(
        case in prop::sample::select(&CASES[..]),
        first in 1i64..20,
        then in prop::collection::vec(1i64..12, 1..6),
    ) {
        let whole = Whole::golden(case);
        whole.assert_same_run(case, &whole.sizes(first, &then));
    }

    #[test]
    fn rows_of_any_lengths_are_the_whole_run(
        case in prop::sample::select(&["mini-2b", "mini-9b", "mini-padded"][..]),
        rows in prop::collection::vec(prop::collection::vec(3i64..250, 1..30), 1..4),
        more in 1i64..12,
        then in prop::collection::vec(1i64..5, 1..4),
    ) {
        // Prompts of different lengths, and what all of them get behind it.
        let more = |row: usize| (0..more).map(move |i| 3 + (17 * i + 5 * row as i64) % 240);
        let rows: Vec<Vec<i64>> =
            rows.into_iter().enumerate().map(|(i, row)| row.into_iter().chain(more(i)).collect()).collect();
        let whole = Whole::of(model(case), TokenBatch::left_padded(&rows, 0, &SPECIAL).unwrap());
        whole.assert_same_run(case, &whole.sizes(1, &then));
    }

    #[test]
    fn edits_at_every_step_are_the_edit_of_the_whole_run(
        case in prop::sample::select(&CASES[..]),
        layer in 0usize..3,
        start in 0i64..10,
        length in 1i64..12,
        ends in any::<bool>(),
        prompt in 1i64..12,
        then in prop::collection::vec(1i64..5, 1..4),
    ) {
        let whole = Whole::golden(case);
        let pos = whole.tokens.pos();
        let end = ends.then_some((start + length).min(pos));
        let site = HookPoint::ResidPost(LayerIdx(layer));
        let direction = normal(&[whole.model.config().dims.d_model as i64], 4);
        let add = || edit::add(direction.shallow_clone(), 2.0);
        let sizes = whole.sizes(prompt, &then);
        let range = Positions::Range { start, end };
        for positions in [None, Some(Positions::Counted), Some(Positions::All), Some(range)] {
            let at_once = match positions {
                None => add(),
                Some(positions) => add().at(positions.mask(&whole.tokens).unwrap()),
            };
            let by_step = match positions {
                None => add(),
                Some(positions) => add().at(positions.over(&whole.columns(0, sizes[0])).unwrap()),
            };
            let mut hooks = HookSet::new();
            hooks.on(site, at_once);
            let want = whole.kept(None, &whole.model.run(&whole.tokens, hooks).unwrap());
            // For `over`, which knows the prompt alone, special tokens in later pieces count; there are none.
            let mut hooks = HookSet::new();
            hooks.on(site, by_step);
            let got = whole.kept(None, &whole.in_pieces(&sizes, &mut hooks));
            assert_close(&format!("{case} {positions:?} in {sizes:?}"), &got, &want, OTHER_ORDER);
            let plain = whole.kept(None, &whole.logits);
            prop_assert!(relative_error(&want, &plain) > 100.0 * OTHER_ORDER, "the edit does nothing");
        }
    }
}

#[test]
fn holes_in_a_text_are_hidden_from_later_pieces() {
    // Each piece of four columns begins with a token in every row, and has holes behind it.
    let ids = |row: i64| (0..24).map(|i| 3 + (13 * i + 7 * row) % 240).collect::<Vec<i64>>();
    let mask = |row: i64| (0..24).map(|i| i64::from(i % 4 == 0 || (i * (row + 2)) % 7 < 4)).collect();
    for case in ["mini-2b", "mini-9b", "mini-padded"] {
        let (ids, mask): (Vec<_>, Vec<_>) = (0..3).map(|row| (ids(row), mask(row))).unzip();
        let whole = Whole::of(model(case), TokenBatch::with_mask(&ids, &mask, &SPECIAL).unwrap());
        whole.assert_same_run(case, &[4; 6]);
        whole.assert_same_run(case, &[8, 4, 12]);
    }
}

/// A model whose layers are all of one kind, with room for a long text, and a text for it.
fn long(kind: LayerKind) -> (Gemma2, Vec<i64>) {
    let mut config = Gemma2Config { layer_kinds: vec![kind; 2], ..small() };
    config.dims.n_ctx = 1024;
    (Gemma2::init(config, 5).unwrap(), (0..400).map(|i| 3 + (i * 7 + i / 5) % 36).collect())
}

/// The bytes held after the prompt and after each further token.
fn bytes_by_step(kind: LayerKind, prompt: usize) -> Vec<usize> {
    let (model, text) = long(kind);
    let mut cache = model.cache(1);
    assert_eq!((cache.bytes(), cache.is_empty()), (0, true));
    let mut hooks = HookSet::new();
    let _resid = model.extend(&mut cache, &batch(&[text[..prompt].to_vec()]), &mut hooks).unwrap();
    let mut bytes = vec![cache.bytes()];
    for id in &text[prompt..] {
        let _resid = model.extend(&mut cache, &batch(&[vec![*id]]), &mut hooks).unwrap();
        bytes.push(cache.bytes());
    }
    bytes
}

/// Two layers, keys and values, two heads of eight numbers of four bytes.
const BYTES_A_COLUMN: usize = 2 * 2 * 2 * 8 * 4;

#[test]
fn sliding_layers_stop_growing() {
    let window = small().sliding_window;
    for prompt in [1, 2, window, 37, 300] {
        let bytes = bytes_by_step(LayerKind::Sliding, prompt);
        let settled = &bytes[bytes.len() / 2..];
        assert!(settled.iter().all(|b| b == &settled[0]), "prompt of {prompt}: {bytes:?}");
        // The window, and as much again so that the keys need not move at every step.
        let least = window * BYTES_A_COLUMN;
        assert!((least..=2 * least).contains(&settled[0]), "prompt of {prompt}: {} bytes", settled[0]);
    }
}

#[test]
fn global_layers_keep_every_column() {
    let bytes = bytes_by_step(LayerKind::Global, 1);
    assert!(bytes.is_sorted());
    for (i, bytes) in bytes.iter().enumerate() {
        assert!(*bytes >= (i + 1) * BYTES_A_COLUMN, "{bytes} bytes for {} columns", i + 1);
    }
}

#[test]
fn a_text_much_longer_than_the_window_is_the_whole_run() {
    for kind in [LayerKind::Sliding, LayerKind::Global] {
        let (model, text) = long(kind);
        let whole = Whole::of(model, batch(&[text[..150].to_vec()]));
        for (first, then) in [(1, 1), (40, 1), (3, 7), (10, 50)] {
            whole.assert_same_run(&format!("{kind:?}"), &whole.sizes(first, &[then]));
        }
    }
}

#[test]
fn tokens_that_do_not_go_on_where_the_cache_ends_are_refused() {
    let (one, other) = (model("mini-2b"), model("mini-2b"));
    let mut none = HookSet::new();
    let text = batch(&[vec![2, 5, 6], vec![2, 7, 8]]);

    let mut cache = one.cache(2);
    refused(other.extend(&mut cache, &text, &mut none), &["the cache", "another model"]);
    let twin = with_config(&one, one.config().clone());
    refused(twin.extend(&mut cache, &text, &mut none), &["the cache", "another model"]);
    refused(one.extend(&mut cache, &batch(&[vec![2, 5]]), &mut none), &["the cache", "2 sequences", "1"]);
    let packed = TokenBatch::packed(&[vec![2, 5], vec![2, 7], vec![2, 9]], 3, 0, &SPECIAL).unwrap();
    refused(one.extend(&mut cache, &packed, &mut none), &["the cache", "documents"]);
    refused(one.extend(&mut cache, &batch(&[vec![400], vec![5]]), &mut none), &["400", "320"]);
    assert!(cache.is_empty());

    // The context has 64 positions, and the cache may fill it to the last.
    let _resid = one.extend(&mut cache, &text, &mut none).unwrap();
    let rest = |n: usize| batch(&[vec![5; n], vec![6; n]]);
    refused(one.extend(&mut cache, &rest(62), &mut none), &["the cache", "3 positions", "62", "64"]);
    let _resid = one.extend(&mut cache, &rest(61), &mut none).unwrap();
    let full = refused(one.extend(&mut cache, &rest(1), &mut none), &["the cache", "64 positions", "1 more"]);
    assert!(matches!(one.extend(&mut cache, &rest(1), &mut none), Err(ModelError::Cache(_))), "{full}");
    assert_eq!((cache.len(), cache.batch()), (64, 2));
}

#[test]
fn a_site_that_the_model_does_not_have_is_refused_before_anything_runs() {
    let model = model("mini-2b");
    let mut cache = model.cache(1);
    let mut fired = false;
    let mut hooks = HookSet::new();
    hooks.on(
        HookPoint::Embed,
        observe(|_, _| {
            fired = true;
            Ok(())
        }),
    );
    hooks.on(HookPoint::MlpOut(LayerIdx(4)), edit::zero());
    refused(model.extend(&mut cache, &batch(&[vec![2, 5]]), &mut hooks), &["`blocks.4.hook_mlp_out`"]);
    drop(hooks);
    assert!(!fired && cache.is_empty());
}

/// A hook that stops the run.
fn failing() -> impl Hook {
    observe(|_, _| Err("a reason of its own".into()))
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn after_an_error_the_cache_is_as_it_was(
        // In a context of 64, windows of 8, 5 and 6 move their buffers several times.
        case in prop::sample::select(&["mini-2b", "mini-9b", "mini-padded"][..]),
        first in 1i64..12,
        then in prop::collection::vec(1i64..7, 1..5),
        chosen in any::<prop::sample::Index>(),
        failures in prop::collection::vec(any::<bool>(), 1..7),
    ) {
        let whole = Whole::golden(case);
        // Final sites lie behind what `extend` runs.
        let sites: Vec<_> = whole.sites().filter(|site| !site.is_final()).collect();
        let site = sites[chosen.index(sites.len())];
        let sizes = whole.sizes(first, &then);
        let never = whole.in_pieces(&sizes, &mut HookSet::new());

        let mut cache = whole.model.cache(whole.tokens.batch() as usize);
        let mut parts = Vec::new();
        for (size, fails) in sizes.iter().zip(failures.iter().cycle()) {
            let tokens = whole.next(&cache, *size);
            for _ in 0..2 * usize::from(*fails) {
                let mut hooks = HookSet::new();
                hooks.on(site, failing());
                let before = cache.len();
                let failed = whole.model.extend(&mut cache, &tokens, &mut hooks);
                refused(failed, &[&site.to_string(), "of its own"]);
                prop_assert_eq!(cache.len(), before);
            }
            parts.push(step(&whole.model, &mut cache, &tokens, &mut HookSet::new()));
        }
        // The same keys in the same places: not a bit differs.
        assert_same(&format!("{case} in {sizes:?} after {site}"), &Tensor::cat(&parts, 1), &never);
    }

    #[test]
    fn after_an_error_shorter_pieces_may_follow(
        tried in 1i64..40,
        at in 0i64..40,
        chosen in any::<prop::sample::Index>(),
    ) {
        // A long piece moves the buffers further than the short ones that follow would have.
        let (model, text) = long(LayerKind::Sliding);
        let whole = Whole::of(model, batch(&[text[..80].to_vec()]));
        let sites: Vec<_> = whole.sites().filter(|site| !site.is_final()).collect();
        let mut cache = whole.model.cache(1);
        let mut parts = Vec::new();
        while cache.len() < 80 {
            if cache.len() == at {
                let mut hooks = HookSet::new();
                hooks.on(sites[chosen.index(sites.len())], failing());
                let long = whole.next(&cache, tried);
                refused(whole.model.extend(&mut cache, &long, &mut hooks), &["of its own"]);
            }
            let one = whole.next(&cache, 1);
            parts.push(step(&whole.model, &mut cache, &one, &mut HookSet::new()));
        }
        assert_close("logits", &Tensor::cat(&parts, 1), &whole.logits, OTHER_ORDER);
    }
}

#[test]
fn looking_at_every_site_changes_no_bit() {
    for case in CASES {
        let whole = Whole::golden(case);
        let sizes = whole.sizes(3, &[1, 4]);
        let mut acts = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(whole.sites(), &mut acts);
        let seen = whole.in_pieces(&sizes, &mut hooks);
        assert_same(case, &seen, &whole.in_pieces(&sizes, &mut HookSet::new()));
    }
}

#[test]
fn gradients_stay_off() {
    let model = Gemma2::init(small(), 3).unwrap();
    let mut cache = model.cache(1);
    let resid = model.extend(&mut cache, &batch(&[vec![2, 5]]), &mut HookSet::new()).unwrap();
    assert!(!resid.requires_grad());
    // And the caller's mode is as it was.
    assert!(model.forward(&batch(&[vec![2, 5]]), &mut HookSet::new()).unwrap().requires_grad());
}
