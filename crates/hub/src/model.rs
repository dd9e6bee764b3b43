//! The files of a model in the Hugging Face layout.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{Hub, HubError, RepoId, cache::RepoCache, hub::with_near_names, repo_id::check_file};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What a model may do without.
const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"];

impl Hub {
    /// The folder with the files of a model: `config.json`, `model.safetensors` or else
    /// `model.safetensors.index.json` with every shard that it names, and where the repository has them
    /// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
    ///
    /// The index of shards is the only file that this crate ever looks into.
    ///
    /// # Errors
    /// As [`file`](Self::file), and [`HubError::NoWeights`] or [`HubError::BadIndex`].
    pub fn model_files(
        &self,
        repo: impl TryInto<RepoId, Error: Into<HubError>>,
    ) -> Result<PathBuf, HubError> {
        let repo = &repo.try_into().map_err(Into::into)?;
        let cache = self.cache(repo);
        match cache.commit() {
            Some(commit) if first_missing(&cache, &commit)?.is_none() => {
                self.complete_optional(repo, &cache, &commit)?;
                Ok(cache.snapshot(&commit))
            }
            Some(commit) if self.is_offline() => {
                let missing = first_missing(&cache, &commit)?;
                Err(self.offline_error(repo, missing.as_deref().unwrap_or(CONFIG)))
            }
            None if self.is_offline() => Err(self.offline_error(repo, CONFIG)),
            _ => self.fetch_model(repo, &cache),
        }
    }

    /// Fetches all files of the model as it is on the hub now.
    fn fetch_model(&self, repo: &RepoId, cache: &RepoCache) -> Result<PathBuf, HubError> {
        let now = self.describe(repo)?;
        let has = |file: &str| now.files.iter().any(|name| name == file);
        let weights = match [WEIGHTS, INDEX].into_iter().find(|file| has(file)) {
            Some(weights) => weights,
            None => return Err(HubError::NoWeights { repo: repo.clone() }),
        };
        let (present, absent): (Vec<&str>, Vec<&str>) = OPTIONAL.into_iter().partition(|file| has(file));
        // The small files first: what is wrong with the repository shows before the long download.
        let mut wanted = vec![CONFIG];
        wanted.extend(present);
        wanted.push(weights);
        let fetch = |files: &[&str]| {
            self.fetch(repo, cache, Some(&now.commit), files)
                .map_err(|error| with_near_names(error, &now.files))
        };
        let folder = if weights == INDEX {
            wanted.pop();
            fetch(&[INDEX])?;
            let shards = shards(&cache.snapshot(&now.commit).join(INDEX))?;
            wanted.extend(shards.iter().map(String::as_str));
            fetch(&wanted)?
        } else {
            fetch(&wanted)?
        };
        absent.into_iter().try_for_each(|file| cache.set_absent(&now.commit, file))?;
        Ok(folder)
    }

    /// Fetches those optional files of a model in the cache of which it is not known whether the commit has them.
    /// The weights may come from a program that took nothing else.
    fn complete_optional(&self, repo: &RepoId, cache: &RepoCache, commit: &str) -> Result<(), HubError> {
        let unknown = |file: &&str| !cache.has(commit, file) && !cache.is_absent(commit, file);
        for file in OPTIONAL.into_iter().filter(unknown) {
            if self.is_offline() {
                return Ok(());
            }
            match self.download(repo, cache, file, commit) {
                Ok(_) => {}
                Err(HubError::FileNotFound { .. }) => cache.set_absent(commit, file)?,
                // A model that is whole needs no hub.
                Err(error) if error.is_outage() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The first file that a model needs and the cache lacks.
fn first_missing(cache: &RepoCache, commit: &str) -> Result<Option<String>, HubError> {
    if !cache.has(commit, CONFIG) {
        return Ok(Some(CONFIG.to_owned()));
    }
    if cache.has(commit, WEIGHTS) {
        return Ok(None);
    }
    if !cache.has(commit, INDEX) {
        return Ok(Some(WEIGHTS.to_owned()));
    }
    let shards = shards(&cache.snapshot(commit).join(INDEX))?;
    Ok(shards.into_iter().find(|shard| !cache.has(commit, shard)))
}

/// The files that `weight_map`, which goes from tensors to files, names.
fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let bad = |reason: &str| HubError::BadIndex { path: index.to_owned(), reason: reason.to_owned() };
    let bytes = fs::read(index).map_err(|error| HubError::cache(index, "read", error))?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| bad("it has no object weight_map"))?;
    if map.is_empty() {
        return Err(bad("its weight_map is empty"));
    }
    map.values()
        .map(|shard| {
            let shard =
                shard.as_str().ok_or_else(|| bad("weight_map holds something that is no name of a file"))?;
            check_file(shard)?;
            Ok(shard.to_owned())
        })
        .collect()
}
