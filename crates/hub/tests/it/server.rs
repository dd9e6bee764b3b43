//! A server that speaks as much of the hub as this crate needs, and a second one that it redirects to, as the hub
//! does to the store of large files. Every connection serves one request and every socket has a timeout.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use hub::{Hub, HubOptions};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The commits of every repository, the one that `main` stands at is [`Repo::commit`].
pub(crate) const FIRST: &str = "1111111111111111111111111111111111111111";
pub(crate) const SECOND: &str = "2222222222222222222222222222222222222222";

pub(crate) const GOOD_TOKEN: &str = "hf_good";
pub(crate) const OUTSIDER_TOKEN: &str = "hf_outsider";

/// Files larger than this lie in the store, under their SHA-256.
const LARGE: usize = 100;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) of_hub: bool,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub(crate) commit: String,
    /// The files of each commit.
    pub(crate) commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub(crate) gated: bool,
}

/// What goes wrong, for requests whose method and path, `GET /path`, contain `on`.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) on: &'static str,
    pub(crate) times: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// This status, these headers, this body.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The connection closes after so many bytes of the body.
    Cut(usize),
    /// So many bytes of the body are sent, and then nothing until the client goes away.
    Stall(usize),
    /// The answer is whole, and the body shorter than the file.
    Short(usize),
    /// A range starts one byte early.
    OtherRange,
    /// `Range` is not known.
    NoRange,
    /// The bytes of the body are others, as many.
    OtherBytes,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) repos: BTreeMap<String, Repo>,
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) requests: Vec<Request>,
    stop: bool,
}

pub(crate) struct Server {
    hub: SocketAddr,
    store: SocketAddr,
    state: Arc<Mutex<State>>,
    threads: Vec<JoinHandle<()>>,
    cache: TempDir,
}

impl Server {
    /// With the repository `org/name` at [`FIRST`] and an empty cache.
    pub(crate) fn with_files(files: &[(&str, &[u8])]) -> Self {
        let listen = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (hub, store) = (listen(), listen());
        let mut server = Self {
            hub: hub.local_addr().unwrap(),
            store: store.local_addr().unwrap(),
            state: Arc::default(),
            threads: Vec::new(),
            cache: tempfile::tempdir().unwrap(),
        };
        server.add_repo("org/name", files);
        let store_addr = server.store;
        for (listener, of_hub) in [(hub, true), (store, false)] {
            let state = Arc::clone(&server.state);
            server.threads.push(thread::spawn(move || {
                for stream in listener.incoming() {
                    if state.lock().unwrap().stop {
                        return;
                    }
                    let state = Arc::clone(&state);
                    // A client that goes away in the middle is its own business.
                    thread::spawn(move || {
                        stream.ok().and_then(|stream| serve(&stream, of_hub, store_addr, &state))
                    });
                }
            }));
        }
        server
    }

    pub(crate) fn add_repo(&self, name: &str, files: &[(&str, &[u8])]) {
        let commits = BTreeMap::from([(FIRST.to_owned(), owned(files))]);
        self.state().repos.insert(name.to_owned(), Repo { commit: FIRST.to_owned(), commits, gated: false });
    }

    /// Moves `main` of `org/name` to [`SECOND`].
    pub(crate) fn move_branch(&self, files: &[(&str, &[u8])]) {
        self.edit(|repo| {
            repo.commit = SECOND.to_owned();
            repo.commits.insert(SECOND.to_owned(), owned(files));
        });
    }

    pub(crate) fn edit(&self, edit: impl FnOnce(&mut Repo)) {
        edit(self.state().repos.get_mut("org/name").unwrap());
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn trouble(&self, on: &'static str, times: usize, kind: Kind) {
        self.state().troubles.push(Trouble { on, times, kind });
    }

    pub(crate) fn end_troubles(&self) {
        self.state().troubles.clear();
    }

    /// The requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub(crate) fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: format!("http://{}", self.hub),
            pauses: vec![Duration::from_millis(1); 3],
            ..HubOptions::in_folder(self.cache.path())
        }
    }

    pub(crate) fn client(&self) -> Hub {
        Hub::new(self.options()).unwrap()
    }

    pub(crate) fn client_with_token(&self, token: &str) -> Hub {
        Hub::new(HubOptions { token: Some(token.to_owned()), ..self.options() }).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not through a poisoned lock, or a failed test aborts.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stop = true;
        for address in [self.hub, self.store] {
            drop(TcpStream::connect_timeout(&address, TIMEOUT));
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn owned(files: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i * i % 251) as u8).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the blob: of the length of a git hash for a small file.
pub(crate) fn etag(bytes: &[u8]) -> String {
    let mut hash = sha256(bytes);
    if bytes.len() <= LARGE {
        hash.truncate(40);
    }
    hash
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { status, headers, body: body.into() }
    }

    fn refusal(status: u16, code: &str, message: &str) -> Self {
        Self::new(
            status,
            &[("X-Error-Code", code), ("X-Error-Message", message)],
            format!("{{\"error\":\"{message}\"}}"),
        )
    }
}

