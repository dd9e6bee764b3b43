//! The scalar that activations are divided by.

use activations::{Cursor, Moments, Normalisation, Scale, Site, Source as _, Store};
use tch::{Kind, Tensor};

use crate::common::{Numbered, all, counted, harvested, live, options, refused, site, toy};

/// Float32 rows, float64 sums.
const ROUNDING: f64 = 1e-6;

fn norms(rows: &Tensor) -> Tensor {
    rows.to_kind(Kind::Double).square().sum_dim_intlist(1, false, Kind::Double).sqrt()
}

#[test]
fn each_normalisation_makes_what_it_says() {
    let rows = testkit::normal(&[3_000, 7], 3) * 5.0 + 2.0;
    let sums = Moments::of(&rows).unwrap();
    let at = Site { hook: site("hook_embed"), width: 7 };
    let scaled = |n: Normalisation| Scale::new(at, n, &sums).unwrap().apply(&rows).unwrap();
    let mean = |t: Tensor| t.mean(Kind::Double).double_value(&[]);
    let square = mean(norms(&scaled(Normalisation::UnitMeanSquare)).square());
    assert!((square - 1.0).abs() < ROUNDING, "{square}");
    let norm = mean(norms(&scaled(Normalisation::MeanNormSqrtD)));
    assert!((norm - 7_f64.sqrt()).abs() < ROUNDING, "{norm}");
    assert!(scaled(Normalisation::None).equal(&rows));
    let text = serde_json::to_string(&Scale::new(at, Normalisation::MeanNormSqrtD, &sums).unwrap()).unwrap();
    assert!(text.contains("mean_norm_sqrt_d") && text.contains("hook_embed"), "{text}");
}

#[test]
fn an_estimate_of_everything_is_the_manifests() {
    let model = toy();
    let mut source = live(&model, 9, Some(1));
    let store = Store::memory().unwrap();
    let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options(16)).unwrap();
    let estimated = Moments::estimate(&mut source, u64::MAX).unwrap();
    for ((scale, sums), site) in
        manifest.scales(Normalisation::UnitMeanSquare).unwrap().iter().zip(estimated).zip(source.sites())
    {
        let estimate = Scale::new(*site, Normalisation::UnitMeanSquare, &sums).unwrap();
        assert_eq!((estimate.site, estimate.rows), (scale.site, scale.rows));
        assert!((estimate.divisor / scale.divisor - 1.0).abs() < 1e-14);
    }
    assert_eq!(source.cursor(), Cursor::default());
}

#[test]
fn an_estimate_takes_whole_chunks_and_leaves_the_source_where_it_was() {
    let model = toy();
    let mut source = live(&model, 9, None);
    source.seek(Cursor { chunk: 1, row: 2 }).unwrap();
    let sums = Moments::estimate(&mut source, 5).unwrap();
    let sizes = counted(9);
    let mut taken = sizes[1] - 2;
    for size in &sizes[2..] {
        if taken >= 5 {
            break;
        }
        taken += size;
    }
    assert_eq!(sums[0].rows as i64, taken);
    assert_eq!(source.cursor(), Cursor { chunk: 1, row: 2 });
    let mut rest = live(&model, 9, Some(1));
    rest.seek(Cursor { chunk: 1, row: 2 }).unwrap();
    let want = norms(&all(&mut rest)[1].narrow(0, 0, taken)).sum(Kind::Double).double_value(&[]);
    assert!((sums[1].norm / want - 1.0).abs() < 1e-14);
}

#[test]
fn what_has_no_scale_is_refused() {
    let at = Site { hook: site("hook_embed"), width: 7 };
    for sums in
        [Moments::default(), Moments::of(&Tensor::zeros([3, 7], (Kind::Float, tch::Device::Cpu))).unwrap()]
    {
        refused(Scale::new(at, Normalisation::UnitMeanSquare, &sums), &["`hook_embed`", "rows"]);
    }
    refused(Moments::estimate(&mut Numbered::new(&[]), 5), &["nothing to stream"]);
}
