//! The latent cache of EleutherAI's `delphi` (0.1.3, `latents/cache.py` and `latents/loader.py`): where each latent fired, and
//! how strongly, for its explainers and scorers. Not an SAE, but what one made of a corpus.
//!
//! A folder, named for the module, of `config.json` and one `{start}_{end}.safetensors` (`end` is the last latent) for each
//! split of the latents, with
//! * `locations` `[nnz, 3]`: sequence, position, latent − start, in this order ascending; uint16 where that holds them, else
//!   uint32;
//! * `activations` `[nnz]`, float16, of those whose magnitude is over 1e-5;
//! * `tokens` `[n_seq, ctx_len]`, int64, in every file the same.
//!
//! delphi reads the folder with `LatentDataset(raw_dir=PARENT, modules=[FOLDER], …)`. A split in which nothing fires is
//! written as a file without entries: delphi's loader reads it and needs it, since it finds a latent's file by the edges of all
//! files, though delphi's own writer fails there.

use std::{fs, io::Write as _, ops::Range, path::Path};

use serde::Serialize as _;
use serde_json::{Value, json, ser::PrettyFormatter};
use tch::{Device, Kind, Tensor};
use tch_ext::{
    Member, SafetensorsFile, TensorError, Unsigned, expect_finite, expect_kind, write_atomically,
    write_safetensors,
};

use super::config::{Config, bad};
use crate::{Result, SaeError, SparseFeatures};

const CONFIG: &str = "config.json";
const ENDING: &str = "safetensors";
const TENSORS: [&str; 3] = ["activations", "locations", "tokens"];

/// What delphi drops, as float32.
const NOTHING: f32 = 1e-5;

/// The largest finite float16.
const LARGEST: f32 = 65504.0;

/// Where the tokens came from, as `config.json` says it. delphi's loader reads the model's name alone, for its tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The data set's repository.
    pub dataset_repo: String,
    /// The part of it, as in `train[:1%]`.
    pub dataset_split: String,
    /// The data set's configuration; may be empty.
    pub dataset_name: String,
    /// The column that holds the texts.
    pub dataset_column: String,
    /// Sequences that were run together.
    pub batch_size: i64,
    /// The model, as Hugging Face names it.
    pub model_name: String,
}

impl Default for CacheInfo {
    /// What delphi's `CacheConfig` has, and no model.
    fn default() -> Self {
        Self {
            dataset_repo: "EleutherAI/SmolLM2-135M-10B".to_owned(),
            dataset_split: "train[:1%]".to_owned(),
            dataset_name: String::new(),
            dataset_column: "text".to_owned(),
            batch_size: 32,
            model_name: String::new(),
        }
    }
}

/// A cache that was read.
#[derive(Debug)]
pub struct Cache {
    /// `[n_seq · ctx_len, d_sae]`: row i is position `i % ctx_len` of sequence `i / ctx_len`. delphi keeps negative activations.
    pub features: SparseFeatures,
    /// `[n_seq, ctx_len]`, int64.
    pub tokens: Tensor,
    /// What its `config.json` says.
    pub info: CacheInfo,
}

