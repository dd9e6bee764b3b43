//! `config.json`: a key that we know is used, and any other that could matter must hold the reference's default.

use gemma_model::{Gemma2Config, LayerKind};
use hooks::ModelDims;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::common::{cases, refused, small};

/// A configuration as transformers 4 wrote it for the released models: old keys, no list of layers.
fn old() -> Map<String, Value> {
    let json = json!({
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "initializer_range": 0.02,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "use_cache": true,
        "vocab_size": 256000
    });
    json.as_object().unwrap().clone()
}

/// The same as transformers 5 writes it.
fn new() -> Map<String, Value> {
    let mut json = old();
    for key in ["rope_theta", "hidden_act", "torch_dtype", "cache_implementation"] {
        json.remove(key);
    }
    let kinds: Vec<&str> =
        (0..26).map(|l| if l % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
    json.insert("layer_types".to_owned(), json!(kinds));
    json.insert("rope_parameters".to_owned(), json!({"rope_theta": 10000.0, "rope_type": "default"}));
    json.insert("dtype".to_owned(), json!("float32"));
    json.insert("tie_word_embeddings".to_owned(), json!(true));
    json.insert("use_bidirectional_attention".to_owned(), Value::Null);
    json
}

fn read(json: Map<String, Value>) -> gemma_model::Result<Gemma2Config> {
    Gemma2Config::from_json("here/config.json", &Value::Object(json).to_string())
}

fn with(mut json: Map<String, Value>, key: &str, value: Value) -> Map<String, Value> {
    json.insert(key.to_owned(), value);
    json
}

fn without(mut json: Map<String, Value>, key: &str) -> Map<String, Value> {
    json.remove(key).unwrap();
    json
}

#[test]
fn old_and_new_keys_give_the_same() {
    assert_eq!(read(old()).unwrap(), Gemma2Config::gemma_2_2b());
    assert_eq!(read(new()).unwrap(), Gemma2Config::gemma_2_2b());
    // A file in between carries both.
    assert_eq!(read(with(new(), "rope_theta", json!(10000))).unwrap(), Gemma2Config::gemma_2_2b());
}

/// Gemma 2, table 1; the constants from google/gemma_pytorch, `gemma/config.py`; vocabulary and ids from the released
/// `config.json`.
#[test]
fn presets_are_the_papers_table() {
    for (preset, d_model, n_layers, n_heads, n_kv_heads, d_head, d_mlp, scalar) in [
        (Gemma2Config::gemma_2_2b(), 2304, 26, 8, 4, 256, 9216, 256.0),
        (Gemma2Config::gemma_2_9b(), 3584, 42, 16, 8, 256, 14336, 256.0),
        (Gemma2Config::gemma_2_27b(), 4608, 46, 32, 16, 128, 36864, 144.0),
    ] {
        let dims = ModelDims {
            n_layers,
            d_model,
            n_heads,
            n_kv_heads,
            d_head,
            d_mlp,
            d_vocab: 256_000,
            n_ctx: 8192,
        };
        assert_eq!(preset.dims, dims);
        assert_eq!(preset.query_pre_attn_scalar, scalar);
        assert_eq!((preset.attn_softcap, preset.final_softcap), (Some(50.0), Some(30.0)));
        assert_eq!((preset.sliding_window, preset.rms_eps, preset.rope_theta), (4096, 1e-6, 10_000.0));
        assert_eq!((preset.bos, preset.eos.as_slice(), preset.pad), (2, [1].as_slice(), 0));
        assert_eq!(preset.special(), [2, 0, 1]);
        for (l, kind) in preset.layer_kinds.iter().enumerate() {
            assert_eq!(*kind, if l % 2 == 0 { LayerKind::Sliding } else { LayerKind::Global }, "block {l}");
        }
        assert_eq!(preset.layer_kinds.len(), n_layers);
    }
    // The size of z, which Gemma Scope's attention autoencoders read.
    let z = |c: Gemma2Config| c.dims.n_heads * c.dims.d_head;
    assert_eq!(
        [z(Gemma2Config::gemma_2_2b()), z(Gemma2Config::gemma_2_9b()), z(Gemma2Config::gemma_2_27b())],
        [2048, 4096, 4096]
    );
    // Parameters beside the embedding, as Gemma 2's table 2 counts them.
    for (preset, count) in [
        (Gemma2Config::gemma_2_2b(), 2_024_517_888),
        (Gemma2Config::gemma_2_9b(), 8_324_201_984),
        (Gemma2Config::gemma_2_27b(), 26_047_480_320),
    ] {
        let d = &preset.dims;
        let attention = 2 * d.d_model * d.d_head * (d.n_heads + d.n_kv_heads);
        let block = attention + 3 * d.d_model * d.d_mlp + 4 * d.d_model;
        assert_eq!(d.n_layers * block + d.d_model, count);
    }
}

#[test]
fn each_key_is_read() {
    let base = Gemma2Config::gemma_2_2b();
    let dims = base.dims.clone();
    for (key, value, want) in [
        (
            "hidden_size",
            json!(2048),
            Gemma2Config { dims: ModelDims { d_model: 2048, ..dims.clone() }, ..base.clone() },
        ),
        (
            "head_dim",
            json!(128),
            Gemma2Config { dims: ModelDims { d_head: 128, ..dims.clone() }, ..base.clone() },
        ),
        (
            "num_attention_heads",
            json!(16),
            Gemma2Config { dims: ModelDims { n_heads: 16, ..dims.clone() }, ..base.clone() },
        ),
        (
            "num_key_value_heads",
            json!(2),
            Gemma2Config { dims: ModelDims { n_kv_heads: 2, ..dims.clone() }, ..base.clone() },
        ),
        (
            "intermediate_size",
            json!(99),
            Gemma2Config { dims: ModelDims { d_mlp: 99, ..dims.clone() }, ..base.clone() },
        ),
        (
            "vocab_size",
            json!(99),
            Gemma2Config { dims: ModelDims { d_vocab: 99, ..dims.clone() }, ..base.clone() },
        ),
        (
            "max_position_embeddings",
            json!(99),
            Gemma2Config { dims: ModelDims { n_ctx: 99, ..dims.clone() }, ..base.clone() },
        ),
        (
            "num_hidden_layers",
            json!(3),
            Gemma2Config {
                dims: ModelDims { n_layers: 3, ..dims },
                layer_kinds: vec![LayerKind::Sliding, LayerKind::Global, LayerKind::Sliding],
                ..base.clone()
            },
        ),
        ("sliding_window", json!(512), Gemma2Config { sliding_window: 512, ..base.clone() }),
        ("query_pre_attn_scalar", json!(144), Gemma2Config { query_pre_attn_scalar: 144.0, ..base.clone() }),
        ("attn_logit_softcapping", json!(20), Gemma2Config { attn_softcap: Some(20.0), ..base.clone() }),
        ("attn_logit_softcapping", Value::Null, Gemma2Config { attn_softcap: None, ..base.clone() }),
        ("final_logit_softcapping", json!(9.5), Gemma2Config { final_softcap: Some(9.5), ..base.clone() }),
        ("final_logit_softcapping", Value::Null, Gemma2Config { final_softcap: None, ..base.clone() }),
        ("rms_norm_eps", json!(1e-5), Gemma2Config { rms_eps: 1e-5, ..base.clone() }),
        ("rope_theta", json!(1e6), Gemma2Config { rope_theta: 1e6, ..base.clone() }),
        ("bos_token_id", json!(7), Gemma2Config { bos: 7, ..base.clone() }),
        ("pad_token_id", json!(8), Gemma2Config { pad: 8, ..base.clone() }),
        // The -it models end a turn with a second id.
        ("eos_token_id", json!([1, 107]), Gemma2Config { eos: vec![1, 107], ..base.clone() }),
    ] {
        assert_eq!(read(with(old(), key, value)).unwrap(), want, "{key}");
    }
    let rope = json!({"rope_theta": 1e6});
    assert_eq!(
        read(with(new(), "rope_parameters", rope)).unwrap(),
        Gemma2Config { rope_theta: 1e6, ..base.clone() }
    );
    let kinds = vec!["full_attention"; 26];
    let want = Gemma2Config { layer_kinds: vec![LayerKind::Global; 26], ..base };
    assert_eq!(read(with(new(), "layer_types", json!(kinds))).unwrap(), want);
}

#[test]
fn a_missing_key_is_named() {
    for key in [
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "sliding_window",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rms_norm_eps",
        "rope_theta",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ] {
        refused(read(without(old(), key)), &["here/config.json", &format!("`{key}`"), "missing"]);
    }
    let rope = json!({"rope_type": "default"});
    refused(
        read(with(new(), "rope_parameters", rope)),
        &["here/config.json", "`rope_parameters.rope_theta`", "missing"],
    );
}

#[test]
fn keys_that_change_nothing_in_evaluation_may_be_absent_or_anything() {
    for key in [
        "architectures",
        "attention_bias",
        "attention_dropout",
        "cache_implementation",
        "hidden_act",
        "hidden_activation",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ] {
        assert_eq!(read(without(old(), key)).unwrap(), Gemma2Config::gemma_2_2b(), "{key}");
    }
    for (key, value) in [
        ("attention_dropout", json!(0.5)),
        ("torch_dtype", json!("bfloat16")),
        ("dtype", json!("float16")),
        ("_name_or_path", json!("google/gemma-2-2b")),
        ("use_cache", json!(false)),
        // Those of the released files that must hold what they hold.
        ("sliding_window_size", json!(4096)),
        ("hidden_act", json!("gelu")),
        ("hidden_activation", Value::Null),
        ("rope_scaling", Value::Null),
        ("quantization_config", Value::Null),
        ("use_bidirectional_attention", json!(false)),
    ] {
        assert_eq!(read(with(old(), key, value)).unwrap(), Gemma2Config::gemma_2_2b(), "{key}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_value() {
    for (key, value, shown) in [
        ("num_experts", json!(8), "8"),
        ("Hidden_size", json!(2304), "2304"),
        ("hidden_sise", json!(2304), "2304"),
        ("vision_config", json!({"depth": 3}), "depth"),
        ("", json!(null), "null"),
        ("partial_rotary_factor", json!(0.5), "0.5"),
    ] {
        refused(
            read(with(old(), key, value)),
            &["here/config.json", "unknown key", &format!("`{key}`"), shown],
        );
    }
    let rope = json!({"rope_theta": 10000.0, "factor": 8.0});
    refused(read(with(new(), "rope_parameters", rope)), &["unknown key", "`rope_parameters.factor`", "8.0"]);
    refused(read(with(old(), "a\nb", json!("c\nd"))), &["unknown key"]);
}

#[test]
fn a_value_that_is_not_implemented_is_named() {
    for (key, value, shown) in [
        ("model_type", json!("gemma3"), "gemma3"),
        ("model_type", json!("gemma"), "gemma"),
        ("model_type", Value::Null, "null"),
        ("hidden_act", json!("relu"), "relu"),
        ("hidden_activation", json!("silu"), "silu"),
        ("hidden_activation", json!("gelu"), "gelu"),
        ("rope_scaling", json!({"type": "linear", "factor": 8.0}), "linear"),
        ("attention_bias", json!(true), "true"),
        ("tie_word_embeddings", json!(false), "false"),
        ("quantization_config", json!({"bits": 4}), "bits"),
        ("use_bidirectional_attention", json!(true), "true"),
        ("sliding_window_size", json!(1024), "1024"),
        ("layer_types", json!(vec!["full_attention"; 25]), "25"),
        ("layer_types", json!([]), "0"),
        ("layer_types", json!(vec!["chunked_attention"; 26]), "chunked_attention"),
        ("layer_types", json!("full_attention"), "list"),
        ("layer_types", json!(vec![0; 26]), "0"),
        ("rope_parameters", json!(7), "object"),
        ("rope_parameters", json!({"rope_theta": 1e4, "rope_type": "yarn"}), "yarn"),
        ("rope_parameters", json!({"rope_theta": 5.0}), "10000"),
    ] {
        let name = if key == "rope_parameters" { "rope_" } else { key };
        let text = refused(read(with(old(), key, value)), &["here/config.json", name]);
        assert!(text.contains(shown), "{key}: {text}");
    }
}

#[test]
fn a_value_of_another_type_is_named() {
    for key in [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "sliding_window",
    ] {
        for value in [
            json!("8"),
            json!(8.5),
            json!(-8),
            Value::Null,
            json!(true),
            json!([8]),
            json!(1e30),
            json!(0),
            json!(u64::MAX),
            json!(1u64 << 40),
        ] {
            refused(read(with(old(), key, value)), &["here/config.json", &format!("`{key}`")]);
        }
    }
    for key in ["query_pre_attn_scalar", "rms_norm_eps", "rope_theta"] {
        for value in [json!("1"), Value::Null, json!(0), json!(-1.0), json!([])] {
            refused(read(with(old(), key, value)), &["here/config.json", &format!("`{key}`")]);
        }
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        for value in [json!("50"), json!(0.0), json!(-50), json!(false)] {
            refused(read(with(old(), key, value)), &["here/config.json", &format!("`{key}`")]);
        }
    }
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        for value in [json!("2"), Value::Null, json!(2.5), json!({}), json!(u64::MAX)] {
            refused(read(with(old(), key, value)), &["here/config.json", &format!("`{key}`")]);
        }
    }
    refused(read(with(old(), "eos_token_id", json!([1, "107"]))), &["`eos_token_id`"]);
}

#[test]
fn sizes_that_make_no_model_are_named() {
    refused(
        read(with(old(), "num_key_value_heads", json!(3))),
        &["here/config.json", "8 heads", "3 key-value heads"],
    );
    refused(
        read(with(old(), "num_key_value_heads", json!(16))),
        &["here/config.json", "8 heads", "16 key-value heads"],
    );
    refused(read(with(old(), "head_dim", json!(255))), &["here/config.json", "`head_dim` is 255"]);
}

#[test]
fn more_layers_than_memory_holds_are_refused_at_once() {
    for n in [2_000_000_000u64, 1 << 31, 1 << 40, u64::MAX] {
        refused(
            read(with(old(), "num_hidden_layers", json!(n))),
            &["here/config.json", "`num_hidden_layers`"],
        );
    }
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    for text in ["", "{", "[]", "null", "7", "\"gemma2\"", "{}}", "{\"model_type\": gemma2}", "\u{feff}{}"] {
        refused(Gemma2Config::from_json("here/config.json", text), &["here/config.json"]);
    }
    refused(Gemma2Config::from_json("here/config.json", &"[".repeat(100_000)), &["here/config.json"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(Gemma2Config::load(&folder.path().join("config.json")), &["config.json"]);
    refused(Gemma2Config::load(folder.path()), &[&folder.path().display().to_string()]);
}

#[test]
fn what_is_saved_is_read_again() {
    for config in [
        Gemma2Config::gemma_2_2b(),
        Gemma2Config::gemma_2_9b(),
        Gemma2Config::gemma_2_27b(),
        small(),
        Gemma2Config { attn_softcap: None, final_softcap: None, ..small() },
        Gemma2Config { eos: vec![1, 107], ..small() },
        Gemma2Config { layer_kinds: vec![LayerKind::Global, LayerKind::Sliding], ..small() },
    ] {
        for (kind, name) in [(Kind::Float, "float32"), (Kind::BFloat16, "bfloat16"), (Kind::Half, "float16")]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.json");
            config.save(&path, kind).unwrap();
            assert_eq!(Gemma2Config::load(&path).unwrap(), config);
            let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(json["torch_dtype"], name);
            assert_eq!(json["architectures"][0], "Gemma2ForCausalLM");
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_configuration_comes_back(
        n_layers in 1usize..8,
        group in 1usize..4,
        sizes in prop::array::uniform6(1usize..10_000),
        reals in prop::array::uniform3(1e-9f64..1e9),
        caps in prop::array::uniform2(prop::option::of(1e-3f64..1e3)),
        globals in prop::collection::vec(any::<bool>(), 8),
        ids in prop::collection::vec(0i64..300_000, 3..6),
    ) {
        let [n_kv_heads, half, d_model, d_mlp, d_vocab, n_ctx] = sizes;
        let dims = ModelDims { n_layers, d_model, n_heads: n_kv_heads * group, n_kv_heads, d_head: 2 * half, d_mlp, d_vocab, n_ctx };
        let kind = |global: &bool| if *global { LayerKind::Global } else { LayerKind::Sliding };
        let config = Gemma2Config {
            dims,
            layer_kinds: globals.iter().take(n_layers).map(kind).collect(),
            sliding_window: n_ctx,
            query_pre_attn_scalar: reals[0],
            rms_eps: reals[1],
            rope_theta: reals[2],
            attn_softcap: caps[0],
            final_softcap: caps[1],
            bos: ids[0],
            pad: ids[1],
            eos: ids[2..].to_vec(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        config.save(&path, Kind::Float).unwrap();
        prop_assert_eq!(Gemma2Config::load(&path).unwrap(), config);
    }

    #[test]
    fn any_value_of_any_key_never_panics(
        key in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
            prop::collection::vec(any::<i64>().prop_map(Value::from), 0..3).prop_map(Value::from),
        ],
    ) {
        let json = new();
        let keys: Vec<String> = json.keys().cloned().collect();
        if let Err(error) = read(with(json, &keys[key.index(keys.len())], value)) {
            refused(Err::<(), _>(error), &["here/config.json"]);
        }
    }
}
