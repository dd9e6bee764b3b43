//! Splices that do not fit: the error names the site, the latent or both widths.

use hooks::{HookPoint, HookSet, HookedModelExt as _, LayerIdx, TokenBatch};
use sae_core::{FeatureId, SparseAutoencoder, Splice};
use tch::{Device, Kind, Tensor};
use testkit::ToyModel;

use crate::common::{random_sae, refused};

const SITE: HookPoint = HookPoint::ResidPost(LayerIdx(1));

fn run(splice: Splice<'_>) -> hooks::Result<Tensor> {
    let mut hooks = HookSet::new();
    hooks.on(SITE, splice);
    let tokens = TokenBatch::new(&[vec![2, 5, 9]], &[2]).unwrap();
    ToyModel::new(2, 6, 30, 1).run(&tokens, hooks)
}

#[test]
fn a_latent_that_is_not_there() {
    let sae = random_sae(6, 20, 6, 1);
    Splice::reconstruction(&sae).clamp(FeatureId(19), 1.0).unwrap();
    for feature in [20, 21, usize::MAX, 1 << 63] {
        let clamp = Splice::reconstruction(&sae).clamp(FeatureId(feature), 1.0);
        refused(clamp, &[&format!("latent {feature} is out of range"), "20"]);
    }
}

#[test]
fn an_sae_of_another_width() {
    for sae in [random_sae(5, 20, 5, 1), random_sae(7, 20, 7, 1)] {
        let width = format!("d_in = {}", sae.d_in());
        let at_fault = ["`blocks.1.hook_resid_post`", &width, "[1, 3, 6]"];
        refused(run(Splice::reconstruction(&sae)), &at_fault);
        let clamp = || Splice::reconstruction(&sae).clamp(FeatureId(1), 0.0).unwrap();
        refused(run(clamp()), &at_fault);
        refused(run(clamp().keep_error()), &at_fault);
        // Nothing is decoded here, and still the SAE is not one of this site.
        refused(run(Splice::reconstruction(&sae).keep_error()), &at_fault);
    }
}

#[test]
fn a_transcoder() {
    let sae = random_sae(6, 20, 8, 1);
    let at_fault = ["`blocks.1.hook_resid_post`", "transcoder", "another site"];
    refused(run(Splice::reconstruction(&sae)), &at_fault);
    refused(run(Splice::reconstruction(&sae).keep_error()), &at_fault);
    refused(run(Splice::reconstruction(&sae).clamp(FeatureId(1), 0.0).unwrap()), &at_fault);
}

#[test]
fn positions_of_another_batch() {
    let sae = random_sae(6, 20, 6, 1);
    for size in [[1, 4], [2, 3]] {
        let mask = Tensor::ones(size, (Kind::Bool, Device::Cpu));
        refused(
            run(Splice::reconstruction(&sae).at(mask)),
            &["`blocks.1.hook_resid_post`", &format!("{size:?}")],
        );
    }
}
