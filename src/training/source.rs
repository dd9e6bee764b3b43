use std::{
    fs::File as SystemFile,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use activations::{Batches, Live, Shards, ShardsOptions, Source, Store};
use corpus::{Field, Packing, ReadOptions};
use hooks::{BoxError, HookPoint, HookedModel as _};
use sha2::{Digest as _, Sha256};
use tch_ext::TensorError;

use super::{Data, Result, TrainingError};
use crate::{load::LoadedModel, suite::Encoder};

/// Gemma Scope's context for training (section 3).
const CONTEXT: usize = 1024;

/// Text files as token batches, packed to a context, as often as they are asked for.
#[derive(Debug, Clone)]
pub struct TextSource {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// What is read of them.
    pub options: ReadOptions,
    /// Tokens a sequence; 1024, or the model's context where that is less, unless it is said.
    pub ctx: Option<usize>,
    /// Sequences a batch.
    pub rows: usize,
}

impl TextSource {
    pub(super) fn of(data: &Data) -> Self {
        let text = || data.text_field.clone().unwrap_or_else(|| "text".to_owned());
        let content = data.chat.clone().map_or_else(|| Field::Text(text()), Field::Chat);
        let options = ReadOptions { content, subset: None };
        Self { paths: data.text.clone(), options, ctx: data.ctx, rows: data.rows }
    }

    /// The context for a model.
    ///
    /// # Errors
    /// One that the model does not have.
    pub fn context(&self, model: &LoadedModel) -> Result<usize> {
        let n_ctx = model.model.dims().n_ctx;
        let ctx = self.ctx.unwrap_or(CONTEXT.min(n_ctx));
        if (2..=n_ctx).contains(&ctx) {
            return Ok(ctx);
        }
        Err(TrainingError::Set {
            key: "ctx".to_owned(),
            what: format!("must lie between 2 and the model's context of {n_ctx}, but is {ctx}"),
        })
    }

    /// The activations of a model on the text, for some epochs or for ever.
    ///
    /// # Errors
    /// Files that can't be read; sites that the model does not have.
    pub fn stream<'m>(
        &self,
        model: &'m LoadedModel,
        sites: &[HookPoint],
        epochs: Option<u64>,
    ) -> Result<Live<'m>> {
        let ctx = self.context(model)?;
        // What can't be opened is said before anything is computed.
        drop(corpus::open_all(self.paths.clone(), &self.options)?);
        let tokenizer = model.tokenizer()?;
        let text = self.clone();
        let open = move || -> Result<Batches<'m>, BoxError> {
            let documents = corpus::open_all(text.paths.clone(), &text.options)?;
            let rows = corpus::Rows::new(documents, Encoder(tokenizer), ctx, Packing::Packed)?;
            let batches = corpus::Batches::new(rows, text.rows, tokenizer.pad())?;
            Ok(Box::new(batches.map(|batch| Ok(batch?.tokens))))
        };
        Ok(Live::new(&model.model, sites, open, epochs)?)
    }

    /// Tells the files from others: their names, sizes, and the SHA-256 of their first and last MiB.
    ///
    /// # Errors
    /// The system's.
    pub fn fingerprint(&self) -> Result<String> {
        let mut sha256 = Sha256::new();
        for path in &self.paths {
            sha256.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            add_file(&mut sha256, path).map_err(|e| TensorError::io(path, e))?;
        }
        Ok(format!("{:x}", sha256.finalize()))
    }
}

fn add_file(sha256: &mut Sha256, path: &Path) -> std::io::Result<()> {
    const MIB: u64 = 1 << 20;
    let mut file = SystemFile::open(path)?;
    let bytes = file.metadata()?.len();
    sha256.update(bytes.to_le_bytes());
    let mut piece = Vec::new();
    file.by_ref().take(MIB).read_to_end(&mut piece)?;
    if bytes > MIB {
        file.seek(SeekFrom::Start(bytes.saturating_sub(MIB).max(MIB)))?;
        file.take(MIB).read_to_end(&mut piece)?;
    }
    sha256.update(piece);
    Ok(())
}

/// Harvested shards.
pub(super) fn shards(
    place: &str,
    storage: &[(String, String)],
    sites: &[HookPoint],
    epochs: Option<u64>,
) -> Result<(Shards, activations::Manifest)> {
    let store = Store::open(place, storage.iter().cloned())?;
    let options = ShardsOptions { sites: Some(sites.to_vec()), epochs, ..ShardsOptions::default() };
    let shards = Shards::open(&store, &options)?;
    let manifest = shards.manifest().clone();
    if !manifest.complete {
        return Err(TrainingError::Set {
            key: "data.shards".to_owned(),
            what: format!(
                "{place} is half a harvest: end it with `harvest --resume`, or with fewer `--rows`"
            ),
        });
    }
    Ok((shards, manifest))
}

/// Tells a harvest from others: by what it was made of, and by the checksums of its shards.
pub(super) fn manifest_fingerprint(manifest: &activations::Manifest) -> String {
    let mut sha256 = Sha256::new();
    for text in [&manifest.model, &manifest.model_fingerprint, &manifest.text_fingerprint] {
        sha256.update((text.len() as u64).to_le_bytes());
        sha256.update(text);
    }
    for file in manifest.shards.iter().flat_map(|shard| &shard.files) {
        sha256.update(&file.xxh3);
    }
    format!("{:x}", sha256.finalize())
}

/// The width of a site in a stream.
pub(super) fn width(source: &dyn Source, hook: HookPoint) -> Option<(usize, i64)> {
    source.sites().iter().enumerate().find(|(_, site)| site.hook == hook).map(|(i, site)| (i, site.width))
}
