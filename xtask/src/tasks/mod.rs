//! The commands themselves, one to a file.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod doc_only;
pub(crate) mod libtorch;
pub(crate) mod test;
