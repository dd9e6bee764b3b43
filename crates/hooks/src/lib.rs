//! The contract between models and everything that looks inside them.
//!
//! A model *pushes*: at every site of its forward pass it calls [`HookSet::at`], and goes on with what comes back. The
//! other design, in which a caller pulls activations out of a model that pauses, needs threads or generators and cannot
//! replace a value; a push with an answer does both with one line per site. A set of hooks belongs to one run, never to
//! the model: nothing is left behind for the next one.
//!
//! * Hooks run in the order in which they were added. A cache placed after an edit sees the edited value.
//! * A replacement must have the shape, dtype and device of what it replaces.
//! * A site that the model does not have is refused before the run.
//! * A hook that did not fire is an error after the run.
//! * Without hooks, `at` hands back its argument untouched, and identity hooks leave every bit as it was.
//!
//! ```
//! use hooks::{HookPoint, LayerIdx};
//! let site: HookPoint = "blocks.20.hook_resid_post".parse()?;
//! assert_eq!(site, HookPoint::ResidPost(LayerIdx(20)));
//! assert_eq!(site.to_string(), "blocks.20.hook_resid_post");
//! let wrong = "blocks.20.hook_resid_pots".parse::<HookPoint>().unwrap_err();
//! assert!(wrong.to_string().contains("hook_resid_post"));
//! # Ok::<(), hooks::HookError>(())
//! ```
//!
//! Nothing here knows Gemma, files, autoencoders or metrics. You probably want the `gemma-scope` facade instead.

mod cache;
pub mod edit;
mod error;
mod hook;
mod model;
mod point;
mod positions;
mod set;
mod tokens;

pub use cache::ActivationCache;
pub use error::{BoxError, HookError, Result};
pub use hook::{Hook, Visit, observe, replace};
pub use model::{HookedModel, HookedModelExt, ModelDims};
pub use point::{Axis, HookPoint, LayerIdx};
pub use positions::{PositionSet, Positions};
pub use set::HookSet;
pub use tokens::TokenBatch;