/// Writes the features of `tokens` (`[n_seq, ctx_len]`, int64; row i of the features is position `i % ctx_len` of sequence
/// `i / ctx_len`) into a folder, in so many splits of the latents.
///
/// The splits are delphi's: `linspace(0, d_sae, splits + 1)` in float32, truncated. A position that uint16 does not hold makes
/// the file uint32, where delphi would let it wrap.
///
/// # Errors
/// [`SaeError::Sparse`] for rows that are not those of the tokens, splits that would be empty of latents, or activations that
/// float16 does not hold (delphi would write infinity); another dtype; values that are not finite; a folder that holds files of
/// another cache; the system's.
pub fn write(
    features: &SparseFeatures,
    tokens: &Tensor,
    folder: &Path,
    splits: i64,
    info: &CacheInfo,
) -> Result<()> {
    let wrong = |problem: String| Err(SaeError::Sparse(problem));
    expect_kind("tokens", tokens, &[Kind::Int64])?;
    let Ok((n_seq, ctx_len)) = tokens.size2() else {
        let (what, expected) = ("tokens".to_owned(), "[n_seq, ctx_len]".to_owned());
        return Err(TensorError::Shape { what, expected, got: tokens.size() }.into());
    };
    if n_seq * ctx_len != features.n_rows() {
        return wrong(format!(
            "the features have {} rows, but there are {n_seq} · {ctx_len} tokens",
            features.n_rows()
        ));
    }
    expect_finite("activations", features.values())?;
    let edges = edges(features.d_sae(), splits)?;
    let names: Vec<String> = edges.windows(2).map(|w| format!("{}_{}.{ENDING}", w[0], w[1] - 1)).collect();
    expect_no_others(folder, &names)?;

    let tokens = tokens.f_detach()?.f_to_device(Device::Cpu)?;
    for (latents, name) in edges.windows(2).zip(&names) {
        let split = Split::of(features, latents[0]..latents[1], ctx_len.max(1))?;
        split.write(&tokens, &folder.join(name))?;
    }
    let fields = [
        ("dataset_repo", json!(info.dataset_repo)),
        ("dataset_split", json!(info.dataset_split)),
        ("dataset_name", json!(info.dataset_name)),
        ("dataset_column", json!(info.dataset_column)),
        ("batch_size", json!(info.batch_size)),
        ("cache_ctx_len", json!(ctx_len)),
        ("n_tokens", json!(n_seq * ctx_len)),
        ("n_splits", json!(splits)),
        ("model_name", json!(info.model_name)),
    ];
    write_indented(&folder.join(CONFIG), &fields)
}

/// Reads what delphi or [`write()`] wrote, of one module.
///
/// # Errors
/// The system's; a file that is damaged, or whose name or tensors are not a cache's; splits that leave a gap or overlap, or
/// differ in their tokens; a cache without tokens, whose number of rows nothing tells; locations out of range or twice;
/// activations that are zero or (where float16 has overflowed) not finite. Settings that are not in [`CacheInfo`] change nothing.
pub fn read(folder: &Path) -> Result<Cache> {
    let mut config = Config::read(&folder.join(CONFIG))?;
    let default = CacheInfo::default();
    let mut text = |key: &str, otherwise: String| Ok::<_, SaeError>(config.text(key)?.unwrap_or(otherwise));
    let info = CacheInfo {
        dataset_repo: text("dataset_repo", default.dataset_repo)?,
        dataset_split: text("dataset_split", default.dataset_split)?,
        dataset_name: text("dataset_name", default.dataset_name)?,
        // The key was named `dataset_row` once.
        dataset_column: match text("dataset_row", String::new())? {
            row if row.is_empty() => text("dataset_column", default.dataset_column)?,
            row => text("dataset_column", row)?,
        },
        model_name: text("model_name", default.model_name)?,
        batch_size: config.size("batch_size")?.unwrap_or(default.batch_size),
    };
    let said = config.size("cache_ctx_len")?;
    let place = folder.display().to_string();

    let mut parts = Vec::new();
    let mut tokens: Option<Tensor> = None;
    let mut next = 0;
    for (start, end, name) in split_files(folder)? {
        if start != next {
            let problem =
                format!("its splits leave a gap or overlap: one begins with latent {start}, not {next}");
            return Err(bad(&place, &problem));
        }
        next = end.checked_add(1).ok_or_else(|| bad(&place, &format!("`{name}` is no split's name")))?;
        let (part, own) = read_split(&folder.join(&name), next - start)?;
        let differ = |first: &Tensor| Ok::<_, SaeError>(!first.f_equal(&own)?);
        if tokens.as_ref().map(differ).transpose()?.unwrap_or(false) {
            return Err(bad(&place, &format!("the tokens of `{name}` are not those of the first split")));
        }
        tokens.get_or_insert(own);
        parts.push(part);
    }
    let tokens = tokens.ok_or_else(|| bad(&place, "holds no split of a latent cache"))?;
    let ctx_len = tokens.size2()?.1;
    if said.is_some_and(|said| said != ctx_len) {
        return Err(bad(&place, &format!("`cache_ctx_len` is not the tokens' {ctx_len}")));
    }
    let features = SparseFeatures::beside(&parts)?;
    Ok(Cache { features, tokens, info })
}

