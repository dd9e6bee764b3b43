//! What runs share is run once.

use eval::{EvalOptions, Judged};
use hooks::{HookPoint, HookedModel as _, LayerIdx};
use testkit::ToyModel;

use crate::{
    common::{gemma, random_sae, suite, tokens, width},
    counting::Counting,
};

/// Losses that count in `fixtures/eval/tokens.json`.
const SCORED: i64 = 208;

#[test]
fn blocks_below_the_site_run_once() {
    let model = Counting::new(gemma());
    let n_layers = model.dims().n_layers;
    let [l0, l2, l3] = [0, 2, 3].map(LayerIdx);
    for (site, want) in [
        // The clean run, and three that branch off: zero, the mean, the reconstruction.
        (HookPoint::Embed, [4, 4, 4, 4]),
        (HookPoint::ResidPre(l0), [4, 4, 4, 4]),
        (HookPoint::ResidPre(l2), [1, 1, 4, 4]),
        (HookPoint::ResidPost(l2), [1, 1, 1, 4]),
        (HookPoint::ResidPost(l3), [1, 1, 1, 1]),
        // Where it lies in a block, the clean run goes on behind it and the others begin inside it.
        (HookPoint::MlpOut(l0), [4, 4, 4, 4]),
        (HookPoint::AttnZ(l2), [1, 1, 4, 4]),
        (HookPoint::ResidMid(l3), [1, 1, 1, 4]),
    ] {
        let d_in = width(model.dims(), site);
        let sae = random_sae(d_in, 16, d_in, 1);
        let judged = [Judged::new("sae", site, &sae)];
        let mut suite = suite(&model, &judged, &[tokens()], EvalOptions::default());
        // The pass for the means runs no deeper than it must, and makes no logits.
        let means = model.take();
        let needed = site.blocks_needed(n_layers);
        assert_eq!((means.embed, means.norms, means.slices), (1, vec![], vec![]), "{site}");
        assert!(means.blocks.iter().enumerate().all(|(l, n)| *n == usize::from(l < needed)), "{site}");
        for batches in 1..=2 {
            suite.add(&tokens(), None).unwrap();
            let runs = model.take();
            assert_eq!(runs.embed, 1, "{site}, batch {batches}");
            assert_eq!(runs.blocks, want, "{site}, batch {batches}");
            // Only where losses count, all four side by side.
            assert_eq!(runs.norms, [4 * SCORED], "{site}, batch {batches}");
        }
        assert_eq!(n_layers, want.len());
    }
}

/// `blocks.20.hook_resid_post` of 26 layers: 26 for the clean run and 5 for each of zero, the mean and the reconstruction.
#[test]
fn the_designs_example() {
    let model = Counting::new(ToyModel::new(26, 4, 320, 1));
    let sae = random_sae(4, 16, 4, 1);
    let judged = [Judged::new("sae", HookPoint::ResidPost(LayerIdx(20)), &sae)];
    let mut suite = suite(&model, &judged, &[tokens()], EvalOptions::default());
    model.take();
    suite.add(&tokens(), None).unwrap();
    assert_eq!(model.take().blocks.iter().sum::<usize>(), 26 + 3 * 5);
}

/// Each SAE adds the blocks behind its site, each site two ablations.
#[test]
fn saes_at_one_site_share_its_ablations() {
    let model = Counting::new(ToyModel::new(26, 4, 320, 1));
    let saes: Vec<_> = (0..5).map(|seed| random_sae(4, 16, 4, seed)).collect();
    let site = |i| HookPoint::ResidPost(LayerIdx(if i < 3 { 20 } else { 10 }));
    let judged: Vec<Judged<'_>> =
        saes.iter().enumerate().map(|(i, sae)| Judged::new(i.to_string(), site(i), sae)).collect();
    let mut suite = suite(&model, &judged, &[tokens()], EvalOptions::default());
    assert_eq!(model.take().blocks.iter().sum::<usize>(), 21, "one pass for the means of both sites");
    suite.add(&tokens(), None).unwrap();
    let runs = model.take();
    assert_eq!(runs.blocks.iter().sum::<usize>(), 26 + (2 + 3) * 5 + (2 + 2) * 15);
    // Of nine branches seven go with the clean run, the other two with it again.
    assert_eq!(runs.norms.iter().sum::<i64>(), (1 + 7 + 1 + 2) * SCORED);
}
