//! Connections that break, servers that fail, disks that are full.

use std::{fs, net::TcpListener, time::Duration};

use hub::{Hub, HubError, HubOptions};

use crate::server::{FIRST, Kind, Server, bytes, etag, sha256};

/// More than any test lets through.
const ALWAYS: usize = usize::MAX;

fn large() -> Vec<u8> {
    bytes(100_000)
}

/// The ranges that the store was asked for.
fn ranges(server: &Server) -> Vec<Option<String>> {
    let requests = server.take_requests();
    requests
        .iter()
        .filter(|request| !request.of_hub)
        .map(|request| request.headers.get("range").cloned())
        .collect()
}

#[test]
fn a_cut_download_is_resumed_in_the_same_call() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    server.trouble("GET /store", 1, Kind::Cut(30_000));
    let path = server.client().file("org/name", "x.bin").unwrap();
    assert_eq!(fs::read(path).unwrap(), large);
    assert_eq!(ranges(&server), [None, Some("bytes=30000-".to_owned())]);
}

#[test]
fn a_cut_download_is_resumed_by_the_next_call() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    let client = server.client();
    server.trouble("GET /store", ALWAYS, Kind::Cut(10_000));
    let error = client.file("org/name", "x.bin").unwrap_err();
    let HubError::Interrupted { done, total, .. } = error else { panic!("{error:?}") };
    assert_eq!((done, total), (40_000, Some(100_000)), "four connections of 10,000 bytes");
    assert!(
        error.to_string().starts_with("the download of x.bin from org/name stopped at byte 40000 of 100000")
    );

    // The half file is no file.
    let root = client.cache_dir().join("models--org--name");
    assert!(!root.join("blobs").join(sha256(&large)).exists());
    assert!(!root.join("snapshots").join(FIRST).join("x.bin").exists());
    assert!(client.clone().with_offline(true).file("org/name", "x.bin").is_err());

    server.end_troubles();
    server.take_requests();
    assert_eq!(fs::read(client.file("org/name", "x.bin").unwrap()).unwrap(), large);
    assert_eq!(ranges(&server), [Some("bytes=40000-".to_owned())]);
}

#[test]
fn a_stalled_download_is_given_up_and_resumed() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    server.trouble("GET /store", 1, Kind::Stall(30_000));
    let client = Hub::new(HubOptions { timeout: Duration::from_secs(2), ..server.options() }).unwrap();
    assert_eq!(fs::read(client.file("org/name", "x.bin").unwrap()).unwrap(), large);
    assert_eq!(ranges(&server), [None, Some("bytes=30000-".to_owned())]);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    server.trouble("GET /store", 1, Kind::Cut(30_000));
    server.trouble("GET /store", ALWAYS, Kind::NoRange);
    assert_eq!(fs::read(server.client().file("org/name", "x.bin").unwrap()).unwrap(), large);
}

#[test]
fn a_small_file_cut_short() {
    let server = Server::with_files(&[("config.json", b"{\"a\": 1}")]);
    server.trouble("GET /org", 1, Kind::Cut(3));
    assert_eq!(fs::read(server.client().file("org/name", "config.json").unwrap()).unwrap(), b"{\"a\": 1}");
}

#[test]
fn an_answer_that_is_whole_and_too_short() {
    let server = Server::with_files(&[("config.json", b"{\"a\": 1}")]);
    let client = server.client();
    server.trouble("GET /org", ALWAYS, Kind::Short(3));
    let error = client.file("org/name", "config.json").unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
    assert!(client.clone().with_offline(true).file("org/name", "config.json").is_err());
    server.end_troubles();
    assert_eq!(fs::read(client.file("org/name", "config.json").unwrap()).unwrap(), b"{\"a\": 1}");
}

#[test]
fn a_length_of_nothing_is_not_believed_before_the_download() {
    let server = Server::with_files(&[("config.json", b"{\"a\": 1}")]);
    server.trouble("HEAD", 1, Kind::Answer(200, &[("X-Repo-Commit", FIRST), ("ETag", "abc")], ""));
    assert_eq!(fs::read(server.client().file("org/name", "config.json").unwrap()).unwrap(), b"{\"a\": 1}");
}

#[test]
fn a_range_that_was_not_asked_for() {
    let server = Server::with_files(&[("config.json", b"{\"a\": 1}")]);
    server.trouble("GET /org", 1, Kind::Cut(3));
    server.trouble("GET /org", 1, Kind::OtherRange);
    assert_eq!(fs::read(server.client().file("org/name", "config.json").unwrap()).unwrap(), b"{\"a\": 1}");
}

#[test]
fn other_bytes_than_announced() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    let client = server.client();
    server.trouble("GET /store", ALWAYS, Kind::OtherBytes);
    let error = client.file("org/name", "x.bin").unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
    let blobs = client.cache_dir().join("models--org--name/blobs");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0);
    server.end_troubles();
    assert_eq!(fs::read(client.file("org/name", "x.bin").unwrap()).unwrap(), large);
}

#[test]
fn a_damaged_incomplete_file_is_fetched_anew() {
    let large = large();
    for left_behind in [vec![0; 10], vec![0; large.len()], vec![0; large.len() + 1]] {
        let server = Server::with_files(&[("x.bin", &large)]);
        let blobs = server.client().cache_dir().join("models--org--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&large))), &left_behind).unwrap();
        assert_eq!(fs::read(server.client().file("org/name", "x.bin").unwrap()).unwrap(), large);
        assert_eq!(fs::read_dir(&blobs).unwrap().count(), 1);
    }
}

#[test]
fn an_incomplete_file_that_has_it_all() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    let blobs = server.client().cache_dir().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&large))), &large).unwrap();
    assert_eq!(fs::read(server.client().file("org/name", "x.bin").unwrap()).unwrap(), large);
    assert_eq!(ranges(&server), []);
}

