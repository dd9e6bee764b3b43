//! Requests to the hub, and what its answers mean.
//!
//! hf-hub 0.5 has a client, and this crate does not use it, because with it some of the promises of this crate
//! cannot be kept: `Api::metadata` sends the token to whatever host the hub redirects to; statuses become
//! errors without headers, so a gated, a missing and a private repository look alike; nothing has a timeout; an empty file,
//! a weak ETag and a server without ranges are failures or corrupt files; the hash and the length are not
//! compared. It is built on ureq, and so is this.

use std::{
    io::{self, Read},
    thread,
    time::Duration,
};

use ureq::{
    Agent, Body, Proxy,
    http::{HeaderMap, HeaderValue, Response, Uri, header, uri::PathAndQuery},
    tls::{TlsConfig, TlsProvider},
};

use crate::{HubError, HubOptions, RepoId};

/// A server that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 8;
/// A list of files has some hundred bytes per file; nothing else is read into memory.
const MAX_DOCUMENT: u64 = 256 << 20;
const MAX_ERROR_TEXT: u64 = 16 << 10;

const X_ERROR_CODE: &str = "x-error-code";
const X_ERROR_MESSAGE: &str = "x-error-message";
pub(crate) const X_REPO_COMMIT: &str = "x-repo-commit";
pub(crate) const X_LINKED_ETAG: &str = "x-linked-etag";
pub(crate) const X_LINKED_SIZE: &str = "x-linked-size";

/// The client: where the hub is and who asks it.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    agent: Agent,
    endpoint: Uri,
    authorization: Option<HeaderValue>,
    /// See [`HubOptions::pauses`].
    pub(crate) pauses: Vec<Duration>,
}

/// What went wrong, before it is known which repository it is about.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No answer. `passing`: the connection broke where the next one may not.
    Network { host: String, reason: String, passing: bool },
    /// An answer without sense.
    Answer { host: String, reason: String },
    /// An answer that is no success.
    Status(Refusal),
}

#[derive(Debug)]
pub(crate) struct Refusal {
    host: String,
    /// Whether the hub itself answered, and not a store that it redirected to.
    of_hub: bool,
    status: u16,
    /// `X-Error-Code`, or empty.
    code: String,
    /// `X-Error-Message` or the text of the body, or empty.
    message: String,
    retry_after: Option<Duration>,
}

/// What a fault is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) repo: &'a RepoId,
    /// The branch, tag or commit that was asked for.
    pub(crate) at: &'a str,
    pub(crate) file: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    /// Stops at a redirect to another host, whose headers are then not those of the hub.
    Head,
    Get,
}

