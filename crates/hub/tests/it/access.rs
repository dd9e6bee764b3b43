//! What the hub says no to, and who gets to see the token.

use hub::{Hub, HubError, HubOptions};

use crate::server::{FIRST, GOOD_TOKEN, Kind, OUTSIDER_TOKEN, Server};

const LARGE: &[u8] = &[7; 5_000];

fn message(error: &HubError) -> String {
    let message = error.to_string();
    assert!(!message.contains('\n') && !message.ends_with('.'), "{message}");
    message
}

#[test]
fn a_gated_repository() {
    let server = Server::with_files(&[("config.json", b"{}"), ("model.safetensors", LARGE)]);
    server.edit(|repo| repo.gated = true);

    let error = server.client().file("org/name", "config.json").unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
    assert_eq!(message(&error), "org/name is gated: accept its licence on the hub and set HF_TOKEN");

    let error = server.client_with_token("hf_wrong").file("org/name", "config.json").unwrap_err();
    assert!(matches!(error, HubError::TokenRejected { .. }), "{error:?}");
    assert!(!message(&error).contains("hf_wrong"));

    let error = server.client_with_token(OUTSIDER_TOKEN).file("org/name", "config.json").unwrap_err();
    assert!(matches!(error, HubError::NoAccess { .. }), "{error:?}");
    assert!(message(&error).contains("org/name (You are not in the authorized list): accept its licence"));

    let folder = server.client_with_token(GOOD_TOKEN).model_files("org/name").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), LARGE);
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let server = Server::with_files(&[("model.safetensors", LARGE)]);
    server.client_with_token(GOOD_TOKEN).file("org/name", "model.safetensors").unwrap();
    let requests = server.take_requests();
    assert!(requests.iter().any(|request| !request.of_hub));
    for request in &requests {
        let token = request.headers.get("authorization");
        assert_eq!(token.map(String::as_str), request.of_hub.then_some("Bearer hf_good"), "{request:?}");
    }
}

#[test]
fn the_text_of_a_mirror_without_error_headers() {
    let server = Server::with_files(&[("config.json", b"{}")]);
    let text = "{\"error\": \"Access to model org/name is restricted. You must be authenticated.\"}";
    server.trouble("HEAD /org", 9, Kind::Answer(401, &[], ""));
    server.trouble("GET /org", 9, Kind::Answer(401, &[], text));
    let error = server.client().file("org/name", "config.json").unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
}

#[test]
fn a_mirror_that_does_not_know_head() {
    let server = Server::with_files(&[("config.json", b"{}")]);
    server.trouble("HEAD /org", 9, Kind::Answer(405, &[], ""));
    let path = server.client().file("org/name", "config.json").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"{}");
}

#[test]
fn a_missing_repository() {
    let server = Server::with_files(&[]);
    for client in [server.client(), server.client_with_token(GOOD_TOKEN)] {
        for error in [
            client.file("org/other", "config.json").unwrap_err(),
            client.list("org/other").unwrap_err(),
            client.model_files("org/other").unwrap_err(),
        ] {
            assert!(matches!(error, HubError::RepoNotFound { .. }), "{error:?}");
            assert!(message(&error).starts_with("org/other is not on the hub"));
        }
    }
}

#[test]
fn a_missing_revision() {
    let server = Server::with_files(&[("config.json", b"{}")]);
    let commit = "abcdef0123abcdef0123abcdef0123abcdef0123";
    for revision in ["v9", commit] {
        let error = server.client().file(format!("org/name@{revision}"), "config.json").unwrap_err();
        assert!(
            matches!(&error, HubError::RevisionNotFound { revision: r, .. } if r == revision),
            "{error:?}"
        );
        assert!(message(&error).contains("has no revision"));
    }
}

#[test]
fn a_missing_file_and_the_names_near_it() {
    let server = Server::with_files(&[
        ("config.json", b"{}"),
        ("layer_20/width_16k/average_l0_71/params.npz", b"71"),
        ("layer_20/width_16k/average_l0_139/params.npz", b"139"),
    ]);
    let client = server.client();
    for _again in 0..2 {
        let error = client.file("org/name", "layer_20/width_16k/average_l0_70/params.npz").unwrap_err();
        let HubError::FileNotFound { near, .. } = &error else { panic!("{error:?}") };
        assert_eq!(near[0], "layer_20/width_16k/average_l0_71/params.npz");
        assert!(
            message(&error).contains("the nearest names are layer_20/width_16k/average_l0_71/params.npz")
        );
        // The second time the commit is known.
        client.file("org/name", "config.json").unwrap();
    }
    let error = client.file("org/name", "tokenizer.model").unwrap_err();
    assert!(message(&error).ends_with("check the path on the page of the repository"));
}

#[test]
fn bad_names_make_no_request() {
    let server = Server::with_files(&[("config.json", b"{}")]);
    let client = server.client();
    for repo in [
        "",
        "name",
        "org/name/x",
        "../name",
        "org/..",
        "/org/name",
        "org\\name",
        "org/name@",
        "org/name@../x",
    ] {
        let error = client.file(repo, "config.json").unwrap_err();
        assert!(matches!(error, HubError::InvalidRepo { .. }), "{repo}: {error:?}");
        assert!(message(&error).contains("org/name@revision"));
        assert!(
            client.list(repo).is_err()
                && client.model_files(repo).is_err()
                && client.repo(repo, &[]).is_err()
        );
    }
    for file in ["", "/etc/passwd", "../../refs/main", "a/../b", "a\\b", "a/"] {
        let error = client.repo("org/name", &["config.json", file]).unwrap_err();
        assert!(matches!(error, HubError::InvalidFile { .. }), "{file}: {error:?}");
        message(&error);
    }
    assert!(server.take_requests().is_empty());
}

#[test]
fn bad_options() {
    let server = Server::with_files(&[]);
    for options in [
        HubOptions { endpoint: "hub.example".to_owned(), ..server.options() },
        HubOptions { token: Some("two\nlines".to_owned()), ..server.options() },
    ] {
        let error = Hub::new(options).unwrap_err();
        assert!(matches!(error, HubError::InvalidOption { .. }), "{error:?}");
        message(&error);
    }
}

#[test]
fn a_renamed_repository_and_a_hub_that_answers_in_two_steps() {
    let server = Server::with_files(&[("config.json", b"{}"), ("model.safetensors", LARGE)]);
    let location = &[("Location", "/org/name/resolve/main/config.json")];
    server.trouble("/old/name/resolve/main/config.json", 9, Kind::Answer(307, location, ""));
    let path = server.client().file("old/name", "config.json").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"{}");

    // The first answer names the commit, the second does not.
    const HOP: &[(&str, &str)] = &[("Location", "/hop"), ("X-Repo-Commit", FIRST)];
    server.trouble("/old/other", 9, Kind::Answer(307, HOP, ""));
    server.trouble("/hop", 9, Kind::Answer(200, &[("ETag", "W/\"abc\"")], "hopped"));
    let path = server.client().file("old/other", "config.json").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"hopped");
}