#[test]
fn a_blob_of_another_length_is_fetched_anew() {
    let server = Server::with_files(&[("a", b"whole")]);
    let blobs = server.client().cache_dir().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(etag(b"whole")), b"wh").unwrap();
    assert_eq!(fs::read(server.client().file("org/name", "a").unwrap()).unwrap(), b"whole");
}

#[test]
fn a_server_that_fails_once() {
    let large = large();
    let server = Server::with_files(&[("x.bin", &large)]);
    server.trouble("HEAD /org", 1, Kind::Answer(500, &[], "oops"));
    server.trouble("GET /store", 1, Kind::Answer(503, &[("Retry-After", "0")], ""));
    server.trouble("GET /api", 2, Kind::Answer(502, &[], "<html>"));
    let client = server.client();
    assert_eq!(fs::read(client.file("org/name", "x.bin").unwrap()).unwrap(), large);
    assert_eq!(client.list("org/name").unwrap(), ["x.bin"]);
}

#[test]
fn a_server_that_keeps_failing() {
    let server = Server::with_files(&[("a", b"a")]);
    server.trouble("HEAD /org", ALWAYS, Kind::Answer(503, &[], ""));
    let error = server.client().file("org/name", "a").unwrap_err();
    assert!(matches!(error, HubError::Server { status: 503, .. }), "{error:?}");
    assert_eq!(server.take_requests().len(), 4);
}

#[test]
fn too_many_requests() {
    let server = Server::with_files(&[("a", b"a")]);
    // An hour is not waited for.
    server.trouble("HEAD /org", ALWAYS, Kind::Answer(429, &[("Retry-After", "3600")], ""));
    let error = server.client().file("org/name", "a").unwrap_err();
    assert!(matches!(error, HubError::RateLimited { .. }), "{error:?}");
    assert_eq!(server.take_requests().len(), 1);
}

#[test]
fn a_refusal_that_is_none_of_these() {
    let server = Server::with_files(&[("a", b"a"), ("x.bin", &large())]);
    let disabled = &[("X-Error-Message", "Access to this resource is disabled.")];
    server.trouble("HEAD /org/name/resolve/main/a", 1, Kind::Answer(403, disabled, ""));
    let error = server.client_with_token("hf_good").file("org/name", "a").unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 403, .. }), "{error:?}");
    assert!(error.to_string().ends_with("with status 403 (Access to this resource is disabled)"), "{error}");

    // The store refusing is no word about the token.
    server.trouble("GET /store", ALWAYS, Kind::Answer(403, &[], "<Error>expired</Error>"));
    let error = server.client_with_token("hf_good").file("org/name", "x.bin").unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 403, .. }), "{error:?}");
}

#[test]
fn no_connection() {
    let server = Server::with_files(&[("a", b"a")]);
    let cached = server.client().file("org/name", "a").unwrap();
    // A port that was free a moment ago.
    let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let client = Hub::new(HubOptions { endpoint: format!("http://{address}"), ..server.options() }).unwrap();
    assert_eq!(client.file("org/name", "a").unwrap(), cached);
    for error in [client.file("org/name", "b").unwrap_err(), client.list("org/name").unwrap_err()] {
        assert!(
            matches!(&error, HubError::Network { host, .. } if *host == address.to_string()),
            "{error:?}"
        );
        assert!(error.to_string().contains("check the connection"), "{error}");
    }
}

#[test]
fn answers_without_sense() {
    let server = Server::with_files(&[("a", b"a")]);
    let client = server.client();
    let senseless = |on, kind: Kind| {
        server.trouble(on, ALWAYS, kind);
        let error = if on == "GET /api" {
            client.list("org/name").unwrap_err()
        } else {
            client.file("org/name", "a").unwrap_err()
        };
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error:?}");
        server.end_troubles();
    };
    senseless("GET /api", Kind::Answer(200, &[], "<html>please log in to the hotel</html>"));
    senseless("GET /api", Kind::Answer(200, &[], "{\"sha\":\"111"));
    senseless("GET /api", Kind::Answer(200, &[], "{\"sha\":\"../..\",\"siblings\":[]}"));
    senseless("HEAD", Kind::Answer(200, &[], "<html>please log in to the hotel</html>"));
    senseless("HEAD", Kind::Answer(200, &[("X-Repo-Commit", "../.."), ("ETag", "abc")], "a"));
    senseless("HEAD", Kind::Answer(200, &[("X-Repo-Commit", FIRST), ("ETag", "../../x")], "a"));
    senseless("HEAD", Kind::Answer(302, &[], ""));
    senseless("HEAD", Kind::Answer(302, &[("Location", "/org/name/resolve/main/a")], ""));
    senseless("HEAD", Kind::Answer(302, &[("Location", "file:///etc/passwd")], ""));
    assert!(!client.cache_dir().join("models--org--name/snapshots").exists());
}

#[test]
fn a_cache_that_cannot_be_written() {
    let server = Server::with_files(&[("x.bin", &large())]);
    let file = tempfile::NamedTempFile::new().unwrap();
    // Not by permissions, which root does not have to mind.
    let options = HubOptions { cache_dir: file.path().join("cache"), ..server.options() };
    let error = Hub::new(options).unwrap().file("org/name", "x.bin").unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error:?}");
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    assert_eq!(ranges(&server), [], "found out before the download");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let server = Server::with_files(&[("a", b"a")]);
    let blobs = server.client().cache_dir().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{}.incomplete", etag(b"a")))).unwrap();
    let error = server.client().file("org/name", "a").unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error:?}");
}
