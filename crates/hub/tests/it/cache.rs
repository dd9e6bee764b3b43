//! What the cache holds is used, and is what Python's library would have put there.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use hub::{Hub, HubError, HubOptions, RepoId};

use crate::server::{FIRST, SECOND, Server, bytes, etag, sha256};

const PARAMS: &str = "layer_20/width_16k/average_l0_71/params.npz";

#[test]
fn a_file_in_a_folder_and_no_request_the_second_time() {
    let large = bytes(3_000_000);
    let server = Server::with_files(&[(PARAMS, &large)]);
    let client = server.client();
    let path = client.file("org/name", PARAMS).unwrap();
    let root = client.cache_dir().join("models--org--name");
    assert_eq!(path, root.join("snapshots").join(FIRST).join(PARAMS));
    assert_eq!(fs::read(&path).unwrap(), large);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), FIRST);
    assert_eq!(fs::read(root.join("blobs").join(sha256(&large))).unwrap(), large);
    assert_eq!(fs::read_dir(root.join("blobs")).unwrap().count(), 1, "nothing incomplete is left");
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(&path).unwrap(),
        PathBuf::from("../../../../../blobs").join(sha256(&large)),
        "the cache can be moved"
    );

    assert!(!server.take_requests().is_empty());
    for client in [client, server.client(), server.client_with_token("hf_wrong")] {
        assert_eq!(client.file("org/name", PARAMS).unwrap(), path);
        assert_eq!(client.file(format!("org/name@{FIRST}"), PARAMS).unwrap(), path);
    }
    assert!(server.take_requests().is_empty());
}

