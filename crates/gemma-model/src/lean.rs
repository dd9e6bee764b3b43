//! Where a tensor may be overwritten: memory that is reused is memory that is in the cache, and needs no page of its own.

use hooks::{HookPoint, HookSet};
use tch::Tensor;

/// Whether what stood at `site` may be overwritten: no hook saw it (and so may have kept it, or put something of its own in
/// its place), and no gradient will ask for it.
pub(crate) fn unseen(act: &Tensor, site: HookPoint, hooks: &HookSet<'_>) -> bool {
    !act.requires_grad() && !hooks.wants(site)
}
