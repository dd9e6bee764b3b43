//! delphi's latent cache: delphi's own files are read as delphi reads them, and what we write is what delphi writes.

use std::path::{Path, PathBuf};

use proptest::{collection::vec, prelude::*};
use sae_core::{
    SparseFeatures,
    formats::delphi::{self, CacheInfo},
};
use tch::{Kind, Tensor};
use tch_ext::{Member, SafetensorsFile, Unsigned, write_safetensors};
use testkit::{Golden, assert_same, fixture, normal};

use crate::{
    common::{cases, matrix, refused},
    sparse_views::same_features,
};

const CASES: [(&str, &str, i64, i64); 3] = [
    ("delphi-cache", "layers.5", 32, 3),
    ("delphi-cache", "layers.7.mlp", 32, 3),
    ("delphi-cache-u32", "layers.5", 70_000, 1),
];

fn golden(case: &str, module: &str) -> (PathBuf, Golden) {
    let folder = fixture(&format!("sae/formats/{case}/latents/{module}"));
    (folder, Golden::open(&format!("sae/formats/{case}/expected.safetensors")))
}

fn split_names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| n.ends_with(".safetensors")).collect();
    names.sort();
    names
}

#[test]
fn what_delphi_wrote_is_read_as_delphi_reads_it() {
    for (case, module, d_sae, _) in CASES {
        let (folder, mut want) = golden(case, module);
        let cache = delphi::read(&folder).unwrap();
        let tokens = want.get("tokens");
        assert_same("tokens", &cache.tokens, &tokens);
        let (n_seq, ctx_len) = tokens.size2().unwrap();
        assert_eq!((cache.features.n_rows(), cache.features.d_sae()), (n_seq * ctx_len, d_sae));
        // delphi's entries come split by split: dense tensors have no order.
        let (at, values) =
            (want.get(&format!("{module}.locations")), want.get(&format!("{module}.activations")));
        let flat = (at.select(1, 0) * ctx_len + at.select(1, 1)) * d_sae + at.select(1, 2);
        let dense = Tensor::zeros([n_seq * ctx_len * d_sae], (Kind::Float, tch::Device::Cpu));
        let dense = dense.index_add(0, &flat, &values.to_kind(Kind::Float)).reshape([-1, d_sae]);
        assert_same("features", &cache.features.to_dense().unwrap(), &dense);
        let info = CacheInfo {
            dataset_repo: "monology/pile-uncopyrighted".to_owned(),
            batch_size: cache.info.batch_size,
            model_name: "google/gemma-2-2b".to_owned(),
            ..CacheInfo::default()
        };
        assert_eq!(cache.info, info);
    }
}

#[test]
fn what_is_written_is_what_delphi_writes() {
    for (case, module, _, splits) in CASES {
        let (folder, _) = golden(case, module);
        let cache = delphi::read(&folder).unwrap();
        let ours = tempfile::tempdir().unwrap();
        delphi::write(&cache.features, &cache.tokens, ours.path(), splits, &cache.info).unwrap();
        let text = |folder: &Path| std::fs::read_to_string(folder.join("config.json")).unwrap();
        assert_eq!(text(ours.path()), text(&folder));
        assert_eq!(split_names(ours.path()), split_names(&folder));
        for name in split_names(&folder) {
            let bytes = |folder: &Path| {
                let bytes = std::fs::read(folder.join(&name)).unwrap();
                let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
                // The order within the file follows alignment, and is nobody's promise.
                ["tokens", "locations", "activations"].map(|tensor| {
                    let info = &json[tensor];
                    let at = |i: usize| 8 + header + info["data_offsets"][i].as_u64().unwrap() as usize;
                    (info["dtype"].clone(), info["shape"].clone(), bytes[at(0)..at(1)].to_vec())
                })
            };
            assert_eq!(bytes(ours.path()), bytes(&folder), "{name}");
        }
    }
}

