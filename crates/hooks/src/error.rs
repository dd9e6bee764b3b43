use tch::TchError;
use tch_ext::TensorError;

use crate::HookPoint;

/// Whatever error a hook or a model of somebody else's may return.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong between a model and its hooks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// A text that names no hook point.
    #[error("`{}` is no hook point{}", one_line(text), did_you_mean(nearest))]
    Name {
        /// The text.
        text: String,
        /// The names nearest to it.
        nearest: Vec<String>,
    },
    /// A site of a layer that the model does not have.
    #[error("`{site}` is out of range: the model has {}", layers(*n_layers))]
    OutOfRange {
        /// The site.
        site: HookPoint,
        /// How many layers the model has.
        n_layers: usize,
    },
    /// Hooks that the run did not reach.
    #[error("{} did not fire: the run did not reach {}", plural(sites), list(sites))]
    NeverFired {
        /// The sites.
        sites: Vec<HookPoint>,
    },
    /// A replacement that is not like what it replaces.
    #[error("the replacement at `{site}` must be {expected}, but is {got}")]
    Replacement {
        /// The site.
        site: HookPoint,
        /// Shape, dtype and device of the activation.
        expected: String,
        /// Those of the replacement.
        got: String,
    },
    /// A hook's own error.
    #[error("the hook at `{site}` failed: {source}")]
    Hook {
        /// The site.
        site: HookPoint,
        /// What it said.
        source: BoxError,
    },
    /// A site at which no run can begin again.
    #[error(
        "no run can begin at `{0}`: only at hook_embed, hook_resid_pre, attn.hook_z, hook_attn_out, hook_resid_mid, \
             ln2.hook_normalized, mlp.hook_post, hook_mlp_out and hook_resid_post"
    )]
    NoResume(HookPoint),
    /// A site that a cache does not hold.
    #[error("`{0}` was not captured")]
    NotCaptured(HookPoint),
    /// Tokens that make no batch.
    #[error("{0}")]
    Tokens(String),
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is beyond the vocabulary of {d_vocab}")]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// The size of the vocabulary.
        d_vocab: usize,
    },
    /// Positions that are no set of positions, or that a site does not have.
    #[error("{0}")]
    Positions(String),
    /// A model's own error.
    #[error("{0}")]
    Model(BoxError),
    /// A tensor's error.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = HookError> = std::result::Result<T, E>;

impl From<TchError> for HookError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}

/// A text of the user's, which may hold line breaks and worse, for a message of one line.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{FFFD}")
}

fn layers(n_layers: usize) -> String {
    match n_layers.checked_sub(1) {
        Some(last) => format!("layers 0 to {last}"),
        None => "no layers".to_owned(),
    }
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return "; a hook point reads like `blocks.20.hook_resid_post`".to_owned();
    }
    format!("; nearest: {}", nearest.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))
}

fn plural(sites: &[HookPoint]) -> String {
    if sites.len() == 1 { "a hook".to_owned() } else { format!("{} hooks", sites.len()) }
}

fn list(sites: &[HookPoint]) -> String {
    const SHOWN: usize = 4;
    let mut text = sites.iter().take(SHOWN).map(|s| format!("`{s}`")).collect::<Vec<_>>().join(", ");
    if sites.len() > SHOWN {
        text += ", …";
    }
    text
}
