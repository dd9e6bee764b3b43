//! The files of a model.

use std::{fs, path::Path};

use hub::{Hub, HubError, HubOptions};

use crate::server::{Kind, SECOND, Server};

const INDEX: &[u8] = br#"{"metadata": {}, "weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-1-of-2.safetensors"}}"#;
const SHARDED: &[(&str, &[u8])] = &[
    ("README.md", b"read me"),
    ("config.json", b"{}"),
    ("model-1-of-2.safetensors", &[1; 5_000]),
    ("model-2-of-2.safetensors", &[2; 5_000]),
    ("model.safetensors.index.json", INDEX),
    ("tokenizer.json", b"{}"),
];

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn shards() {
    let server = Server::with_files(SHARDED);
    let client = server.client();
    let folder = client.model_files("org/name").unwrap();
    let expected: Vec<&str> =
        SHARDED.iter().map(|(name, _)| *name).filter(|name| *name != "README.md").collect();
    assert_eq!(names(&folder), expected);

    server.take_requests();
    assert_eq!(client.model_files("org/name").unwrap(), folder);
    assert_eq!(client.clone().with_offline(true).model_files("org/name").unwrap(), folder);
    assert!(server.take_requests().is_empty());

    // A shard that got lost is named offline and fetched online.
    fs::remove_file(folder.join("model-2-of-2.safetensors")).unwrap();
    let error = client.clone().with_offline(true).model_files("org/name").unwrap_err();
    assert!(
        matches!(&error, HubError::Offline { what, .. } if what == "model-2-of-2.safetensors"),
        "{error:?}"
    );
    assert_eq!(client.model_files("org/name").unwrap(), folder);
    assert_eq!(names(&folder), expected);
}

#[test]
fn one_file_is_preferred_to_shards() {
    let mut files = SHARDED.to_vec();
    files.extend([
        ("model.safetensors", &[3; 200][..]),
        ("generation_config.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
    ]);
    let server = Server::with_files(&files);
    let folder = server.client().model_files("org/name").unwrap();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&folder), expected);
}

#[test]
fn weights_that_another_program_fetched() {
    let server = Server::with_files(SHARDED);
    let client = server.client();
    let mut files: Vec<&str> = SHARDED.iter().map(|(name, _)| *name).collect();
    files.retain(|name| *name != "tokenizer.json");
    let folder = client.repo("org/name", &files).unwrap();
    assert!(!folder.join("tokenizer.json").exists());

    // They are enough where there is no network.
    let unreachable =
        Hub::new(HubOptions { endpoint: "http://127.0.0.1:1".to_owned(), ..server.options() }).unwrap();
    assert_eq!(client.clone().with_offline(true).model_files("org/name").unwrap(), folder);
    assert_eq!(unreachable.model_files("org/name").unwrap(), folder);
    assert!(!folder.join("tokenizer.json").exists());

    // Where there is one, the rest of the same commit is fetched, and what does not exist is asked for once.
    server.move_branch(&[]);
    assert_eq!(client.model_files("org/name").unwrap(), folder);
    assert!(folder.join("tokenizer.json").exists());
    server.take_requests();
    client.model_files("org/name").unwrap();
    assert!(server.take_requests().is_empty());
}

#[test]
fn a_model_that_changed_before_it_was_whole() {
    let server = Server::with_files(SHARDED);
    let client = server.client();
    client.file("org/name", "config.json").unwrap();
    let mut files = SHARDED.to_vec();
    files[1].1 = b"{\"changed\": true}";
    server.move_branch(&files);
    let folder = client.model_files("org/name").unwrap();
    assert!(folder.ends_with(SECOND));
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), files[1].1);
    assert_eq!(client.model_files("org/name").unwrap(), folder);
}

#[test]
fn no_model() {
    let server = Server::with_files(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]);
    let error = server.client().model_files("org/name").unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error:?}");

    let server = Server::with_files(&[("model.safetensors", b"w"), ("text/config.json", b"{}")]);
    let error = server.client().model_files("org/name").unwrap_err();
    let HubError::FileNotFound { file, near, .. } = error else { panic!("{error:?}") };
    assert_eq!((file.as_str(), near), ("config.json", vec!["text/config.json".to_owned()]));
}

#[test]
fn an_index_that_names_what_is_not_there() {
    let mut files = SHARDED.to_vec();
    files.remove(3);
    let server = Server::with_files(&files);
    let error = server.client().model_files("org/name").unwrap_err();
    let HubError::FileNotFound { file, near, .. } = error else { panic!("{error:?}") };
    assert_eq!((file.as_str(), near[0].as_str()), ("model-2-of-2.safetensors", "model-1-of-2.safetensors"));
}

#[test]
fn a_bad_index() {
    for index in ["", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"] {
        let server =
            Server::with_files(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())]);
        let error = server.client().model_files("org/name").unwrap_err();
        assert!(matches!(error, HubError::BadIndex { .. }), "{index}: {error:?}");
    }
    for shard in ["../../../../outside", "/etc/passwd", "a\\\\b"] {
        let index = format!("{{\"weight_map\": {{\"a\": \"{shard}\"}}}}");
        let server =
            Server::with_files(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())]);
        let error = server.client().model_files("org/name").unwrap_err();
        assert!(matches!(error, HubError::InvalidFile { .. }), "{shard}: {error:?}");
    }
}

#[test]
fn a_cut_shard_is_resumed() {
    let server = Server::with_files(SHARDED);
    let client = server.client();
    server.trouble("GET /store", usize::MAX, Kind::Cut(1_000));
    let error = client.model_files("org/name").unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error:?}");
    assert!(client.clone().with_offline(true).model_files("org/name").is_err());
    server.end_troubles();
    let folder = client.model_files("org/name").unwrap();
    for (name, bytes) in &SHARDED[2..4] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), *bytes);
    }
}
