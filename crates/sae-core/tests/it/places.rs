//! Where a file of Gemma Scope stands says what its SAE reads.

use hooks::{HookPoint, HookSet, HookedModelExt as _, LayerIdx, TokenBatch};
use proptest::prelude::*;
use sae_core::{About, FeatureId, Format, Opened, Place, Sae, SaeExt as _, SparseAutoencoder as _, Splice};
use testkit::{ToyModel, assert_close, normal};

use crate::{
    common::{ROUNDING, cases, random_sae, refused},
    reference::{Reference, assert_latents, plain, rows, table},
};

const LAYER: LayerIdx = LayerIdx(3);

fn opened(sae: Sae) -> Opened {
    Opened { sae, about: About::new(Format::GemmaScope) }
}

#[test]
fn paths() {
    let residual = Some(Place::Residual(LAYER));
    for (path, want) in [
        ("gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71/params.npz", residual),
        ("/home/me/google/gemma-scope-9b-it-res/layer_3/width_131k/canonical/params.npz", residual),
        (r"C:\models\gemma-scope-2b-pt-res\layer_3\width_16k\params.npz", residual),
        ("gemma-scope-2b-pt-res/layer_3", residual),
        ("resid_post/layer_3/params.npz", residual),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/params.npz", Some(Place::Attention(LAYER))),
        ("attn_z/layer_3/params.npz", Some(Place::Attention(LAYER))),
        ("gemma-scope-2b-pt-mlp/layer_3/params.npz", Some(Place::Mlp(LAYER))),
        ("mlp_out/layer_3/params.npz", Some(Place::Mlp(LAYER))),
        ("gemma-scope-2b-pt-transcoders/layer_3/params.npz", Some(Place::Transcoder(LAYER))),
        ("transcoder/layer_3/params.npz", Some(Place::Transcoder(LAYER))),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz", Some(Place::Embedding)),
        // The last of several is the nearest to the file.
        ("gemma-scope-2b-pt-mlp/layer_9/gemma-scope-2b-pt-res/layer_3/params.npz", residual),
        ("layer_3/params.npz", None),
        ("params.npz", None),
        ("", None),
        ("gemma-scope-2b-pt-res/layer_/params.npz", None),
        ("gemma-scope-2b-pt-res/layer_x/params.npz", None),
        ("gemma-scope-2b-pt-res/layer_-3/params.npz", None),
        ("gemma-scope-2b-pt-res/layer_99999999999999999999/params.npz", None),
        ("gemma-scope-2b-pt-res/blocks/layer_3/params.npz", None),
        ("gemma-scope-2b-pt-crosscoder/layer_3/params.npz", None),
        ("embedding/params.npz", None),
        ("gemma-scope-2b-pt-mlp/embedding/params.npz", None),
        ("res/layer_3/params.npz", None),
    ] {
        assert_eq!(Place::from_path(path), want, "{path}");
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_path_panics(path in r"[-/\\a-z_0-9é.]{0,60}") {
        let _ = Place::from_path(&path);
    }

    #[test]
    fn any_layer_is_read(layer in 0usize..1000, before in "[a-z/]{0,12}") {
        let path = format!("{before}gemma-scope-2b-pt-att/layer_{layer}/width_16k");
        prop_assert_eq!(Place::from_path(&path), Some(Place::Attention(LayerIdx(layer))));
    }
}

#[test]
fn sites() {
    for (place, site, out) in [
        (Place::Residual(LAYER), HookPoint::ResidPost(LAYER), HookPoint::ResidPost(LAYER)),
        (Place::Attention(LAYER), HookPoint::AttnZ(LAYER), HookPoint::AttnZ(LAYER)),
        (Place::Mlp(LAYER), HookPoint::MlpOut(LAYER), HookPoint::MlpOut(LAYER)),
        (Place::Transcoder(LAYER), HookPoint::Ln2Normalized(LAYER), HookPoint::MlpOut(LAYER)),
        (Place::Embedding, HookPoint::Embed, HookPoint::Embed),
    ] {
        assert_eq!((place.site(), place.site_out()), (site, out), "{place:?}");
        let there = opened(random_sae(6, 20, 6, 1)).at(place).unwrap();
        assert_eq!((there.about.site, there.about.site_out), (Some(site), Some(out)), "{place:?}");
        assert_eq!(there.sae.is_transcoder(), matches!(place, Place::Transcoder(_)), "{place:?}");
    }
}

/// A transcoder is as wide as an SAE, and computes as one does; only its output stands for something else.
#[test]
fn a_transcoder_of_equal_widths() {
    let x = normal(&[5, 6], 2);
    let want = random_sae(6, 20, 6, 1).reconstruct(&x).unwrap();
    let there = opened(random_sae(6, 20, 6, 1)).at(Place::Transcoder(LAYER)).unwrap();
    assert_eq!(there.sae.architecture(), "jumprelu_transcoder");
    assert!(there.sae.reconstruct(&x).unwrap().equal(&want));
}

#[test]
fn a_transcoder_is_no_splice() {
    let there = opened(random_sae(6, 20, 6, 1)).at(Place::Transcoder(LAYER)).unwrap();
    let skip = Sae::new(sae_core::SaeParts {
        transcoder: true,
        w_skip: Some(normal(&[6, 6], 3)),
        ..plain("relu", [6, 20, 6], 4)
    });
    let site = HookPoint::ResidPost(LayerIdx(1));
    let tokens = TokenBatch::new(&[vec![2, 5, 9]], &[2]).unwrap();
    for sae in [&there.sae, &skip.unwrap()] {
        for splice in [
            Splice::reconstruction(sae),
            Splice::reconstruction(sae).keep_error(),
            Splice::reconstruction(sae).clamp(FeatureId(1), 2.0).unwrap(),
            Splice::reconstruction(sae).clamp(FeatureId(1), 2.0).unwrap().keep_error(),
        ] {
            let mut hooks = HookSet::new();
            hooks.on(site, splice);
            let at_fault = ["`blocks.1.hook_resid_post`", "a transcoder is no splice"];
            refused(ToyModel::new(2, 6, 30, 1).run(&tokens, hooks), &at_fault);
        }
    }
}

/// The embedding's SAE was trained on rows of the table, and `hook_embed` holds `√d_model` times as much.
#[test]
fn the_embedding() {
    for d_model in [1, 4, 6] {
        let root = (d_model as f64).sqrt();
        let parts = || plain("jumprelu", [d_model, 20, d_model], 5);
        let raw = Reference::of(&parts());
        let there = opened(Sae::new(parts()).unwrap()).at(Place::Embedding).unwrap();
        let x = normal(&[9, d_model], 6) * 1.7;
        let embedded = &x * root;
        let want: Vec<_> = rows(&x).iter().map(|x| raw.encode(x)).collect();
        assert_latents("latents", &there.sae.encode(&embedded).unwrap(), &want, ROUNDING);
        let out: Vec<_> = rows(&x).iter().map(|x| raw.output(x)).collect();
        let want = table(&out, d_model as usize) * root;
        assert_close("output", &there.sae.reconstruct(&embedded).unwrap(), &want, ROUNDING);
    }
}

#[test]
fn widths_that_its_place_contradicts() {
    for place in [Place::Residual(LAYER), Place::Attention(LAYER), Place::Mlp(LAYER), Place::Embedding] {
        refused(opened(random_sae(6, 20, 8, 1)).at(place), &["d_in = 6, d_out = 8", "its path says"]);
    }
    let there = opened(random_sae(6, 20, 8, 1)).at(Place::Transcoder(LAYER)).unwrap();
    assert_eq!((there.sae.d_in(), there.sae.d_out()), (6, 8));
}
