use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use hooks::HookPoint;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::{
    ActivationError, Cursor, Dtype, Moments, Normalisation, Result, Scale, Site, Store, error::one_line,
};

/// The manifest's name in its folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// What a harvested folder holds: `manifest.json`.
///
/// A shard is one file for each site, `SITE/NUMBER.DTYPE`: rows one after the other, little-endian, without a header. All files of a
/// shard are there before the manifest lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's number, 1.
    pub format: u32,
    /// The model's name.
    pub model: String,
    /// What tells the model from others of its name.
    pub model_fingerprint: String,
    /// What tells the text from others, with all that decides which tokens are made of it.
    pub text_fingerprint: String,
    /// How numbers are stored.
    pub dtype: Dtype,
    /// The sites, in the order of each shard's files.
    pub sites: Vec<Site>,
    /// Rows of each shard but the last.
    pub shard_rows: u64,
    /// How many rows were asked for; all that the text gives if not said.
    pub rows: Option<u64>,
    /// Whether the harvest came to its end.
    pub complete: bool,
    /// The shards, in the order of their rows.
    pub shards: Vec<Shard>,
}

/// Some rows at every site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// How many rows.
    pub rows: u64,
    /// Where its first row stood in the source that was harvested.
    pub from: Cursor,
    /// Where the source stood behind its last row.
    pub next: Cursor,
    /// One file a site.
    pub files: Vec<ShardFile>,
}

/// The rows of one shard at one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// The file's length.
    pub bytes: u64,
    /// XXH3 of 128 bits over the file, as hexadecimal digits (what `xxhsum -H2` prints).
    pub xxh3: String,
    /// Σ ‖x‖² of the rows as they are stored.
    pub square: f64,
    /// Σ ‖x‖.
    pub norm: f64,
}

impl Manifest {
    /// Reads a folder's manifest.
    ///
    /// # Errors
    /// [`ActivationError::Missing`] where there is none; [`ActivationError::Manifest`] for one that is damaged; the storage's.
    pub fn read(store: &Store) -> Result<Self> {
        let bytes = store.get(MANIFEST)?;
        let bad = |problem: String| ActivationError::Manifest { file: store.file(MANIFEST), problem };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |e: serde_json::Error| bad(format!("no sound manifest: {}", one_line(&e.to_string())));
        let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(bad(format!("is of format {format}, but this version reads format {FORMAT}")));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        manifest.check().map_err(bad)?;
        Ok(manifest)
    }

