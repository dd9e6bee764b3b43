#![doc = include_str!("../README.md")]

mod allocator;
mod cuda;
mod few_rows;
mod fill;
mod move_rows;
mod residuals;
mod sparse;
mod strongest;
mod transpose;
mod vectors;

pub use allocator::keep_freed_memory;
pub use cuda::load_cuda;
pub use few_rows::{linear_few_rows, most_rows};
pub use fill::{filled, filled_in_pieces};
pub use move_rows::{AdamStep, Moved, SparseGradient, gradient_square_sum, move_rows, sum_of_rows};
pub use residuals::{Decoding, Residuals, residuals};
pub use sparse::{Csr, GroupMax, Rule, Selection, TopK, gather_sum};
pub use strongest::{BatchTop, keep_strongest};
pub use transpose::transposed;
