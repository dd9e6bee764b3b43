//! TensorBoard's event files: records of a length, its checksum, a protocol buffer, and its checksum
//! (TensorFlow's `record_writer.h` and `event.proto`). The crates that write them bring an HTTP client or have not been kept, so the
//! three messages that scalars need stand here.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;
use tch_ext::TensorError;

use super::metrics::Line;
use crate::Result;

/// `tensorflow.Event`, of which these fields are used.
#[derive(Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// Status 1 is START: what was logged from this step on is void.
#[derive(Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A file for each SAE.
#[derive(Debug)]
pub(super) struct Events {
    files: Vec<(String, PathBuf, File)>,
}

impl Events {
    /// New files, from a step on.
    pub(super) fn open(root: &Path, names: &[&str], step: u64) -> Result<Self> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let folder = root.join(name);
            fs::create_dir_all(&folder).map_err(|e| TensorError::io(&folder, e))?;
            let before = fs::read_dir(&folder).map_err(|e| TensorError::io(&folder, e))?.next().is_some();
            let path = unused(&folder);
            let file = OpenOptions::new().create_new(true).write(true).open(&path);
            let mut file = file.map_err(|e| TensorError::io(&path, e))?;
            let version = What::FileVersion("brain.Event:2".to_owned());
            append(&mut file, &path, 0, version)?;
            if before {
                append(&mut file, &path, step as i64 + 1, What::SessionLog(SessionLog { status: 1 }))?;
            }
            files.push(((*name).to_owned(), path, file));
        }
        Ok(Self { files })
    }

    pub(super) fn write(&mut self, line: &Line<'_>) -> Result<()> {
        let Some((_, path, file)) = self.files.iter_mut().find(|(name, ..)| name == line.sae) else {
            return Ok(());
        };
        let value = |(tag, value): (String, f64)| Value { tag, simple_value: value as f32 };
        let counts = line.counts().map(|(name, count)| (name.to_owned(), count as f64));
        let summary = Summary { value: counts.into_iter().chain(line.values()).map(value).collect() };
        append(file, path, line.stats.step as i64, What::Summary(summary))
    }
}

/// The name of a file that is not there: TensorBoard reads them in the order of their names.
fn unused(folder: &Path) -> PathBuf {
    let seconds = now() as u64;
    let names = (0..).map(|n: u32| folder.join(format!("events.out.tfevents.{seconds:010}.{n:04}")));
    names.into_iter().find(|path| !path.exists()).unwrap_or_else(|| folder.join("events.out.tfevents"))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn append(file: &mut File, path: &Path, step: i64, what: What) -> Result<()> {
    let data = Event { wall_time: now(), step, what: Some(what) }.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(&data);
    record.extend(masked(&data).to_le_bytes());
    Ok(file.write_all(&record).map_err(|e| TensorError::io(path, e))?)
}

/// The checksum as records hold it, rotated and moved.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}
