//! What several files of these tests use.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use corpus::{BoxError, Content, CorpusError, Document, Encode, Field, ReadOptions, Role, Row, Turn, open};
use proptest::test_runner::{Config, RngAlgorithm};
use tempfile::TempDir;

pub(crate) const PAD: i64 = 0;
pub(crate) const EOS: i64 = 1;
pub(crate) const BOS: i64 = 2;
pub(crate) const START: i64 = 3;
pub(crate) const END: i64 = 4;

const NAMED: [&str; 5] = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"];

/// A byte is a token, behind the special ones; and these it reads out of a text, as real tokenizers do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes;

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((first, others)) = rest.split_first() {
            match NAMED.iter().position(|name| rest.starts_with(name.as_bytes())) {
                Some(special) => {
                    ids.push(special as i64);
                    rest = &rest[NAMED[special].len()..];
                }
                None => {
                    ids.push(byte(*first));
                    rest = others;
                }
            }
        }
        Ok(ids)
    }

    fn bos(&self) -> i64 {
        BOS
    }

    fn eos(&self) -> i64 {
        EOS
    }

    fn pad(&self) -> i64 {
        PAD
    }

    fn token(&self, text: &str) -> Option<i64> {
        NAMED.iter().position(|name| *name == text).map(|id| id as i64)
    }
}

fn byte(byte: u8) -> i64 {
    i64::from(byte) + NAMED.len() as i64
}

/// The ids of a text's bytes.
pub(crate) fn bytes(text: &str) -> Vec<i64> {
    text.bytes().map(byte).collect()
}

/// Ids as a text, special tokens by name.
pub(crate) fn spelled(ids: &[i64]) -> String {
    let spell = |id: &i64| match NAMED.get(*id as usize) {
        Some(name) => name.as_bytes().to_vec(),
        None => vec![(id - NAMED.len() as i64) as u8],
    };
    String::from_utf8(ids.iter().flat_map(spell).collect()).unwrap()
}

pub(crate) fn plain(text: &str) -> Document {
    Document { content: Content::Text(text.to_owned()), subset: None }
}

pub(crate) fn of(subset: &str, text: &str) -> Document {
    Document { subset: Some(subset.to_owned()), ..plain(text) }
}

pub(crate) fn user(text: &str) -> Turn {
    Turn { role: Role::User, text: text.to_owned() }
}

pub(crate) fn model(text: &str) -> Turn {
    Turn { role: Role::Model, text: text.to_owned() }
}

pub(crate) fn chat(turns: &[Turn]) -> Document {
    Document { content: Content::Chat(turns.to_vec()), subset: None }
}

/// A stream of documents, as from a file.
pub(crate) fn stream(documents: &[Document]) -> impl Iterator<Item = corpus::Result<Document>> + use<> {
    Vec::from(documents).into_iter().map(Ok)
}

pub(crate) fn ids(rows: &[Row]) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row.ids.clone()).collect()
}

/// A file in a folder that lives as long as the first of the two.
pub(crate) fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

pub(crate) fn read(path: &Path, options: &ReadOptions) -> corpus::Result<Vec<Document>> {
    open(path, options)?.collect()
}

pub(crate) fn texts(documents: &[Document]) -> Vec<&str> {
    let text = |document| match document {
        &Document { content: Content::Text(ref text), .. } => text.as_str(),
        other => panic!("no text: {other:?}"),
    };
    documents.iter().map(text).collect()
}

pub(crate) fn subsets(documents: &[Document]) -> Vec<&str> {
    documents.iter().map(|document| document.subset.as_deref().unwrap()).collect()
}

pub(crate) fn with_subset(field: &str) -> ReadOptions {
    ReadOptions { subset: Some(field.to_owned()), ..ReadOptions::default() }
}

pub(crate) fn with_chat(field: &str) -> ReadOptions {
    ReadOptions { content: Field::Chat(field.to_owned()), ..ReadOptions::default() }
}

/// Asserts that something was refused in one sentence that names what is at fault.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, impl Display>, at_fault: &[&str]) -> String {
    let text = match result {
        Ok(_) => panic!("was taken, but should have been refused for {at_fault:?}"),
        Err(error) => error.to_string(),
    };
    let one_sentence = !text.is_empty() && !text.contains(char::is_control) && !text.ends_with('.');
    assert!(one_sentence, "not one sentence: {text:?}");
    for part in at_fault {
        assert!(text.contains(part), "does not say `{part}`: {text}");
    }
    text
}

/// That an error ends a stream.
pub(crate) fn ends_with_error<T>(mut stream: impl Iterator<Item = corpus::Result<T>>) -> CorpusError {
    let error = stream.by_ref().find_map(Result::err).expect("an error");
    assert!(stream.next().is_none(), "goes on after an error");
    error
}

/// Cases from a fixed seed: a run that fails fails again.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20),
        ..Config::default()
    }
}
