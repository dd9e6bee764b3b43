//! What a site's three runs share is run once.

use eval::{EvalOptions, Evaluation};
use hooks::{HookPoint, HookedModel as _, LayerIdx};
use testkit::ToyModel;

use crate::{
    common::{gemma, random_sae, tokens, width},
    counting::Counting,
};

#[test]
fn blocks_below_the_site_run_once() {
    let model = Counting::new(gemma());
    let n_layers = model.dims().n_layers;
    let [l0, l2, l3] = [0, 2, 3].map(LayerIdx);
    for (site, want) in [
        // Where the site is the stream itself, the runs part behind it.
        (HookPoint::Embed, [3, 3, 3, 3]),
        (HookPoint::ResidPre(l0), [3, 3, 3, 3]),
        (HookPoint::ResidPre(l2), [1, 1, 3, 3]),
        (HookPoint::ResidPost(l2), [1, 1, 1, 3]),
        (HookPoint::ResidPost(l3), [1, 1, 1, 1]),
        // Where it lies in a block, the clean run goes on behind it and the others begin inside it.
        (HookPoint::MlpOut(l0), [3, 3, 3, 3]),
        (HookPoint::AttnZ(l2), [1, 1, 3, 3]),
        (HookPoint::ResidMid(l3), [1, 1, 1, 3]),
    ] {
        let d_in = width(model.dims(), site);
        let sae = random_sae(d_in, 16, d_in, 1);
        let mut evaluation = Evaluation::new(&model, site, &sae, EvalOptions::default()).unwrap();
        assert_eq!(model.take().embed, 0, "{site}: nothing runs before a batch comes");
        for batches in 1..=2 {
            evaluation.add(&tokens()).unwrap();
            let runs = model.take();
            assert_eq!(runs.embed, 1, "{site}, batch {batches}");
            assert_eq!(runs.blocks, want, "{site}, batch {batches}");
            // One position less than there are: the last predicts nothing.
            assert_eq!(runs.norms, [19, 19, 19], "{site}, batch {batches}");
        }
        assert_eq!(n_layers, want.len());
    }
}

/// DESIGN.md, section C: `blocks.20.hook_resid_post` of 26 layers takes 21 + 3 · 5 block passes for one SAE, not 78.
#[test]
fn the_designs_example() {
    let model = Counting::new(ToyModel::new(26, 4, 320, 1));
    let sae = random_sae(4, 16, 4, 1);
    let site = HookPoint::ResidPost(LayerIdx(20));
    let mut evaluation = Evaluation::new(&model, site, &sae, EvalOptions::default()).unwrap();
    evaluation.add(&tokens()).unwrap();
    assert_eq!(model.take().blocks.iter().sum::<usize>(), 36);
}