impl Wire {
    pub(crate) fn new(options: &HubOptions, proxy: Option<Proxy>) -> Result<Self, HubError> {
        let timeout = Some(options.timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, since the token may go to some of them only.
            .max_redirects(0)
            .proxy(proxy)
            .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).build())
            .user_agent(concat!("gemma-scope-hub/", env!("CARGO_PKG_VERSION")))
            // A compressed answer has neither the length nor the ranges of the file.
            .accept_encoding("identity")
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            // Not `timeout_recv_body`, which is for the whole body.
            .timeout_per_read(timeout)
            .timeout_per_write(timeout)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint: options.endpoint_uri()?,
            authorization: options.authorization()?,
            pauses: options.pauses.clone(),
        })
    }

    /// The headers of a file, those of the last answer that came from the hub itself. The length is in
    /// `Content-Length` unless the answer was a redirect to another host.
    pub(crate) fn head(&self, url: &str) -> Result<HeaderMap, Fault> {
        let headers = |response: Response<Body>| {
            let mut headers = response.headers().clone();
            if response.status().is_redirection() {
                headers.remove(header::CONTENT_LENGTH);
            }
            headers
        };
        self.with_retries(|| match self.send(Method::Head, url, 0) {
            // Some mirrors put the reason into the body only, which HEAD does not have, or do not know HEAD.
            Err(Fault::Status(refusal)) if refusal.is_mute() => self.send(Method::Get, url, 0).map(headers),
            answer => answer.map(headers),
        })
    }

    /// The bytes of a file from byte `from` on; the caller looks whether the server kept to it.
    pub(crate) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Fault> {
        self.with_retries(|| self.send(Method::Get, url, from))
    }

    /// A small document, whole.
    pub(crate) fn document(&self, url: &str) -> Result<Vec<u8>, Fault> {
        self.with_retries(|| {
            let response = self.send(Method::Get, url, 0)?;
            let mut bytes = Vec::new();
            let read = response.into_body().into_reader().take(MAX_DOCUMENT).read_to_end(&mut bytes);
            match read {
                Ok(_) => Ok(bytes),
                Err(error) => {
                    Err(Fault::Network { host: self.host(), reason: error.to_string(), passing: true })
                }
            }
        })
    }

    /// The address of a file.
    pub(crate) fn file_url(&self, subject: Subject<'_>) -> String {
        let repo = subject.repo.at(subject.at);
        let file = escape(subject.file.unwrap_or_default());
        format!("{}/{}/resolve/{}/{file}", self.base(), repo.url(), repo.url_revision())
    }

    /// The address of the description of a repository.
    pub(crate) fn info_url(&self, subject: Subject<'_>) -> String {
        format!("{}/api/{}", self.base(), subject.repo.at(subject.at).api_url())
    }

    /// Says what a fault means for the user.
    pub(crate) fn explain(&self, fault: Fault, subject: Subject<'_>) -> HubError {
        let repo = subject.repo.clone();
        match fault {
            Fault::Network { host, reason, .. } => HubError::Network { repo, host, reason },
            Fault::Answer { host, reason } => HubError::BadAnswer { repo, host, reason },
            Fault::Status(refusal) => self.explain_refusal(refusal, subject),
        }
    }

    /// The names and texts are the hub's; `hf_raise_for_status` of Python's `huggingface_hub` reads the same.
    fn explain_refusal(&self, refusal: Refusal, subject: Subject<'_>) -> HubError {
        let repo = subject.repo.clone();
        let has_token = self.authorization.is_some();
        let text = refusal.message.to_lowercase();
        let gated = refusal.code == "GatedRepo" || text.contains("gated") || text.contains("is restricted");
        let disabled = text.contains("is disabled");
        let Refusal { host, of_hub, status, code, message, .. } = refusal;
        let missing = || match subject.file {
            Some(file) => {
                HubError::FileNotFound { repo: repo.clone(), file: file.to_owned(), near: Vec::new() }
            }
            None => HubError::RepoNotFound { repo: repo.clone() },
        };
        match status {
            429 => HubError::RateLimited { repo, host },
            500.. => HubError::Server { repo, host, status },
            _ if !of_hub => HubError::Refused { repo, host, status, message },
            401 | 403 if gated && !has_token => HubError::Gated { repo },
            401 | 403 if gated => HubError::NoAccess { repo, message },
            // What the hub says to strangers of a repository that is private or does not exist.
            401 if !has_token || code == "RepoNotFound" => HubError::RepoNotFound { repo },
            401 => HubError::TokenRejected { repo },
            403 if has_token && !disabled => HubError::NoAccess { repo, message },
            404 => match code.as_str() {
                "RepoNotFound" => HubError::RepoNotFound { repo },
                "RevisionNotFound" => HubError::RevisionNotFound { repo, revision: subject.at.to_owned() },
                "EntryNotFound" => missing(),
                _ if text.contains("repository not found") => HubError::RepoNotFound { repo },
                _ if text.contains("invalid rev") => {
                    HubError::RevisionNotFound { repo, revision: subject.at.to_owned() }
                }
                _ => missing(),
            },
            _ => HubError::Refused { repo, host, status, message },
        }
    }

    /// Does `attempt` again, after a pause, while its fault is of the kind that passes.
    fn with_retries<T>(&self, attempt: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut pauses = self.pauses.iter();
        loop {
            let result = attempt();
            let Some(wish) = result.as_ref().err().and_then(Fault::retry_after) else { return result };
            let Some(pause) = pauses.next() else { return result };
            thread::sleep(wish.max(*pause));
        }
    }

    /// One request and the redirects it leads to.
    fn send(&self, method: Method, url: &str, from: u64) -> Result<Response<Body>, Fault> {
        let mut url: Uri =
            url.parse().map_err(|error| self.nonsense(format!("{url:?} is no address: {error}")))?;
        let mut carried = HeaderMap::new();
        for _ in 0..=MAX_REDIRECTS {
            let of_hub = same_origin(&url, &self.endpoint);
            let mut request =
                if method == Method::Head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(authorization) = self.authorization.as_ref().filter(|_| of_hub) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let mut response = request.call().map_err(|error| Fault::of_call(&url, error))?;
            let status = response.status();
            if !status.is_redirection() {
                if !status.is_success() && status.as_u16() != 416 {
                    return Err(Fault::Status(Refusal::read(&url, of_hub, response)));
                }
                restore(response.headers_mut(), carried);
                return Ok(response);
            }
            let next = self.redirect(&url, response.headers())?;
            if method == Method::Head && !same_origin(&next, &self.endpoint) {
                restore(response.headers_mut(), carried);
                return Ok(response);
            }
            // A renamed repository, or the hub's own cache of small files, answers in two steps; the first may be
            // the one that names the commit.
            for name in [X_REPO_COMMIT, X_LINKED_ETAG, X_LINKED_SIZE] {
                if let Some(value) = response.headers_mut().remove(name) {
                    carried.insert(name, value);
                }
            }
            url = next;
        }
        Err(self.nonsense(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn redirect(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, Fault> {
        let location = headers
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| self.nonsense("a redirect that does not say where to".to_owned()))?;
        let next = join(from, location)
            .ok_or_else(|| self.nonsense(format!("a redirect to {location:?}, which is no address")))?;
        // Whoever can read and change the answer could send other weights.
        if from.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
            return Err(self.nonsense("a redirect from https to http".to_owned()));
        }
        Ok(next)
    }

    pub(crate) fn nonsense(&self, reason: String) -> Fault {
        Fault::Answer { host: self.host(), reason }
    }

    /// The host of the hub, with its port where it has one.
    pub(crate) fn host(&self) -> String {
        host_of(&self.endpoint)
    }

    fn base(&self) -> String {
        self.endpoint.to_string().trim_end_matches('/').to_owned()
    }
}

impl Fault {
    fn of_call(url: &Uri, error: ureq::Error) -> Self {
        let host = host_of(url);
        let reason = error.to_string();
        match error {
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) | ureq::Error::Http(_) => {
                Self::Answer { host, reason }
            }
            ureq::Error::Io(error) => Self::Network { host, reason, passing: is_passing(error.kind()) },
            _ => Self::Network { host, reason, passing: false },
        }
    }

    /// The pause that the server asks for where another attempt may help, `None` where it would not.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Network { passing: true, .. } => Some(Duration::ZERO),
            Self::Status(refusal) if matches!(refusal.status, 429 | 500 | 502 | 503 | 504) => {
                Some(refusal.retry_after.unwrap_or_default()).filter(|pause| *pause <= LONGEST_PAUSE)
            }
            _ => None,
        }
    }
}

