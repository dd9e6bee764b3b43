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

#[test]
fn conversations_become_rows_with_a_role_for_each_position() {
    use gemma_scope::{
        corpus::{Content, Document, Packing, Role, Turn},
        model::{self, Tokenizer},
        suite::Text,
    };
    // The small tokenizer of the fixtures, with the marks of turns that an -it model's has.
    let bytes = std::fs::read(fixture("tokenizer/tokenizer.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let next = Tokenizer::from_bytes("fixture", &bytes).unwrap().d_vocab();
    for (id, content) in (next..).zip(["<start_of_turn>", "<end_of_turn>"]) {
        let token = serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let gemma = Tokenizer::from_bytes("fixture with turns", file.to_string().as_bytes()).unwrap();
    let turn = |role, text: &str| Turn { role, text: text.to_owned() };
    let turns =
        vec![turn(Role::User, " What is the sea? <end_of_turn>"), turn(Role::Model, "Water, and salt.")];
    let chat = Document { content: Content::Chat(turns), subset: None };
    let text = Text::pack([Ok(chat)], &gemma, (64, 1), Packing::Packed).unwrap();
    let row = &text.batches[0].tokens.rows()[0];
    // Up to where the model answers it is the prompt that the -it models are given, but that a user can't end his own turn.
    let asked = model::Turn { role: model::Role::User, text: "What is the sea?" };
    let prompt = gemma.encode_chat(&[asked]).unwrap();
    let end = gemma.token("<end_of_turn>").unwrap();
    let question = prompt.iter().position(|id| *id == end).unwrap();
    assert_eq!(row[..question], prompt[..question]);
    assert_eq!(row.iter().filter(|id| **id == end).count(), 2, "one end a turn: {row:?}");
    let said = |role: &str| {
        let group = text.groups.iter().position(|name| name == role).unwrap() as u32;
        let labels = &text.batches[0].labels[0];
        let ids = row.iter().zip(labels).filter(|(_, label)| label.group() == Some(group)).map(|(id, _)| *id);
        gemma.decode(&ids.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(said("user"), "What is the sea? <end_of_turn>");
    assert_eq!(said("model"), "Water, and salt.");
    // Nothing else counts: not the names of the roles, not the marks.
    let counted = text.batches[0].tokens.counted();
    let spoken = text.batches[0].labels[0].iter().filter(|label| label.group().is_some()).count();
    let n = i64::try_from(&counted.f_sum(gemma_scope::tch::Kind::Int64).unwrap()).unwrap();
    assert_eq!(n, spoken as i64);
    assert_eq!(counted.f_int64_value(&[0, 0]).unwrap(), 0);
}
