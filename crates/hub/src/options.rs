use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::http::{HeaderValue, Uri};

use crate::HubError;

/// The hub itself. hf-hub holds the same address, in a private constant.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, where its cache is, and who asks.
///
/// ```
/// # use hub::{Hub, HubOptions};
/// let hub = Hub::new(HubOptions { offline: true, ..HubOptions::in_folder("some/cache") })?;
/// # Ok::<(), hub::HubError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The address of the hub or of a mirror, `https://…` without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`; made on the first download.
    pub cache_dir: PathBuf,
    /// The user's token, for gated and private repositories.
    pub token: Option<String>,
    /// Never touch the network: what is not in the cache is an error.
    pub offline: bool,
    /// How long a connection may be silent; a whole download may take days.
    pub timeout: Duration,
    /// The pause before the second attempt, the third and so on, where a server fails or a connection breaks.
    /// There is one attempt more than there are pauses. A server may ask for longer ones.
    pub pauses: Vec<Duration>,
}

impl HubOptions {
    /// The public hub, without a token, with its cache in `cache_dir`.
    pub fn in_folder(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            timeout: Duration::from_secs(30),
            pauses: [500, 2_000, 8_000].map(Duration::from_millis).to_vec(),
        }
    }

    /// See [`Hub::from_env`](crate::Hub::from_env), which is the way to call it.
    pub(crate) fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| env::var_os(name), env::home_dir)
    }

    /// The rules of Python's `huggingface_hub`, over any lookup of variables so that they can be tested.
    fn from_vars(
        var: impl Fn(&str) -> Option<OsString>,
        home: impl Fn() -> Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let home = || home().filter(|path| !path.as_os_str().is_empty());
        let first =
            |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let folder = |names: &[&str]| first(names).map(|value| expand_tilde(PathBuf::from(value), home()));

        let hf_home = folder(&["HF_HOME"])
            .or_else(|| folder(&["XDG_CACHE_HOME"]).map(|cache| cache.join("huggingface")))
            .or_else(|| home().map(|home| home.join(".cache/huggingface")));
        let cache_dir = folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
            .ok_or_else(|| HubError::InvalidOption {
                option: "HF_HOME",
                reason: "it is not set and there is no home folder for the cache".to_owned(),
            })?;
        let token = match first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(token) => Some(text("HF_TOKEN", token)?),
            None => match folder(&["HF_TOKEN_PATH"]).or_else(|| hf_home.map(|home| home.join("token"))) {
                Some(path) => read_token(&path)?,
                None => None,
            },
        };
        let endpoint = match first(&["HF_ENDPOINT"]) {
            Some(endpoint) => text("HF_ENDPOINT", endpoint)?,
            None => DEFAULT_ENDPOINT.to_owned(),
        };
        let offline = first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|value| {
            ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        });
        Ok(Self { endpoint, token, offline, ..Self::in_folder(cache_dir) })
    }

    /// The endpoint as a URI, without a slash at the end.
    pub(crate) fn endpoint_uri(&self) -> Result<Uri, HubError> {
        let invalid = |reason: &str| HubError::InvalidOption {
            option: "HF_ENDPOINT",
            reason: format!("{:?} {reason}", self.endpoint),
        };
        let uri: Uri = self
            .endpoint
            .trim()
            .trim_end_matches('/')
            .parse()
            .map_err(|error| invalid(&format!("is no address ({error})")))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(invalid("must start with https:// or http://")),
        }
        if uri.query().is_some() || uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(invalid("must be a scheme, a host and at most a path"));
        }
        Ok(uri)
    }

    /// The value of the `Authorization` header; a file or variable may end in a newline.
    pub(crate) fn authorization(&self) -> Result<Option<HeaderValue>, HubError> {
        let Some(token) = self.token.as_deref().map(str::trim).filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| HubError::InvalidOption {
                option: "HF_TOKEN",
                reason: "the token holds characters that no token has, such as a newline".to_owned(),
            })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Shows that there is a token, never which.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .field("pauses", &self.pauses)
            .finish()
    }
}

fn text(option: &'static str, value: OsString) -> Result<String, HubError> {
    value.into_string().map_err(|_| HubError::InvalidOption { option, reason: "it is not UTF-8".to_owned() })
}

fn expand_tilde(path: PathBuf, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

/// The file that `huggingface-cli login` writes; none is no error.
fn read_token(path: &Path) -> Result<Option<String>, HubError> {
    match fs::read_to_string(path) {
        Ok(token) => Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(HubError::InvalidOption {
            option: "HF_TOKEN_PATH",
            reason: format!("{} cannot be read ({error})", path.display()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> Result<HubOptions, HubError> {
        HubOptions::from_vars(
            |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
            || Some(PathBuf::from("/home/user")),
        )
    }

    #[test]
    fn defaults() {
        let found = options(&[("HF_TOKEN", ""), ("HF_ENDPOINT", ""), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!(found, HubOptions::in_folder("/home/user/.cache/huggingface/hub"));
    }

    #[test]
    fn the_cache_folder() {
        let cache = |vars: &[(&str, &str)]| options(vars).unwrap().cache_dir;
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), Path::new("/home/user/hf/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
    }

    #[test]
    fn no_home_no_cache() {
        let error = HubOptions::from_vars(|_| None, || None).unwrap_err();
        assert!(matches!(error, HubError::InvalidOption { option: "HF_HOME", .. }));
    }

    #[test]
    fn the_token_of_the_variable_wins_over_the_file() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().to_str().unwrap();
        assert_eq!(options(&[("HF_HOME", hf_home)]).unwrap().token, None);
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(options(&[("HF_HOME", hf_home)]).unwrap().token.as_deref(), Some("hf_file"));
        let both = options(&[("HF_HOME", hf_home), ("HF_TOKEN", "hf_var")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("hf_var"));
    }

    #[test]
    fn offline_and_endpoint() {
        let found =
            options(&[("HF_HUB_OFFLINE", "True"), ("HF_ENDPOINT", "https://mirror.example/hf/")]).unwrap();
        assert!(found.offline);
        assert_eq!(found.endpoint_uri().unwrap(), "https://mirror.example/hf");
        for bad in ["huggingface", "ftp://x", "https://", "https://x/?a=b", "https://user:pass@x"] {
            let error = options(&[("HF_ENDPOINT", bad)]).unwrap().endpoint_uri().unwrap_err();
            assert!(matches!(error, HubError::InvalidOption { option: "HF_ENDPOINT", .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let options = HubOptions { token: Some("hf_\nsecret".to_owned()), ..HubOptions::in_folder("c") };
        let error = options.authorization().unwrap_err();
        assert!(!format!("{options:?} {error} {error:?}").contains("secret"));
        let padded = HubOptions { token: Some(" hf_x\n".to_owned()), ..options };
        assert_eq!(padded.authorization().unwrap().unwrap(), "Bearer hf_x");
    }
}