#[test]
fn a_cache_that_python_filled() {
    let server = Server::with_files(&[]);
    let root = server.client().cache_dir().join("models--org--name");
    let snapshot = root.join("snapshots").join(FIRST);
    for folder in [root.join("refs"), root.join("blobs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(root.join("refs/main"), FIRST).unwrap();
    fs::write(root.join("blobs/abc"), "{}").unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert_eq!(server.client().repo("org/name", &["config.json"]).unwrap(), snapshot);
    assert!(server.take_requests().is_empty());
}

#[test]
fn a_folder_with_the_named_files() {
    let server =
        Server::with_files(&[("a.json", b"a"), ("b/c.json", b"c"), ("empty", b""), ("a b/ü#?%.txt", b"x")]);
    let client = server.client();
    let folder = client.repo("org/name", &["a.json", "b/c.json", "empty"]).unwrap();
    assert_eq!(fs::read(folder.join("a.json")).unwrap(), b"a");
    assert_eq!(fs::read(folder.join("b/c.json")).unwrap(), b"c");
    assert_eq!(fs::read(folder.join("empty")).unwrap(), b"");

    server.take_requests();
    assert_eq!(client.repo("org/name", &["a.json", "a b/ü#?%.txt"]).unwrap(), folder);
    assert_eq!(fs::read(folder.join("a b/ü#?%.txt")).unwrap(), b"x");
    assert!(
        server.take_requests().iter().all(|request| request.path.ends_with("/a%20b/%C3%BC%23%3F%25.txt"))
    );
    assert_eq!(client.repo("org/name", &[]).unwrap(), folder);
}

#[test]
fn the_list_is_sorted() {
    let server = Server::with_files(&[("b", b""), ("a/z", b""), ("a/b", b"")]);
    assert_eq!(server.client().list("org/name").unwrap(), ["a/b", "a/z", "b"]);
}

#[test]
fn a_branch_that_moves() {
    let server = Server::with_files(&[("a", b"old"), ("b", b"same")]);
    let client = server.client();
    let old = client.repo("org/name", &["a"]).unwrap();
    server.move_branch(&[("a", b"new"), ("b", b"same"), ("c", b"only new")]);

    // A file that the old commit has joins the others of the old commit.
    assert_eq!(client.repo("org/name", &["a", "b"]).unwrap(), old);
    assert_eq!(fs::read(old.join("a")).unwrap(), b"old");
    // A file that only the new commit has brings the whole folder to the new commit.
    let new = client.repo("org/name", &["a", "c"]).unwrap();
    assert!(new.ends_with(SECOND));
    assert_eq!(
        (fs::read(new.join("a")).unwrap(), fs::read(new.join("c")).unwrap()),
        (b"new".into(), b"only new".into())
    );
    // What both have is not sent again.
    server.take_requests();
    client.file("org/name", "b").unwrap();
    assert!(server.take_requests().iter().all(|request| request.method == "HEAD"));
    // The old commit stays reachable by its name.
    assert_eq!(client.repo(format!("org/name@{FIRST}"), &["a"]).unwrap(), old);
    assert_eq!(client.file("org/name", "a").unwrap(), new.join("a"));
}

#[test]
fn revisions() {
    let server = Server::with_files(&[("a", b"first")]);
    let client = server.client();
    let repo = RepoId::new("org/name", "refs/pr/3").unwrap();
    let path = client.file(&repo, "a").unwrap();
    assert_eq!(client.file(repo, "a").unwrap(), path);
    let refs = client.cache_dir().join("models--org--name/refs");
    assert_eq!(fs::read_to_string(refs.join("refs/pr/3")).unwrap(), FIRST);
    assert!(!refs.join("main").exists());
    // A commit needs no ref.
    client.file(format!("org/name@{FIRST}"), "a").unwrap();
    assert!(!refs.join(FIRST).exists());
}

#[test]
fn offline() {
    let server = Server::with_files(&[("a", b"a"), ("b", b"b")]);
    let offline = Hub::new(HubOptions { offline: true, ..server.options() }).unwrap();
    let error = offline.file("org/name", "a").unwrap_err();
    assert!(matches!(&error, HubError::Offline { what, .. } if what == "a"), "{error:?}");
    assert!(error.to_string().starts_with("a of org/name is not in the cache at "), "{error}");

    let path = server.client().file("org/name", "a").unwrap();
    server.take_requests();
    assert_eq!(offline.file("org/name", "a").unwrap(), path);
    assert_eq!(server.client().with_offline(true).file("org/name", "a").unwrap(), path);
    let error = offline.repo("org/name", &["a", "b"]).unwrap_err();
    assert!(matches!(&error, HubError::Offline { what, .. } if what == "b"), "{error:?}");
    for error in [
        offline.list("org/name").unwrap_err(),
        offline.model_files("org/name").unwrap_err(),
        offline.file("org/name@v2", "a").unwrap_err(),
    ] {
        assert!(matches!(error, HubError::Offline { .. }), "{error:?}");
    }
    assert!(server.take_requests().is_empty());
}

#[test]
fn a_broken_link_is_mended() {
    let server = Server::with_files(&[("a", b"a")]);
    let client = server.client();
    let path = client.file("org/name", "a").unwrap();
    fs::remove_file(client.cache_dir().join("models--org--name/blobs").join(etag(b"a"))).unwrap();
    assert!(client.clone().with_offline(true).file("org/name", "a").is_err());
    assert_eq!(client.file("org/name", "a").unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"a");
    #[cfg(unix)]
    assert!(path.is_symlink());
}

#[test]
fn many_at_once_fetch_once() {
    let large = bytes(1_000_000);
    let server = Server::with_files(&[("x.bin", &large)]);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                assert_eq!(fs::read(server.client().file("org/name", "x.bin").unwrap()).unwrap(), large)
            });
        }
    });
    assert_eq!(server.take_requests().iter().filter(|request| !request.of_hub).count(), 1);
}

#[test]
fn progress_goes_from_nothing_to_all() {
    let large = bytes(1_000_000);
    let server = Server::with_files(&[("x.bin", &large)]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let client = server.client().with_progress(move |progress| {
        assert_eq!((progress.repo.name(), progress.file), ("org/name", "x.bin"));
        sink.lock().unwrap().push((progress.done, progress.total));
    });
    client.file("org/name", "x.bin").unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|(_, total)| *total == Some(1_000_000)));
    assert_eq!((seen[0].0, seen[seen.len() - 1].0), (0, 1_000_000));
}

#[test]
fn a_hub_can_be_shared_and_does_not_show_its_token() {
    fn shared<T: Clone + Send + Sync>(_: &T) {}
    let server = Server::with_files(&[]);
    let client = server.client_with_token("hf_good");
    shared(&client);
    assert!(
        !format!("{client:?} {:?}", HubOptions { token: Some("hf_good".into()), ..server.options() })
            .contains("hf_good")
    );
}
