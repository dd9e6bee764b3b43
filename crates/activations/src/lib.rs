//! Streams of activations, as SAEs are trained on: text, packed into rows, runs through a model once and gives vectors at any number
//! of sites at the same time, mixed, on the fly or by way of a disk or a bucket.
//!
//! * [`Live`] runs a model over token batches; [`harvest`] writes what it gives as shards into a [`Store`]; [`Shards`] reads
//!   these. Both are a [`Source`]: rows in a fixed order that can be taken up anywhere.
//! * [`Mixer`] shuffles a source within a buffer, and resumes to the last bit from a state of a few numbers.
//! * [`Scale`] is the scalar that a site's activations are divided by, from [`Moments`]: estimated from a source, or exact from a
//!   [`Manifest`].
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use activations::{HarvestOptions, Live, Mixer, MixerOptions, Normalisation, Shards, ShardsOptions, Store, harvest};
//! use hooks::{BoxError, HookPoint, TokenBatch};
//! # let model = testkit::ToyModel::new(2, 8, 20, 1);
//! let sites = HookPoint::parse_list("blocks.*.hook_resid_post", 2)?;
//! // Token batches of a text: `corpus` makes them. 2 is BOS, which does not count.
//! let open = || {
//!     let batch = TokenBatch::new(&[vec![2, 7, 19, 4], vec![2, 3, 11, 5]], &[0, 1, 2]);
//!     Ok(Box::new(std::iter::once(batch.map_err(BoxError::from))) as activations::Batches<'_>)
//! };
//! let mut live = Live::new(&model, &sites, open, Some(1))?;
//! let store = Store::memory()?; // or Store::open("s3://bucket/prefix", options)
//! let options = HarvestOptions { model: "toy".to_owned(), ..HarvestOptions::default() };
//! let manifest = harvest(&mut live, &store, &options, |_| ControlFlow::Continue(()))?;
//! assert_eq!(manifest.stored_rows(), 6);
//!
//! let scale = manifest.scales(Normalisation::UnitMeanSquare)?;
//! let shards = Shards::open(&store, &ShardsOptions { epochs: None, ..ShardsOptions::default() })?;
//! let mut mixer = Mixer::new(shards, MixerOptions { buffer_rows: 100, ..MixerOptions::default() })?;
//! let batch = mixer.next_batch(32)?.expect("an endless stream"); // [32, 8] at each site, the same tokens
//! let x = scale[1].apply(&batch.at[1])?; // E‖x‖² = 1
//! assert_eq!(x.size(), [32, 8]);
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```
//!
//! Nothing here prints or reads the environment; the one socket that is opened is that of the bucket named. You probably want the
//! `gemma-scope` facade instead.

mod block;
mod dtype;
mod error;
mod harvest;
mod live;
mod manifest;
mod mixer;
mod order;
mod scale;
mod shards;
mod source;
mod store;
mod writer;

pub use dtype::Dtype;
pub use error::{ActivationError, Result};
pub use harvest::{HarvestOptions, HarvestProgress, harvest};
pub use live::{Batches, Live};
pub use manifest::{Manifest, Shard, ShardFile};
pub use mixer::{Mixer, MixerOptions, MixerState, MixerStats};
pub use scale::{Moments, Normalisation, Scale};
pub use shards::{Shards, ShardsOptions};
pub use source::{Cursor, Rows, Site, Source};
pub use store::Store;
