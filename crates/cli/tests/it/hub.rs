//! Names of the hub, against nothing and against a stand-in that says what the hub would.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::command::{expect_refusal, finish, gemma_scope};

/// Answers every request with one status and some headers, for as long as the test runs. (`crates/hub` has a full stand-in.)
fn stand_in(status: &'static str, headers: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = answer(stream.unwrap(), status, headers);
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

const SAE: &str = "gemma-scope-2b-pt-res/layer_20/width_16k/canonical";

/// Asks for a released SAE with this environment.
fn ask(environment: &[(&str, &str)], rest: &[&str]) -> crate::command::Run {
    let cache = tempfile::tempdir().unwrap();
    let mut command = gemma_scope();
    command.env_remove("HF_HUB_OFFLINE").env("HF_HOME", cache.path()).envs(environment.iter().copied());
    command.args(["inspect", SAE]).args(rest);
    finish(command)
}

#[test]
fn offline_and_not_cached() {
    expect_refusal(&ask(&[], &["--offline"]), &["google/gemma-scope-2b-pt-res", "offline"]);
}

#[test]
fn no_network() {
    // A port that was just free: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    expect_refusal(&ask(&[("HF_ENDPOINT", &endpoint)], &[]), &["127.0.0.1"]);
}

#[test]
fn gated_without_a_token() {
    let endpoint = stand_in("401 Unauthorized", "X-Error-Code: GatedRepo\r\n");
    expect_refusal(
        &ask(&[("HF_ENDPOINT", &endpoint)], &[]),
        &["gated", "HF_TOKEN", "google/gemma-scope-2b-pt-res"],
    );
}

#[test]
fn a_wrong_token() {
    let endpoint =
        stand_in("401 Unauthorized", "X-Error-Message: Invalid credentials in Authorization header\r\n");
    let run = ask(&[("HF_ENDPOINT", &endpoint), ("HF_TOKEN", "hf_wrong")], &[]);
    expect_refusal(&run, &["token"]);
    assert!(!run.stderr.contains("hf_wrong"), "a token is never shown");
}

#[test]
fn a_missing_file() {
    let endpoint = stand_in("404 Not Found", "X-Error-Code: EntryNotFound\r\n");
    expect_refusal(
        &ask(&[("HF_ENDPOINT", &endpoint)], &[]),
        &["layer_20/width_16k/average_l0_71/params.npz"],
    );
}