/// What float16 leaves of it, and delphi drops of it.
fn as_cached(features: &Tensor) -> Tensor {
    let kept = features.abs().gt(f64::from(1e-5f32)).to_kind(Kind::Float);
    (features * kept).to_kind(Kind::Half).to_kind(Kind::Float)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn what_is_written_comes_back(
        n_seq in 0i64..4, ctx_len in 1i64..5, d_sae in 1i64..9, splits in 1i64..9, values in vec((0u8..4, -9f32..9.0), 4 * 5 * 9),
    ) {
        let splits = splits.min(d_sae);
        let n = n_seq * ctx_len;
        // Of four values one is as it is, one tiny, two are zero, so that splits are empty now and then.
        let values: Vec<f32> = values.iter().map(|(on, v)| match on { 0 => *v, 1 => v * 1e-5, _ => 0.0 }).collect();
        let dense = matrix(&values[..(n * d_sae) as usize], d_sae);
        let dense = if n == 0 { dense.reshape([0, d_sae]) } else { dense };
        let tokens = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).reshape([n_seq, ctx_len]);
        let folder = tempfile::tempdir().unwrap();
        let features = SparseFeatures::from_dense(&dense).unwrap();
        let info = CacheInfo { model_name: "a \"name\"\n".to_owned(), ..CacheInfo::default() };
        delphi::write(&features, &tokens, folder.path(), splits, &info).unwrap();
        prop_assert_eq!(split_names(folder.path()).len() as i64, splits);
        let cache = delphi::read(folder.path()).unwrap();
        same_features(&cache.features, &SparseFeatures::from_dense(&as_cached(&dense)).unwrap());
        assert_same("tokens", &cache.tokens, &tokens);
        prop_assert_eq!(&cache.info, &info);
        // Again over itself.
        delphi::write(&cache.features, &tokens, folder.path(), splits, &cache.info).unwrap();
        same_features(&delphi::read(folder.path()).unwrap().features, &cache.features);
    }
}

/// Few entries in a wide place: locations of one row and one position, `d_sae` latents.
fn spread(d_sae: i64, latents: &[i64], n_rows: usize) -> SparseFeatures {
    let indptr: Vec<i64> = (0..=n_rows).map(|i| if i == n_rows { latents.len() as i64 } else { 0 }).collect();
    let values = vec![1.0f32; latents.len()];
    let [indptr, indices] = [&indptr[..], latents].map(Tensor::from_slice::<i64>);
    SparseFeatures::new(indptr, indices, Tensor::from_slice(&values), d_sae).unwrap()
}

fn tokens(n_seq: i64, ctx_len: i64) -> Tensor {
    Tensor::zeros([n_seq, ctx_len], (Kind::Int64, tch::Device::Cpu))
}

#[test]
fn uint16_as_long_as_it_holds_every_location() {
    let dtype = |features: &SparseFeatures, tokens: &Tensor| {
        let folder = tempfile::tempdir().unwrap();
        delphi::write(features, tokens, folder.path(), 1, &CacheInfo::default()).unwrap();
        same_features(&delphi::read(folder.path()).unwrap().features, features);
        let name = format!("0_{}.safetensors", features.d_sae() - 1);
        let file = SafetensorsFile::open(&folder.path().join(name)).unwrap();
        let said = refused(file.info("locations"), &["locations"]);
        [" U16", " U32"].into_iter().find(|d| said.ends_with(d)).map(str::trim)
    };
    // By what there is, not by what could be.
    assert_eq!(dtype(&spread(1 << 20, &[7, 65_535], 1), &tokens(1, 1)), Some("U16"));
    assert_eq!(dtype(&spread(1 << 20, &[7, 65_536], 1), &tokens(1, 1)), Some("U32"));
    assert_eq!(dtype(&spread(9, &[3], 65_536), &tokens(65_536, 1)), Some("U16"));
    assert_eq!(dtype(&spread(9, &[3], 65_537), &tokens(65_537, 1)), Some("U32"));
    assert_eq!(dtype(&spread(9, &[3], 65_536), &tokens(1, 65_536)), Some("U16"));
    // delphi does not look at positions: its own would wrap here.
    assert_eq!(dtype(&spread(9, &[3], 65_537), &tokens(1, 65_537)), Some("U32"));
    assert_eq!(dtype(&spread(9, &[], 2), &tokens(1, 2)), Some("U16"));
}