fn serve(stream: &TcpStream, of_hub: bool, store: SocketAddr, state: &Mutex<State>) -> Option<()> {
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    stream.set_nodelay(true).ok()?;
    let request = read_request(stream, of_hub)?;
    let (mut stalls, mut early) = (false, 0);
    let (answer, cut, ranges) = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let line = format!("{} {}", request.method, request.path);
        let trouble =
            state.troubles.iter_mut().find(|trouble| trouble.times > 0 && line.contains(trouble.on));
        let kind = trouble.map(|trouble| {
            trouble.times -= 1;
            trouble.kind.clone()
        });
        match kind {
            Some(Kind::Answer(status, headers, body)) => (Answer::new(status, headers, body), None, true),
            kind => {
                let mut answer = answer(&request, &state, store);
                if matches!(kind, Some(Kind::OtherBytes)) {
                    answer.body.iter_mut().for_each(|byte| *byte ^= 1);
                }
                let cut = if let Some(Kind::Cut(length) | Kind::Stall(length)) = kind {
                    Some(length)
                } else {
                    None
                };
                stalls = matches!(kind, Some(Kind::Stall(_)));
                if let Some(Kind::Short(length)) = kind
                    && request.method == "GET"
                {
                    answer.body.truncate(length);
                }
                early = usize::from(matches!(kind, Some(Kind::OtherRange)));
                (answer, cut, !matches!(kind, Some(Kind::NoRange)))
            }
        }
    };
    write_answer(stream, &request, answer, cut, ranges.then_some(early))?;
    if stalls {
        let mut stream = stream;
        let _until_closed = stream.read(&mut [0]);
    }
    Some(())
}

fn read_request(stream: &TcpStream, of_hub: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { of_hub, method, path, headers })
}

fn answer(request: &Request, state: &State, store: SocketAddr) -> Answer {
    if !request.of_hub {
        let all = state.repos.values().flat_map(|repo| repo.commits.values()).flat_map(BTreeMap::values);
        let wanted = request.path.trim_start_matches("/store/");
        return match all.into_iter().find(|bytes| sha256(bytes) == wanted) {
            // A store refuses a signed address that comes with another signature.
            Some(_) if request.headers.contains_key("authorization") => {
                Answer::new(400, &[], "two signatures")
            }
            Some(bytes) => Answer::new(200, &[], bytes.clone()),
            None => Answer::new(404, &[], "<Error/>"),
        };
    }
    let token = request.headers.get("authorization").map(|value| value.trim_start_matches("Bearer "));
    if token.is_some_and(|token| ![GOOD_TOKEN, OUTSIDER_TOKEN].contains(&token)) {
        return Answer::refusal(401, "", "Invalid credentials in Authorization header");
    }
    let path = unescape(&request.path);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (name, revision, file) = match parts.as_slice() {
        ["api", "models", org, name, "revision", revision] => (format!("{org}/{name}"), *revision, None),
        [org, name, "resolve", revision, file @ ..] => {
            (format!("{org}/{name}"), *revision, Some(file.join("/")))
        }
        _ => return Answer::new(404, &[], "<html>no such page</html>"),
    };
    let Some(repo) = state.repos.get(&name) else {
        let status = if token.is_some() { 404 } else { 401 };
        return Answer::refusal(status, "RepoNotFound", "Repository not found");
    };
    let commit = if matches!(revision, "main" | "refs%2Fpr%2F3") { repo.commit.as_str() } else { revision };
    let Some(files) = repo.commits.get(commit) else {
        return Answer::refusal(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let Some(file) = file else {
        let names: Vec<String> =
            files.keys().rev().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        return Answer::new(200, &[], format!("{{\"sha\":\"{commit}\",\"siblings\":[{}]}}", names.join(",")));
    };
    if repo.gated && token.is_none() {
        return Answer::refusal(401, "GatedRepo", "Access to model org/name is restricted.");
    }
    if repo.gated && token == Some(OUTSIDER_TOKEN) {
        return Answer::refusal(403, "GatedRepo", "You are not in the authorized list.");
    }
    let Some(bytes) = files.get(&file) else {
        return Answer::refusal(404, "EntryNotFound", "Entry not found");
    };
    let (etag, size) = (etag(bytes), bytes.len().to_string());
    if bytes.len() <= LARGE {
        return Answer::new(
            200,
            &[("X-Repo-Commit", commit), ("ETag", &format!("\"{etag}\""))],
            bytes.clone(),
        );
    }
    let headers = [
        ("Location", format!("http://{store}/store/{etag}")),
        ("X-Repo-Commit", commit.to_owned()),
        ("X-Linked-Etag", format!("\"{etag}\"")),
        ("X-Linked-Size", size),
        ("ETag", "\"of-the-redirect\"".to_owned()),
    ];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Answer::new(302, &headers, "Found. Redirecting")
}

fn write_answer(
    mut stream: &TcpStream,
    request: &Request,
    answer: Answer,
    cut: Option<usize>,
    // How much too early ranges start, if they are known.
    early: Option<usize>,
) -> Option<()> {
    let Answer { mut status, mut headers, mut body } = answer;
    let start =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start = start.and_then(|start| start.parse::<usize>().ok()).filter(|_| status == 200);
    if let (Some(start), Some(early)) = (start, early) {
        let start = start - early;
        let size = body.len();
        if start < size {
            status = 206;
            body.drain(..start);
            headers.push(("Content-Range".to_owned(), format!("bytes {start}-{}/{size}", size - 1)));
        } else {
            status = 416;
            body.clear();
            headers.push(("Content-Range".to_owned(), format!("bytes */{size}")));
        }
    }
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n", body.len()).ok()?;
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        write!(stream, "{name}: {value}\r\n").ok()?;
    }
    stream.write_all(b"\r\n").ok()?;
    if request.method != "HEAD" {
        body.truncate(cut.unwrap_or(usize::MAX));
        stream.write_all(&body).ok()?;
    }
    stream.flush().ok()
}

/// Undoes percent-encoding, of everything but the slash.
fn unescape(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.split('%');
    bytes.extend(rest.next().unwrap_or_default().bytes());
    for part in rest {
        match (&part[..2], u8::from_str_radix(&part[..2], 16)) {
            (code, Ok(byte)) if code != "2F" => bytes.push(byte),
            (code, _) => bytes.extend(format!("%{code}").bytes()),
        }
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).unwrap()
}
