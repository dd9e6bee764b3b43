//! SAEs against the files of Gemma Scope and what SAELens computes with them, and the laws they keep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a failed helper is a failed test"
)]

mod anatomy;
mod architectures;
mod architectures_gradients;
mod architectures_laws;
mod broken;
mod catalogue;
mod common;
mod conformance;
mod exact;
mod files;
mod files_damage;
mod folds;
mod formats_circuit_tracer;
mod formats_common;
mod formats_delphi;
mod formats_dictionary_learning;
mod formats_gemma_scope_2;
mod formats_openai;
mod formats_openmoss;
mod formats_saelens;
mod formats_saelens_old;
mod formats_sparsify;
mod golden;
mod gradients;
mod jumprelu;
mod options_refused;
mod places;
mod reference;
mod release;
mod release_bad;
mod sites;
mod sparse;
mod sparse_bad;
mod sparse_file;
mod sparse_views;
mod splice;
mod splice_gemma;
mod splice_pieces;
mod splice_refused;
mod top;
mod weights_in_files;
