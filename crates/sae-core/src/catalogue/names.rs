//! The names of released SAEs, and globs over them.

use glob::{MatchOptions, Pattern};

use super::{Entry, all, distinct, shown};
use crate::{Result, SaeError};

/// As over files: `*` stays within a part, `**` is any number of parts.
const LIKE_FILES: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The released SAE of this name, in any form that [`matching`] knows.
pub fn find(name: &str) -> Option<Entry> {
    let bare = bare(name);
    all().find(|entry| forms(entry).iter().any(|form| form == bare))
}

/// The released SAEs that a glob names, each once, in the order of [`all`]: layers, widths and L0s as numbers.
///
/// `*`, `?` and `[…]` stand for parts of a name between slashes, `**` for any number of them. What is compared is the name that
/// an entry displays as (`google/` in front may be there or not), `…/canonical` for those that are, and SAELens' release and id:
/// `gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_medium`.
///
/// # Errors
/// [`SaeError::Catalogue`] for a text that is no glob, and for one that nothing fits; it says what is near.
pub fn matching(glob: &str) -> Result<Vec<Entry>> {
    let pattern = pattern(bare(glob))
        .map_err(|problem| SaeError::Catalogue(format!("`{}` is no glob: {problem}", glob.escape_debug())))?;
    let fits = |entry: &Entry| forms(entry).iter().any(|form| pattern.matches_with(form, LIKE_FILES));
    let found: Vec<Entry> = all().filter(fits).collect();
    if found.is_empty() {
        let (glob, near) = (glob.escape_debug(), near(bare(glob)));
        return Err(SaeError::Catalogue(format!("no released SAE fits `{glob}`: {near}")));
    }
    Ok(found)
}

fn pattern(glob: &str) -> Result<Pattern, String> {
    Pattern::new(glob).map_err(|e| e.msg.to_owned())
}

fn bare(name: &str) -> &str {
    let name = name.strip_prefix("google/").unwrap_or(name);
    name.strip_suffix("/params.npz").unwrap_or(name)
}

/// What it may be called, without `google/`; first what it displays as.
fn forms(entry: &Entry) -> Vec<String> {
    let name = entry.to_string();
    let mut forms = vec![bare(&name).to_owned()];
    if entry.canonical {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let below = folder.strip_prefix(entry.release).unwrap_or_default();
        forms.push(format!("{folder}/canonical"));
        forms.push(format!("{}-canonical{below}/canonical", entry.release));
    }
    if entry.size.is_some() {
        // SAELens' ids have no folder in front, but those of transcoders of some layers.
        let id = if entry.folder == Some("transcoder") { entry.path() } else { entry.id() };
        forms.push(format!("{}/{id}", entry.release));
    }
    forms
}

/// What there is as far as the glob leads anywhere.
fn near(glob: &str) -> String {
    let parts: Vec<&str> = glob.split('/').take_while(|part| *part != "**").collect();
    let names: Vec<String> = all().flat_map(|entry| forms(&entry)).collect();
    for depth in (1..=parts.len()).rev() {
        let prefix = parts[..depth].join("/");
        let Ok(pattern) = pattern(&prefix) else { continue };
        let below = |name: &str| {
            let end = name.match_indices('/').map(|(at, _)| at).nth(depth - 1).unwrap_or(name.len());
            let fits = pattern.matches_with(&name[..end], LIKE_FILES);
            fits.then(|| name[end..].trim_start_matches('/').split('/').next().unwrap_or_default().to_owned())
        };
        let values = distinct(names.iter().filter_map(|name| below(name)));
        let prefix = prefix.escape_debug();
        match values.as_slice() {
            [] => (),
            [end] if end.is_empty() => return format!("nothing lies below `{prefix}`"),
            values => return format!("below `{prefix}` there are {}", shown(values)),
        }
    }
    let repos = distinct(all().map(|entry| bare(entry.repo).to_owned()));
    format!("the releases are {}", shown(&repos))
}