#[test]
fn what_float16_does_not_hold_is_refused_and_not_infinite() {
    let folder = tempfile::tempdir().unwrap();
    let write = |value: f32| {
        let features = SparseFeatures::from_dense(&matrix(&[0.0, 1.0, 0.0, value], 2)).unwrap();
        delphi::write(&features, &tokens(1, 2), folder.path(), 2, &CacheInfo::default())
    };
    write(65504.0).unwrap();
    let cache = delphi::read(folder.path()).unwrap();
    assert_eq!(cache.features.to_dense().unwrap().double_value(&[1, 1]), 65504.0);
    for value in [65505.0, -65536.0, f32::MAX] {
        refused(write(value), &["latent 1", "row 1", "65504", &value.to_string()]);
    }
    for value in [f32::NAN, f32::INFINITY] {
        refused(write(value), &["activations", "NaN or infinite"]);
    }
}

#[test]
fn what_does_not_fit_together_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let features = SparseFeatures::from_dense(&normal(&[6, 4], 1)).unwrap();
    let write = |tokens: &Tensor, splits| {
        delphi::write(&features, tokens, folder.path(), splits, &CacheInfo::default())
    };
    refused(write(&tokens(2, 2), 1), &["6 rows", "2 · 2 tokens"]);
    refused(write(&tokens(2, 3).flatten(0, 1), 1), &["tokens", "[n_seq, ctx_len]", "[6]"]);
    refused(write(&tokens(2, 3).to_kind(Kind::Int), 1), &["tokens", "I64", "I32"]);
    for splits in [-1, 0, 5, i64::MAX] {
        refused(write(&tokens(2, 3), splits), &["4 latents", &format!("{splits} splits")]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    write(&tokens(2, 3), 2).unwrap();
    refused(write(&tokens(2, 3), 3), &["0_1.safetensors", "delphi would take"]);
}

/// A sound cache of two splits, with something done to it.
fn damaged(damage: impl Fn(&Path)) -> sae_core::Result<delphi::Cache> {
    let folder = tempfile::tempdir().unwrap();
    let features = SparseFeatures::from_dense(&normal(&[6, 4], 1)).unwrap();
    delphi::write(&features, &tokens(2, 3), folder.path(), 2, &CacheInfo::default()).unwrap();
    damage(folder.path());
    delphi::read(folder.path())
}

#[test]
fn folders_that_are_no_cache() {
    damaged(|_| ()).unwrap();
    let rename = |from: &'static str, to: &'static str| {
        move |f: &Path| std::fs::rename(f.join(from), f.join(to)).unwrap()
    };
    refused(damaged(rename("config.json", "cfg.json")), &["config.json"]);
    refused(damaged(|f| std::fs::write(f.join("config.json"), "[]").unwrap()), &["config.json", "object"]);
    refused(
        damaged(|f| std::fs::write(f.join("config.json"), r#"{"cache_ctx_len": 4}"#).unwrap()),
        &["cache_ctx_len", "3"],
    );
    refused(damaged(rename("2_3.safetensors", "3_4.safetensors")), &["gap or overlap", "latent 3, not 2"]);
    refused(damaged(rename("2_3.safetensors", "1_3.safetensors")), &["gap or overlap", "latent 1, not 2"]);
    refused(damaged(rename("0_1.safetensors", "1_1.safetensors")), &["gap or overlap", "latent 1, not 0"]);
    for name in
        ["module.safetensors", "2-3.safetensors", "3_2.safetensors", "2_3_4.safetensors", "-2_3.safetensors"]
    {
        let rename = |f: &Path| std::fs::rename(f.join("2_3.safetensors"), f.join(name)).unwrap();
        refused(damaged(rename), &[name, "START_END"]);
    }
    let last = "2_9223372036854775807.safetensors";
    refused(damaged(rename("2_3.safetensors", last)), &["no split's name"]);
    // An enormous width is no reason to allocate anything.
    damaged(rename("2_3.safetensors", "2_9223372036854775000.safetensors")).unwrap();
    let empty = |f: &Path| {
        ["0_1", "2_3"].iter().for_each(|n| std::fs::remove_file(f.join(format!("{n}.safetensors"))).unwrap())
    };
    refused(damaged(empty), &["no split"]);
    for cut in [0, 7, 40, 200, 300] {
        let cut = |f: &Path| {
            let path = f.join("2_3.safetensors");
            std::fs::write(&path, &std::fs::read(&path).unwrap()[..cut]).unwrap();
        };
        refused(damaged(cut), &["2_3.safetensors"]);
    }
    let old = r#"{"dataset_row": "raw_content", "something_new": 1}"#;
    let cache = damaged(|f| std::fs::write(f.join("config.json"), old).unwrap()).unwrap();
    assert_eq!(cache.info.dataset_column, "raw_content");
}

fn with(parts: &[(&str, Member<'_>)]) -> sae_core::Result<delphi::Cache> {
    damaged(|f| {
        let path = f.join("2_3.safetensors");
        write_safetensors(&path, parts.iter().copied(), Default::default()).unwrap();
    })
}

fn all(locations: &Tensor, activations: &Tensor, tokens: &Tensor) -> sae_core::Result<delphi::Cache> {
    let locations = Member::Unsigned(locations, Unsigned::U16);
    with(&[("locations", locations), ("activations", activations.into()), ("tokens", tokens.into())])
}

#[test]
fn splits_whose_tensors_are_no_caches() {
    let of = |t: &[i64]| Tensor::from_slice(t);
    let locations = of(&[0, 1, 1, 1, 2, 0]).reshape([2, 3]);
    let activations = Tensor::from_slice(&[1f32, 2.0]).to_kind(Kind::Half);
    let both = tokens(2, 3);
    let cache = all(&locations, &activations, &both).unwrap();
    assert_eq!(cache.features.latents(2..4).unwrap().to_dense().unwrap().double_value(&[1, 1]), 1.0);
    // Any order will do, once.
    all(&locations.flip([0]), &activations, &both).unwrap();
    refused(
        all(&of(&[0, 1, 1, 0, 1, 1]).reshape([2, 3]), &activations, &both),
        &["2_3.safetensors", "ascend"],
    );
    for place in [[2, 0, 0], [0, 3, 0], [0, 0, 2]] {
        let wrong = of(&[[0, 0, 0], place].concat()).reshape([2, 3]);
        refused(
            all(&wrong, &activations, &both),
            &["2_3.safetensors", &format!("{place:?}"), "is not among"],
        );
    }
    refused(all(&locations, &activations.get(0).unsqueeze(0), &both), &["locations", "[1, 3]", "[2, 3]"]);
    refused(all(&locations.tr(), &activations, &both), &["locations", "[2, 3]", "[3, 2]"]);
    refused(all(&locations, &activations.to_kind(Kind::Float), &both), &["activations", "F16"]);
    for (value, problem) in [(0.0, "zero"), (f64::INFINITY, "NaN or infinite"), (f64::NAN, "NaN or infinite")]
    {
        let damaged = activations.shallow_clone().full_like(value);
        refused(all(&locations, &damaged, &both), &["2_3.safetensors", problem]);
    }
    refused(all(&locations, &activations, &(&both + 1)), &["tokens of `2_3.safetensors`", "first split"]);
    refused(all(&locations, &activations, &tokens(3, 3)), &["tokens of `2_3.safetensors`", "first split"]);
    refused(all(&locations, &activations, &both.flatten(0, 1)), &["tokens", "[n_seq, ctx_len]"]);
    refused(all(&locations, &activations, &both.to_kind(Kind::Float)), &["tokens", "I64", "F32"]);
    let (l, a, t) =
        (Member::Unsigned(&locations, Unsigned::U32), Member::Tensor(&activations), Member::Tensor(&both));
    with(&[("locations", l), ("activations", a), ("tokens", t)]).unwrap();
    refused(with(&[("locations", l), ("activations", a)]), &["`tokens` is missing"]);
    refused(with(&[("locations", l), ("tokens", t)]), &["`activations` is missing"]);
    refused(
        with(&[("locations", l), ("activations", a), ("tokens", t), ("x", t)]),
        &["unexpected tensor", "`x`"],
    );
}