/// The first latent of each split, and one past the last.
fn edges(d_sae: i64, splits: i64) -> Result<Vec<i64>> {
    let wrong = || SaeError::Sparse(format!("{d_sae} latents can't be cut into {splits} splits"));
    if splits < 1 || splits > d_sae {
        return Err(wrong());
    }
    let edges = Tensor::f_linspace(0.0, d_sae as f64, splits + 1, (Kind::Float, Device::Cpu))?;
    let edges = Vec::<i64>::try_from(edges.f_to_kind(Kind::Int64)?)?;
    let rising = edges.windows(2).all(|w| matches!(w, [a, b] if a < b));
    // float32 does not hold every width beyond 2^24.
    if rising && edges.first() == Some(&0) && edges.last() == Some(&d_sae) { Ok(edges) } else { Err(wrong()) }
}

/// delphi takes every safetensors file of the folder for a split.
fn expect_no_others(folder: &Path, names: &[String]) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for name in file_names(folder)? {
        if name.ends_with(".safetensors") && !names.contains(&name) {
            let problem = format!("holds `{name}`, which delphi would take for a part of this cache");
            return Err(bad(&folder.display().to_string(), &problem));
        }
    }
    Ok(())
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let io = |e| TensorError::io(folder, e);
    let entries = fs::read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    Ok(entries.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// First and last latent of every split, by its name, ascending.
fn split_files(folder: &Path) -> Result<Vec<(i64, i64, String)>> {
    let mut splits = Vec::new();
    for name in file_names(folder)? {
        let Some(stem) = name.strip_suffix(".safetensors") else { continue };
        let range = stem.split_once('_').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match range {
            Some((start, end)) if 0 <= start && start <= end => splits.push((start, end, name)),
            _ => {
                let problem = format!("`{name}` is not named as a split, START_END.safetensors");
                return Err(bad(&folder.display().to_string(), &problem));
            }
        }
    }
    splits.sort_unstable();
    Ok(splits)
}

/// The entries of one split: locations flat, `[nnz, 3]`.
#[derive(Default)]
struct Split {
    locations: Vec<i64>,
    activations: Vec<f32>,
    largest: i64,
}

impl Split {
    fn of(features: &SparseFeatures, latents: Range<i64>, ctx_len: i64) -> Result<Self> {
        let mut split = Self::default();
        let by_row = features.latents(latents.clone())?.by_row()?;
        for row in 0..by_row.n_rows() {
            let (sequence, position) = (row / ctx_len, row % ctx_len);
            for (latent, activation) in by_row.row(row)?.filter(|(_, a)| a.abs() > NOTHING) {
                if activation.abs() > LARGEST {
                    let latent = latents.start + latent.0 as i64;
                    let problem =
                        format!("latent {latent} is {activation} in row {row}: float16 ends at {LARGEST}");
                    return Err(SaeError::Sparse(problem));
                }
                let location = [sequence, position, latent.0 as i64];
                split.largest = location.into_iter().fold(split.largest, i64::max);
                split.locations.extend(location);
                split.activations.push(activation);
            }
        }
        Ok(split)
    }

    fn write(&self, tokens: &Tensor, path: &Path) -> Result<()> {
        let locations =
            Tensor::f_from_slice(&self.locations)?.f_reshape([self.activations.len() as i64, 3])?;
        let activations = Tensor::f_from_slice(&self.activations)?.f_to_kind(Kind::Half)?;
        let unsigned = if self.largest <= i64::from(u16::MAX) { Unsigned::U16 } else { Unsigned::U32 };
        let tensors = [
            ("tokens", Member::Tensor(tokens)),
            ("locations", Member::Unsigned(&locations, unsigned)),
            ("activations", Member::Tensor(&activations)),
        ];
        Ok(write_safetensors(path, tensors, Default::default())?)
    }
}

/// The features of one split, of `d_sae` latents, and its tokens.
fn read_split(path: &Path, d_sae: i64) -> Result<(SparseFeatures, Tensor)> {
    let mut file = SafetensorsFile::open(path)?;
    let name = file.name().to_owned();
    let others: Vec<_> = file.names().into_iter().filter(|n| !TENSORS.contains(&n.as_str())).collect();
    if !others.is_empty() {
        return Err(TensorError::Unexpected { file: name, names: others }.into());
    }
    let tokens = file.read_integers("tokens")?;
    let locations = file.read_integers("locations")?;
    let activations = file.read("activations")?;
    let shape = |tensor: &str, expected: &str, got: &Tensor| TensorError::Shape {
        what: format!("{name}: {tensor}"),
        expected: expected.to_owned(),
        got: got.size(),
    };
    let Ok((n_seq, ctx_len)) = tokens.size2() else {
        return Err(shape("tokens", "[n_seq, ctx_len]", &tokens).into());
    };
    let n_rows = n_seq.checked_mul(ctx_len).ok_or_else(|| shape("tokens", "[n_seq, ctx_len]", &tokens))?;
    let nnz = activations.numel() as i64;
    if activations.dim() != 1 || locations.size() != [nnz, 3] {
        return Err(shape("locations", &format!("[{nnz}, 3], as there are activations"), &locations).into());
    }
    expect_kind(&format!("{name}: activations"), &activations, &[Kind::Half])?;
    expect_finite(&format!("{name}: activations"), &activations)?;
    let values = Vec::<f32>::try_from(activations.f_to_kind(Kind::Float)?)?;
    let locations = Vec::<i64>::try_from(locations.f_flatten(0, -1)?)?;

    let mut entries = Vec::with_capacity(values.len());
    for (location, value) in locations.chunks_exact(3).zip(values) {
        match *location {
            [s, p, f] if (0..n_seq).contains(&s) && (0..ctx_len).contains(&p) && (0..d_sae).contains(&f) => {
                entries.push((s * ctx_len + p, f, value));
            }
            _ => {
                let problem = format!(
                    "location {location:?} is not among {n_seq} · {ctx_len} tokens and {d_sae} latents"
                );
                return Err(bad(&name, &problem));
            }
        }
    }
    entries.sort_by_key(|(row, latent, _)| (*row, *latent));
    let features = csr(&entries, n_rows, d_sae);
    Ok((features.map_err(|e| bad(&name, &e.to_string()))?, tokens))
}

/// Entries (row, latent, value), sorted, as features.
fn csr(entries: &[(i64, i64, f32)], n_rows: i64, d_sae: i64) -> Result<SparseFeatures> {
    let latents: Vec<i64> = entries.iter().map(|e| e.1).collect();
    let values: Vec<f32> = entries.iter().map(|e| e.2).collect();
    let rows: Vec<i64> = entries.iter().map(|e| e.0).collect();
    let counts = Tensor::f_from_slice(&rows)?.f_bincount(None::<Tensor>, n_rows)?;
    let zero = counts.f_new_zeros([1], (Kind::Int64, Device::Cpu))?;
    let indptr = Tensor::f_cat(&[zero, counts.f_cumsum(0, Kind::Int64)?], 0)?;
    SparseFeatures::new(indptr, Tensor::f_from_slice(&latents)?, Tensor::f_from_slice(&values)?, d_sae)
}

/// Writes a JSON object as Python's `json.dump(…, indent=4)` does.
fn write_indented(path: &Path, fields: &[(&str, Value)]) -> Result<()> {
    let io = |e| TensorError::io(path, e);
    let mut text = b"{".to_vec();
    for (i, (key, value)) in fields.iter().enumerate() {
        text.extend_from_slice(if i == 0 { b"\n    " } else { b",\n    " });
        for (part, behind) in [(&json!(key), ": "), (value, "")] {
            let formatter = PrettyFormatter::with_indent(b"    ");
            let mut out = serde_json::Serializer::with_formatter(&mut text, formatter);
            part.serialize(&mut out).map_err(|e| io(e.into()))?;
            text.extend_from_slice(behind.as_bytes());
        }
    }
    text.extend_from_slice(b"\n}");
    Ok(write_atomically(path, |file| file.write_all(&text).map_err(io))?)
}
