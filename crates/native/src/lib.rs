#![doc = include_str!("../README.md")]

mod allocator;
mod cuda;
mod few_rows;
mod fill;
mod sparse;
mod transpose;

pub use allocator::keep_freed_memory;
pub use cuda::load_cuda;
pub use few_rows::{linear_few_rows, most_rows};
pub use fill::{filled, filled_in_pieces};
pub use sparse::{Csr, GroupMax, Rule, Selection, TopK, gather_sum};
pub use transpose::transposed;
