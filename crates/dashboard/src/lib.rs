//! What sparse autoencoders find in a text.
//!
//! [`analyze`] runs the model once and each SAE on its activations; the [`Analysis`] that comes back is plain data (and
//! JSON). [`table`] makes it a text for the terminal, [`page`] one HTML file that needs nothing else: no network, no other
//! file.
//!
//! ```
//! use dashboard::{Prompt, SaeAt, TableOptions, analyze, page, table};
//! use hooks::TokenBatch;
//! # use testkit::normal;
//! # let model = testkit::ToyModel::new(2, 8, 32, 1);
//! # let sae = sae_core::Sae::jumprelu(normal(&[8, 64], 2), normal(&[64], 3), normal(&[64, 8], 4), normal(&[8], 5), testkit::uniform(&[64], 0.5, 2.0, 6))?;
//! let tokens = TokenBatch::new(&[vec![2, 7, 9]], &[0, 1, 2])?; // 2 is BOS, which does not count
//! let pieces = ["<bos>", "Hello", " world"].map(str::to_owned).to_vec();
//! let prompts = [Prompt { text: "Hello world".to_owned(), pieces }];
//! let saes = [SaeAt { id: "toy".to_owned(), site: "blocks.1.hook_resid_post".parse()?, sae: &sae }];
//! let analysis = analyze(&model, "toy model", &tokens, &prompts, &saes, 5)?;
//! let text = table(&analysis, &TableOptions { width: 80, colours: false });
//! assert!(text.contains("·world"));
//! assert!(page(&analysis)?.starts_with("<!doctype html>"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`suite_page`] draws the reports of an evaluation: the trade-off of sparsity and fidelity, histograms, quality by layer,
//! position and subset.
//!
//! Metrics are `eval`'s; nothing here loads a model, writes a file or prints.

mod analysis;
mod analyze;
mod error;
mod html;
mod suite;
mod table;

pub use analysis::{
    ActiveTokens, Analysis, LatentActivation, LatentTrace, Metrics, PromptAnalysis, PromptLatent,
    PromptTokens, SaeAnalysis, TokenAnalysis,
};
pub use analyze::{PER_PROMPT, Prompt, SaeAt, analyze};
pub use error::{DashboardError, Result};
pub use html::page;
pub use suite::suite_page;
pub use table::{TableOptions, table};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
