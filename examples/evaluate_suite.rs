//! Several SAEs judged in one pass, in two shards that are merged.
//!
//! ```console
//! cargo run --release --example evaluate_suite
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use gemma_scope::{
    corpus::{Content, Document, Packing},
    eval::EvalOptions,
    hub::Hub,
    load::load_model,
    model::LoadOptions,
    sae::OpenOptions,
    suite::{Entry, Part, Run, SaeDtype, Shard, Text},
};

const TEXTS: [&str; 3] = [
    "The captain of the ship looked at the sea, and the sea looked at him.",
    "It was a dark night, and the rain had not stopped since the morning.",
    "\"I do not know,\" said the queen, \"what you mean by that.\"",
];

fn main() -> anyhow::Result<()> {
    let gemma = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let documents = TEXTS.map(|text| Ok(Document { content: Content::Text(text.to_owned()), subset: None }));
    // Sequences of 16 tokens, one at a time, so that there are batches to divide.
    let text = Text::pack(documents, gemma.tokenizer()?, (16, 1), Packing::Packed)?;

    // In float32 and in bfloat16: an entry each. A glob of names would be many more.
    let open = OpenOptions::default();
    let saes = Entry::of("tiny", None, &[SaeDtype::F32, SaeDtype::Bf16], &open, Hub::from_env)?;

    let judge = |shard| {
        let run = Run {
            model: &gemma.model,
            saes: saes.clone(),
            text: &text,
            options: EvalOptions::default(),
            neighbours: false,
            open: OpenOptions::default(),
            hold: 1 << 30,
            shard,
            folder: None, // a folder to go on from after a kill
            provenance: Default::default(),
        };
        run.judge(Hub::from_env, |_progress| ())
    };
    let parts = vec![judge(Shard::new(1, 2)?)?, judge(Shard::new(2, 2)?)?];
    let reports = Part::merge(parts)?.reports()?;
    assert_eq!(reports, judge(Shard::WHOLE)?.reports()?, "the same to the last digit");
    for report in reports {
        println!("{report}");
    }
    Ok(())
}
