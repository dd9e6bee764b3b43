//! The kernels against the same work in plain loops, or by libtorch.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod few_rows;
mod gather_sum;
mod sparse;
mod training;
mod transpose;
