//! The activation of a site as an SAE reads it.

use hooks::{HookPoint, LayerIdx};
use sae_core::as_input;
use tch::Kind;
use testkit::{assert_same, normal};

const L: LayerIdx = LayerIdx(1);

#[test]
fn heads_lie_side_by_side() {
    let z = normal(&[2, 3, 4, 5], 1);
    for site in [HookPoint::AttnZ(L), HookPoint::AttnQ(L), HookPoint::AttnV(L), HookPoint::AttnResult(L)] {
        let x = as_input(site, &z).unwrap();
        assert_eq!(x.size(), [2, 3, 20], "{site}");
        for head in 0..4 {
            assert_same(&site.to_string(), &x.narrow(2, head * 5, 5), &z.select(2, head));
        }
    }
}

#[test]
fn other_sites_stay_as_they_are() {
    let x = normal(&[2, 3, 7], 2);
    for site in [HookPoint::Embed, HookPoint::ResidPost(L), HookPoint::MlpOut(L), HookPoint::Ln2Normalized(L)]
    {
        assert_same(&site.to_string(), &as_input(site, &x).unwrap(), &x);
    }
    // Attention patterns have no axis of heads behind the positions.
    let pattern = normal(&[2, 4, 3, 3], 3);
    assert_same("pattern", &as_input(HookPoint::AttnPattern(L), &pattern).unwrap(), &pattern);
}

#[test]
fn half_precision_becomes_float32() {
    let x = normal(&[2, 3, 4, 5], 4);
    for kind in [Kind::BFloat16, Kind::Half, Kind::Double] {
        let read = as_input(HookPoint::AttnZ(L), &x.to_kind(kind)).unwrap();
        assert_same("values", &read, &x.to_kind(kind).to_kind(Kind::Float).flatten(2, 3));
    }
}
