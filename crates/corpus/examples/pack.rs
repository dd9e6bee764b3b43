//! Packs a file's documents into rows and shows them, a byte a token:
//! `cargo run --release -p corpus --example pack -- FILE [CTX]`. Without a file, three lines of its own.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use anyhow::{Context as _, Result};
use corpus::{BoxError, Content, CorpusError, Document, Encode, Label, Packing, ReadOptions, Rows, open};

const POEM: [&str; 3] = ["Tyger Tyger,", "burning bright,", "In the forests of the night;"];

/// A byte is a token, behind padding, EOS and BOS.
struct Bytes;

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        Ok(text.bytes().map(|byte| i64::from(byte) + 3).collect())
    }

    fn bos(&self) -> i64 {
        2
    }

    fn eos(&self) -> i64 {
        1
    }

    fn pad(&self) -> i64 {
        0
    }

    fn token(&self, _text: &str) -> Option<i64> {
        None
    }
}

type Stream = Box<dyn Iterator<Item = Result<Document, CorpusError>>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let documents: Stream = match arguments.next() {
        Some(path) => Box::new(open(path, &ReadOptions::default())?),
        None => Box::new(
            POEM.iter().map(|line| Ok(Document { content: Content::Text((*line).to_owned()), subset: None })),
        ),
    };
    let ctx =
        arguments.next().map_or(Ok(24), |ctx| ctx.parse()).context("CTX is the number of tokens a row")?;
    let mut rows = Rows::new(documents, Bytes, ctx, Packing::Packed)?;
    for row in rows.by_ref() {
        let row = row?;
        let spelled: Vec<u8> =
            row.ids.iter().zip(&row.labels).map(|(id, label)| spell(*id, *label)).collect();
        println!("{}", String::from_utf8_lossy(&spelled));
    }
    println!("{:#?}", rows.summary());
    Ok(())
}

/// BOS as `^`, EOS as `|`, a line break as `/`.
fn spell(id: i64, label: Label) -> u8 {
    match (label, id) {
        (Label::Control, 2) => b'^',
        (Label::Control, _) => b'|',
        _ => u8::try_from(id - 3).ok().filter(|byte| *byte != b'\n').unwrap_or(b'/'),
    }
}
