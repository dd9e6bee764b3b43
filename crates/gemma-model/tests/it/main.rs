//! The model against Hugging Face's, and the laws it keeps.

mod golden;
