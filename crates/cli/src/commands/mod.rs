//! One file a command.

pub(crate) mod activations;
pub(crate) mod analyze;
pub(crate) mod convert;
pub(crate) mod encode;
pub(crate) mod eval;
pub(crate) mod fetch;
pub(crate) mod generate;
pub(crate) mod harvest;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod train;
