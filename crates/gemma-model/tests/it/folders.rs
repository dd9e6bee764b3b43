//! A folder that holds no sound model is refused, with the file and the tensor at fault.

use std::{collections::HashMap, fs, path::Path};

use gemma_model::{Gemma2, LoadOptions};
use hooks::HookedModelExt as _;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};
use testkit::{assert_same, fixture};

use crate::common::{model, refused, tokens};

const WEIGHTS: &str = "model.safetensors";

/// A copy of a small checkpoint, to be spoilt.
fn copy(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(&format!("gemma2/{case}"))).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap().to_owned();
        if name != "expected.safetensors" {
            fs::copy(&from, folder.path().join(name)).unwrap();
        }
    }
    folder
}

fn load(folder: &Path) -> gemma_model::Result<Gemma2> {
    Gemma2::load(folder, &LoadOptions::default())
}

/// Writes the weights of a checkpoint anew, after a change to the list of them.
fn rewritten(case: &str, change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> tempfile::TempDir {
    let folder = copy(case);
    let path = folder.path().join(WEIGHTS);
    let mut file = SafetensorsFile::open(&path).unwrap();
    let mut tensors: Vec<_> = file.names().into_iter().map(|n| (n.clone(), file.read(&n).unwrap())).collect();
    change(&mut tensors);
    write_safetensors(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), HashMap::new()).unwrap();
    folder
}

fn find<'t>(tensors: &'t mut [(String, Tensor)], name: &str) -> &'t mut Tensor {
    &mut tensors.iter_mut().find(|(n, _)| n == name).unwrap().1
}

/// Every name that a checkpoint of one block has, by its ending.
const NAMES: [&str; 6] = [
    "model.embed_tokens.weight",
    "model.layers.2.self_attn.k_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.1.post_feedforward_layernorm.weight",
    "model.layers.2.self_attn.o_proj.weight",
    "model.norm.weight",
];

#[test]
fn a_sound_copy_loads() {
    for case in ["mini-padded", "mini-sharded"] {
        let (copied, tokens) = (copy(case), tokens(case));
        let logits = load(copied.path()).unwrap().logits(&tokens).unwrap();
        assert_same(case, &logits, &model(case).logits(&tokens).unwrap());
    }
}

#[test]
fn a_missing_file_is_named() {
    refused(load(Path::new("no/such/folder")), &["no/such/folder", "config.json"]);
    let folder = copy("mini-padded");
    fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    refused(load(folder.path()), &[WEIGHTS]);
    let folder = copy("mini-padded");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(load(folder.path()), &["config.json"]);
    let folder = copy("mini-sharded");
    fs::remove_file(folder.path().join("model-00003-of-00007.safetensors")).unwrap();
    refused(load(folder.path()), &["model-00003-of-00007.safetensors"]);
    let folder = copy("mini-sharded");
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    refused(load(folder.path()), &[WEIGHTS]);
}

#[test]
fn truncated_weights_are_named() {
    let folder = copy("mini-padded");
    let path = folder.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, 3000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(load(folder.path()), &[WEIGHTS]);
    }
    let folder = copy("mini-sharded");
    let path = folder.path().join("model-00005-of-00007.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    refused(load(folder.path()), &["model-00005-of-00007.safetensors", "truncated"]);
}

