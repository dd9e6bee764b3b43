//! From a name to what it names, and every way in which that can fail.

use gemma_scope::{
    hooks::HookPoint,
    hub::{Hub, HubError, HubOptions},
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, Place},
};

fn closed_hub() -> Result<Hub, HubError> {
    let folder = tempfile::tempdir().unwrap().keep();
    Hub::new(HubOptions { offline: true, ..HubOptions::in_folder(&folder) })
}

fn fixture(path: &str) -> String {
    format!("{}/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// One line that contains what is at fault.
#[track_caller]
fn expect_error<T>(result: Result<T, impl std::error::Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("expected an error that names {parts:?}") };
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} does not name {part:?}");
    }
}

#[test]
fn a_folder_is_a_model() {
    let loaded = load_model(&fixture("gemma2/mini-9b"), &LoadOptions::default(), closed_hub).unwrap();
    assert_eq!(loaded.model.config().dims.n_layers, 5);
    expect_error(loaded.tokenizer(), &["mini-9b", "tokenizer.json"]);
}

#[test]
fn names_of_models_that_are_none() {
    let load = |name: &str| load_model(name, &LoadOptions::default(), closed_hub);
    expect_error(load("no-such-model"), &["no-such-model", "google/gemma-2-2b"]);
    expect_error(load("./no/such/folder"), &["./no/such/folder"]);
    expect_error(load(""), &["tiny"]);
    expect_error(load("google/gemma-2-2b"), &["google/gemma-2-2b", "offline"]);
}

#[test]
fn names_of_saes_that_are_none() {
    let load = |name: &str| load_sae(name, None, &OpenOptions::default(), closed_hub);
    expect_error(load("tiny/layer_9"), &["tiny/layer_9", "tiny/layer_3"]);
    expect_error(load("gemma-scope-2b-pt-res/layer_26/width_16k/average_l0_71"), &["layer_26", "layer_25"]);
    expect_error(load("gemma-scope-2b-pt-res/layer_20/width_16k/canonical"), &["offline"]);
    expect_error(load("nonsense"), &["nonsense"]);
    expect_error(load("./nothing.npz"), &["./nothing.npz"]);
    expect_error(load("somebody/saes/no/layer"), &["somebody/saes", "offline"]);
    let unnamed = fixture("sae/gemma-scope/stored");
    expect_error(load(&unnamed), &["stored", "hook point"]);
    let told = load_sae(&unnamed, Some(HookPoint::Embed), &OpenOptions::default(), closed_hub).unwrap();
    assert_eq!(told.site, HookPoint::Embed);
}

#[test]
fn paths_tell_their_site() {
    let site = |path: &str| Place::from_path(path).map(|p| p.site().to_string());
    let resid = Some("blocks.2.hook_resid_post".to_owned());
    assert_eq!(site("x/resid_post/layer_2/width_64/average_l0_37/params.npz"), resid);
    assert_eq!(site("my-scope-res/layer_2/width_64"), resid);
    assert_eq!(site("a/attn_z/layer_1/w"), Some("blocks.1.attn.hook_z".to_owned()));
    assert_eq!(
        site("google/gemma-scope-2b-pt-mlp/layer_0/width_16k"),
        Some("blocks.0.hook_mlp_out".to_owned())
    );
    assert_eq!(
        site("gemma-scope-2b-pt-transcoders/layer_3/x"),
        Some("blocks.3.ln2.hook_normalized".to_owned())
    );
    assert_eq!(site("layer_2/params.npz"), None);
    assert_eq!(site("pictures/layer_2/params.npz"), None);
}
