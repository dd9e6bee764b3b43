use std::{fmt, str::FromStr};

use crate::HubError;

/// The branch that a name without `@revision` means.
const DEFAULT_REVISION: &str = "main";

/// The hub's own limit for each half of `org/name`.
const MAX_PART: usize = 96;

/// A model repository on the hub at a revision: `org/name` or `org/name@revision`.
///
/// The revision is a branch (`main` unless given), a tag, a pull request (`refs/pr/3`) or a commit (40 hex
/// digits). A full commit is the only revision that always means the same files.
///
/// ```
/// # use hub::RepoId;
/// let repo: RepoId = "google/gemma-2-2b@v1.0".parse()?;
/// assert_eq!((repo.name(), repo.revision()), ("google/gemma-2-2b", "v1.0"));
/// assert!("google/gemma-scope-2b-pt-res/layer_20".parse::<RepoId>().is_err());
/// # Ok::<(), hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId {
    name: String,
    revision: String,
}

impl RepoId {
    /// The repository `name` (`org/name`) at `revision`.
    ///
    /// # Errors
    /// [`HubError::InvalidRepo`] where either breaks the hub's rules for names.
    pub fn new(name: &str, revision: &str) -> Result<Self, HubError> {
        check_name(name)
            .and_then(|()| check_revision(revision))
            .map_err(|reason| HubError::InvalidRepo { name: format!("{name}@{revision}"), reason })?;
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// `org/name`, without the revision.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The same repository at another revision, for the commits that the hub itself names.
    pub(crate) fn at(&self, commit: &str) -> hf_hub::Repo {
        hf_hub::Repo::with_revision(self.name.clone(), hf_hub::RepoType::Model, commit.to_owned())
    }
}

/// `org/name`, and `@revision` only where it is not `main`.
impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        Self::new(name, revision).map_err(|error| match error {
            HubError::InvalidRepo { reason, .. } => HubError::InvalidRepo { name: text.to_owned(), reason },
            other => other,
        })
    }
}

impl TryFrom<&str> for RepoId {
    type Error = HubError;

    fn try_from(text: &str) -> Result<Self, HubError> {
        text.parse()
    }
}

impl TryFrom<&String> for RepoId {
    type Error = HubError;

    fn try_from(text: &String) -> Result<Self, HubError> {
        text.parse()
    }
}

impl TryFrom<String> for RepoId {
    type Error = HubError;

    fn try_from(text: String) -> Result<Self, HubError> {
        text.parse()
    }
}

impl From<&Self> for RepoId {
    fn from(repo: &Self) -> Self {
        repo.clone()
    }
}

/// The hub's rules. They also keep the name of the cache folder, where `/` becomes `--`, unambiguous.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.contains('\\') {
        return Err("a backslash is not allowed");
    }
    let Some((org, rest)) = name.split_once('/') else {
        return Err("the organisation before the slash is missing");
    };
    if org.is_empty() || rest.is_empty() {
        return Err("the part before or after the slash is empty");
    }
    if rest.contains('/') {
        return Err("there is more than one slash");
    }
    [org, rest].into_iter().try_for_each(check_part)
}

fn check_part(part: &str) -> Result<(), &'static str> {
    if part.len() > MAX_PART {
        return Err("a part is longer than 96 characters");
    }
    if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err("only letters, digits and - _ . are allowed");
    }
    if part.contains("..") || part.contains("--") {
        return Err(".. and -- are not allowed");
    }
    if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
        return Err("a part may not start or end with - or .");
    }
    if part.ends_with(".git") {
        return Err("a part may not end with .git");
    }
    Ok(())
}

/// A part of git's rules for references, and nothing that a URL or a path would read otherwise.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() {
        return Err("the revision is empty");
    }
    if !revision.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+/".contains(&b)) {
        return Err("only letters, digits and - _ . + / are allowed in a revision");
    }
    if revision.contains("..") || revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return Err("a revision may not hold .., an empty part or a part that starts with a dot");
    }
    Ok(())
}

/// Refuses every path that could leave the snapshot folder or that names no file.
pub(crate) fn check_file(file: &str) -> Result<(), HubError> {
    let reason = if file.is_empty() {
        "the path is empty"
    } else if file.contains('\\') {
        "a backslash is not allowed, folders are separated by /"
    } else if file.starts_with('/') || file.as_bytes().get(1) == Some(&b':') {
        "the path is absolute"
    } else if file.chars().any(char::is_control) {
        "control characters are not allowed"
    } else if file.ends_with('/') {
        "the path is that of a folder"
    } else if file.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "empty parts, . and .. are not allowed"
    } else {
        return Ok(());
    };
    Err(HubError::InvalidFile { file: file.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_survive_a_round_trip() {
        for text in ["google/gemma-2-2b", "a/b", "EleutherAI/pythia_70m.v0", "a/b@refs/pr/3", "a/b@v1.0+x"] {
            let repo: RepoId = text.parse().unwrap();
            assert_eq!(repo.to_string(), text);
            assert_eq!(RepoId::from(&repo), repo);
        }
        assert_eq!("a/b@main".parse::<RepoId>().unwrap().to_string(), "a/b");
    }

    #[test]
    fn bad_names_are_refused() {
        let long = format!("a/{}", "x".repeat(97));
        let bad = [
            "",
            "/",
            "gpt2",
            "/a/b",
            "a/",
            "/b",
            "a/b/c",
            "a\\b",
            "../b",
            "a/..",
            "a/b..c",
            "a/b--c",
            "-a/b",
            "a/b.",
            "a /b",
            "a/b\n",
            "a/b.git",
            "ä/b",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@x/",
            "a/b@x y",
            "a/b@x\\y",
            "a/b@x@y",
            "a/b@.x",
            "a/b@%2e",
            "https://a/b",
            &long,
        ];
        for text in bad {
            let error = text.parse::<RepoId>().unwrap_err();
            assert!(
                matches!(&error, HubError::InvalidRepo { name, .. } if name == text),
                "{text:?}: {error:?}"
            );
        }
    }

    #[test]
    fn bad_files_are_refused() {
        for file in
            ["config.json", "layer_20/width_16k/average_l0_71/params.npz", ".gitattributes", "a b/ü#?.txt"]
        {
            check_file(file).unwrap();
        }
        for file in
            ["", "/etc/passwd", "..", "../x", "a/../b", "a/./b", "a//b", "a/", "a\\b", "C:/x", "a\0b", "a\nb"]
        {
            assert!(check_file(file).is_err(), "{file:?}");
        }
    }
}