#[test]
fn weights_that_are_something_else_are_named() {
    let folder = copy("mini-padded");
    for bytes in [
        b"PK\x03\x04".repeat(100),
        b"{}".to_vec(),
        vec![0; 4096],
        fs::read(folder.path().join("config.json")).unwrap(),
    ] {
        fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
        refused(load(folder.path()), &[WEIGHTS]);
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for name in NAMES {
        let folder = rewritten("mini-padded", |tensors| tensors.retain(|(n, _)| n != name));
        refused(load(folder.path()), &[WEIGHTS, &format!("`{name}`"), "missing"]);
    }
}

#[test]
fn an_extra_tensor_is_named() {
    for name in
        ["lm_head.weight", "model.layers.3.input_layernorm.weight", "model.layers.0.self_attn.q_norm.weight"]
    {
        let extra = Tensor::from_slice(&[1.0f32]);
        let folder = rewritten("mini-padded", |tensors| tensors.push((name.to_owned(), extra)));
        refused(load(folder.path()), &[WEIGHTS, "unexpected", &format!("`{name}`")]);
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_its_axes() {
    for name in NAMES {
        let folder = rewritten("mini-padded", |tensors| {
            let w = find(tensors, name);
            *w = w.narrow(0, 0, w.size()[0] - 1).copy();
        });
        refused(load(folder.path()), &[WEIGHTS, name, "must have shape"]);
    }
    // A square matrix hides a transpose; these are not square.
    let folder = rewritten("mini-padded", |tensors| {
        let w = find(tensors, "model.layers.0.mlp.down_proj.weight");
        *w = w.tr().contiguous();
    });
    refused(load(folder.path()), &["down_proj", "[d_model=48, d_mlp=96]", "[96, 48]"]);
}

#[test]
fn a_config_that_does_not_fit_its_weights_names_the_tensor() {
    for (key, value, at_fault) in [
        ("vocab_size", "257", ["embed_tokens", "d_vocab=257"]),
        ("intermediate_size", "100", ["gate_proj", "d_mlp=100"]),
        ("num_key_value_heads", "2", ["k_proj", "n_kv_heads·d_head=32"]),
        ("hidden_size", "50", ["embed_tokens", "d_model=50"]),
    ] {
        let folder = copy("mini-padded");
        let path = folder.path().join("config.json");
        let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, json.to_string()).unwrap();
        refused(load(folder.path()), &[WEIGHTS, at_fault[0], at_fault[1]]);
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (value, name) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().zip(NAMES) {
        let folder = rewritten("mini-padded", |tensors| {
            let _ = find(tensors, name).flatten(0, -1).narrow(0, 3, 2).fill_(value);
        });
        // Mapped weights are read when they are used, and named then, each time.
        let model = load(folder.path()).unwrap();
        for _ in 0..2 {
            refused(model.logits(&tokens("mini-padded")), &[WEIGHTS, name, "2 NaN or infinite values"]);
        }
        let converted = LoadOptions { kind: Kind::BFloat16, device: tch::Device::Cpu };
        refused(Gemma2::load(folder.path(), &converted), &[WEIGHTS, name, "2 NaN or infinite values"]);
    }
}

#[test]
fn weights_of_another_dtype_are_named() {
    for (kind, shown) in
        [(Kind::Int64, "I64"), (Kind::Double, "F64"), (Kind::Int8, "I8"), (Kind::Bool, "BOOL")]
    {
        let folder = rewritten("mini-padded", |tensors| {
            let w = find(tensors, NAMES[1]);
            *w = w.to_kind(kind);
        });
        refused(load(folder.path()), &[WEIGHTS, NAMES[1], "F32", shown]);
    }
}

#[test]
fn a_tensor_in_two_shards_is_named() {
    let folder = copy("mini-sharded");
    let shard = folder.path().join("model-00007-of-00007.safetensors");
    let mut file = SafetensorsFile::open(&shard).unwrap();
    let mut tensors: Vec<_> = file.names().into_iter().map(|n| (n.clone(), file.read(&n).unwrap())).collect();
    tensors.push((NAMES[0].to_owned(), Tensor::from_slice(&[1.0f32])));
    write_safetensors(&shard, tensors.iter().map(|(n, t)| (n.clone(), t)), HashMap::new()).unwrap();
    refused(load(folder.path()), &["model-00007-of-00007.safetensors", NAMES[0], "another shard"]);
}

#[test]
fn a_config_with_an_unknown_key_is_refused() {
    let folder = copy("mini-padded");
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap().replacen('{', "{\"mixture_of_depths\": true,", 1);
    fs::write(&path, text).unwrap();
    refused(load(folder.path()), &["config.json", "`mixture_of_depths`", "true"]);
    fs::write(&path, "{").unwrap();
    refused(load(folder.path()), &["config.json", "not JSON"]);
    fs::write(&path, [0xFF, 0xFE]).unwrap();
    refused(load(folder.path()), &["config.json"]);
}

#[cfg(unix)]
#[test]
fn files_without_rights_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    for name in ["config.json", WEIGHTS] {
        let folder = copy("mini-padded");
        let path = folder.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may read anything: there is nothing to refuse then.
        if fs::File::open(&path).is_err() {
            refused(load(folder.path()), &[name, "ermission"]);
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    refused(model("mini-padded").save(&folder.path().join("file"), Kind::Float), &["file", "config.json"]);
}