impl Refusal {
    fn read(url: &Uri, of_hub: bool, response: Response<Body>) -> Self {
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().trim().to_owned()
        };
        let (code, message) = (text(X_ERROR_CODE), text(X_ERROR_MESSAGE));
        let retry_after = text(header::RETRY_AFTER.as_str()).parse().ok().map(Duration::from_secs);
        let status = response.status().as_u16();
        let message = if message.is_empty() { read_message(response) } else { message };
        Self { host: host_of(url), of_hub, status, code, message, retry_after }
    }

    /// A refusal of the client without a word of why.
    fn is_mute(&self) -> bool {
        self.of_hub
            && (400..500).contains(&self.status)
            && self.status != 429
            && self.code.is_empty()
            && self.message.is_empty()
    }
}

/// `{"error": "…"}`, or a short plain text. The page of a proxy is no message.
fn read_message(response: Response<Body>) -> String {
    let mut bytes = Vec::new();
    // What could be read is enough: this only explains another error.
    let _ = response.into_body().into_reader().take(MAX_ERROR_TEXT).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let error = json.as_ref().and_then(|json| json["error"].as_str());
    let message =
        error.unwrap_or(if json.is_some() || text.trim_start().starts_with('<') { "" } else { &text });
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// Failures of a connection that was there, as opposed to one that cannot be made.
fn is_passing(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(kind, Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof)
}

fn restore(headers: &mut HeaderMap, carried: HeaderMap) {
    for (name, value) in carried {
        if let Some(name) = name {
            headers.entry(name).or_insert(value);
        }
    }
}

/// Scheme, host and port: another port may be another server.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

fn port(uri: &Uri) -> Option<u16> {
    uri.port_u16().or_else(|| if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) })
}

fn host_of(uri: &Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

/// The address that a `Location` means when it stands in the answer of `base`.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let text = if location.starts_with("//") {
        format!("{}:{location}", base.scheme_str()?)
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let path = base.path_and_query().map_or("/", PathAndQuery::path);
        let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        let folder = if location.starts_with('/') { "" } else { folder };
        format!("{}://{}{folder}{location}", base.scheme_str()?, base.authority()?)
    };
    let uri: Uri = text.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()))
        .then_some(uri)
}

/// Percent-encodes a path; hf-hub puts it into the address as it is, and a `#` or `?` ends the path there.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations_are_joined() {
        let base = uri("https://hub.example/org/name/resolve/main/a/b.bin?x=y");
        for (location, expected) in [
            ("https://cdn.example/x?sig=a%2Fb", "https://cdn.example/x?sig=a%2Fb"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/x?y=z#part", "https://hub.example/api/x?y=z"),
            ("c.bin", "https://hub.example/org/name/resolve/main/a/c.bin"),
        ] {
            assert_eq!(join(&base, location), Some(uri(expected)), "{location}");
        }
        for bad in ["ftp://x/y", "https://", "/a b", "file:///etc/passwd"] {
            assert_eq!(join(&base, bad), None, "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = uri("https://hub.example");
        for same in ["https://hub.example/x", "https://HUB.example:443/x"] {
            assert!(same_origin(&hub, &uri(same)), "{same}");
        }
        for other in ["http://hub.example/x", "https://hub.example:8443/x", "https://cdn.hub.example/x"] {
            assert!(!same_origin(&hub, &uri(other)), "{other}");
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("layer_20/average_l0_71/params.npz"), "layer_20/average_l0_71/params.npz");
        assert_eq!(escape("a b/ü#?%.txt"), "a%20b/%C3%BC%23%3F%25.txt");
    }

    #[test]
    fn https_may_not_become_http() {
        let wire = Wire::new(&HubOptions::in_folder("unused"), None).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("http://cdn.example/x"));
        assert!(matches!(wire.redirect(&uri("https://hub.example/x"), &headers), Err(Fault::Answer { .. })));
        assert!(wire.redirect(&uri("http://hub.example/x"), &headers).is_ok());
    }
}