    /// Puts it in the place of the one that is there.
    pub(crate) fn write(&self, store: &Store) -> Result<usize> {
        let bad = |e: serde_json::Error| ActivationError::Manifest {
            file: store.file(MANIFEST),
            problem: one_line(&e.to_string()),
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(bad)?;
        text.push(b'\n');
        let bytes = text.len();
        store.put(MANIFEST, Bytes::from(text))?;
        Ok(bytes)
    }

    /// What is harvested with these settings, before its first row.
    pub(crate) fn begin(sites: &[Site], options: &crate::HarvestOptions) -> Self {
        Self {
            format: FORMAT,
            model: options.model.clone(),
            model_fingerprint: options.model_fingerprint.clone(),
            text_fingerprint: options.text_fingerprint.clone(),
            dtype: options.dtype,
            sites: sites.to_vec(),
            shard_rows: options.shard_rows,
            rows: options.rows,
            complete: false,
            shards: Vec::new(),
        }
    }

    /// Refuses to go on with what was begun with other settings.
    pub(crate) fn expect_same(&self, asked: &Self, place: &str) -> Result<()> {
        let sites = |of: &Self| {
            of.sites
                .iter()
                .map(|site| format!("{} ({})", site.hook, site.width))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let rows = |of: &Self| of.rows.map_or_else(|| "all".to_owned(), |n| n.to_string());
        for (setting, found, asked) in [
            ("model", self.model.clone(), asked.model.clone()),
            ("model_fingerprint", self.model_fingerprint.clone(), asked.model_fingerprint.clone()),
            ("text_fingerprint", self.text_fingerprint.clone(), asked.text_fingerprint.clone()),
            ("dtype", self.dtype.to_string(), asked.dtype.to_string()),
            ("sites", sites(self), sites(asked)),
            ("shard_rows", self.shard_rows.to_string(), asked.shard_rows.to_string()),
            ("rows", rows(self), rows(asked)),
        ] {
            if found != asked {
                let (found, asked) = (one_line(&found), one_line(&asked));
                return Err(ActivationError::Settings { what: place.to_owned(), setting, found, asked });
            }
        }
        Ok(())
    }

    /// Refuses a folder in which a listed file is missing or of another length, before anything is read.
    pub(crate) fn expect_present(&self, store: &Store) -> Result<()> {
        let sizes = store.sizes()?;
        for (number, shard) in self.shards.iter().enumerate() {
            for (site, file) in self.sites.iter().zip(&shard.files) {
                self.expect_length(store, number, site.hook, file, &sizes)?;
            }
        }
        Ok(())
    }

    fn expect_length(
        &self,
        store: &Store,
        number: usize,
        site: HookPoint,
        file: &ShardFile,
        sizes: &BTreeMap<String, u64>,
    ) -> Result<()> {
        let name = shard_name(site, number as u64, self.dtype);
        match sizes.get(&name) {
            None => Err(ActivationError::Missing { file: store.file(&name) }),
            Some(bytes) if *bytes != file.bytes => Err(file.of_another_length(store.file(&name), *bytes)),
            Some(_) => Ok(()),
        }
    }

    /// Refuses a manifest that contradicts itself.
    fn check(&self) -> Result<(), String> {
        if self.sites.is_empty() || self.sites.iter().any(|site| site.width <= 0) {
            return Err("lists no sites of some width".to_owned());
        }
        for (number, shard) in self.shards.iter().enumerate() {
            if shard.files.len() != self.sites.len() {
                let (files, sites) = (shard.files.len(), self.sites.len());
                return Err(format!("shard {number} has {files} files for {sites} sites"));
            }
            if shard.rows == 0 || shard.rows > self.shard_rows {
                return Err(format!("shard {number} has {} rows, of {}", shard.rows, self.shard_rows));
            }
            for (site, file) in self.sites.iter().zip(&shard.files) {
                let bytes = (site.width as u64)
                    .checked_mul(self.dtype.bytes())
                    .and_then(|row| row.checked_mul(shard.rows));
                if bytes != Some(file.bytes) {
                    let (rows, hook) = (shard.rows, site.hook);
                    return Err(format!(
                        "shard {number} has {} bytes for {rows} rows of `{hook}`",
                        file.bytes
                    ));
                }
            }
        }
        Ok(())
    }

    /// Rows of all shards.
    pub fn stored_rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Bytes of all shards, at all sites.
    pub fn stored_bytes(&self) -> u64 {
        self.shards.iter().flat_map(|shard| &shard.files).map(|file| file.bytes).sum()
    }

    /// The sums over all stored rows of a site; `None` for a site that is not there.
    pub fn moments(&self, site: HookPoint) -> Option<Moments> {
        let column = self.sites.iter().position(|s| s.hook == site)?;
        let mut sums = Moments::default();
        for shard in &self.shards {
            let file = shard.files.get(column)?;
            sums.add(&Moments { rows: shard.rows, square: file.square, norm: file.norm });
        }
        Some(sums)
    }

    /// The scalar of each site, exact over all stored rows.
    ///
    /// # Errors
    /// As [`Scale::new`].
    pub fn scales(&self, normalisation: Normalisation) -> Result<Vec<Scale>> {
        let scale =
            |site: &Site| Scale::new(*site, normalisation, &self.moments(site.hook).unwrap_or_default());
        self.sites.iter().map(scale).collect()
    }
}

impl ShardFile {
    /// What the manifest says of a file with these contents and sums.
    pub(crate) fn of(contents: &[u8], sums: &Moments) -> Self {
        let (bytes, xxh3) = (contents.len() as u64, checksum(contents));
        Self { bytes, xxh3, square: sums.square, norm: sums.norm }
    }

    /// Refuses contents that are not what was written.
    pub(crate) fn expect(&self, file: String, contents: &[u8]) -> Result<()> {
        if contents.len() as u64 != self.bytes {
            return Err(self.of_another_length(file, contents.len() as u64));
        }
        let found = checksum(contents);
        if found == self.xxh3 {
            return Ok(());
        }
        let problem =
            format!("is damaged: its checksum is {found}, but was {} when it was written", self.xxh3);
        Err(ActivationError::Shard { file, problem })
    }

    fn of_another_length(&self, file: String, bytes: u64) -> ActivationError {
        let problem = format!("is damaged: it has {bytes} bytes, but had {} when it was written", self.bytes);
        ActivationError::Shard { file, problem }
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, shards, sites) = (self.stored_rows(), self.shards.len(), self.sites.len());
        write!(f, "{rows} rows of {} at {sites} sites in {shards} shards, {}", self.model, self.dtype)
    }
}

/// A shard's file for a site.
pub(crate) fn shard_name(site: HookPoint, number: u64, dtype: Dtype) -> String {
    format!("{site}/{number:08}.{dtype}")
}

/// XXH3 runs at the speed of memory and is meant for damage, which is what a checksum of our own files must find; nobody forges them.
fn checksum(contents: &[u8]) -> String {
    format!("{:032x}", XxHash3_128::oneshot(contents))
}
