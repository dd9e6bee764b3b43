//! The encoded corpus, and the sequences that training and evaluation read.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use gemma_model::Tokenizer;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::corpus;

/// Encodes both splits to `SPLIT.tokens`: for each document its length, then its ids with EOS at the end, all u32.
pub(crate) fn encode(run: &Path) -> Result<()> {
    let tokenizer = Tokenizer::load(run)?;
    for split in ["train", "heldout"] {
        let mut bytes = Vec::new();
        let (mut count, mut characters) = (0, 0);
        for document in corpus::read(run, split)? {
            let mut ids = tokenizer.encode_plain(&document.text)?;
            ids.push(tokenizer.eos());
            count += ids.len();
            characters += document.text.chars().count();
            bytes.extend((ids.len() as u32).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|&id| (id as u32).to_le_bytes()));
        }
        fs::write(run.join(format!("{split}.tokens")), bytes)?;
        println!("{split}: {count} tokens, {:.2} characters each", characters as f64 / count as f64);
    }
    Ok(())
}

/// The documents of a split as ids.
pub(crate) fn load(run: &Path, split: &str) -> Result<Vec<Vec<i64>>> {
    let path = run.join(format!("{split}.tokens"));
    let bytes =
        fs::read(&path).with_context(|| format!("{}: run the step `tokenizer` first", path.display()))?;
    let words: Vec<i64> =
        bytes.chunks_exact(4).map(|b| i64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
    let mut documents = Vec::new();
    let mut rest = words.as_slice();
    while let Some((&length, after)) = rest.split_first() {
        ensure!(length as usize <= after.len(), "{}: truncated", path.display());
        let (document, after) = after.split_at(length as usize);
        documents.push(document.to_vec());
        rest = after;
    }
    Ok(documents)
}

/// One epoch of training sequences of `ctx` tokens, each beginning with BOS: every document is cut at an offset of its own,
/// its end (with EOS) is always among them, and all are shuffled. The seed and the epoch fix the order.
pub(crate) fn epoch(documents: &[Vec<i64>], ctx: usize, bos: i64, seed: u64, epoch: u64) -> Vec<Vec<i64>> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(epoch));
    let body = ctx - 1;
    let with_bos = |piece: &[i64]| std::iter::once(bos).chain(piece.iter().copied()).collect::<Vec<_>>();
    let mut sequences = Vec::new();
    for document in documents.iter().filter(|d| d.len() >= body) {
        let offset = rng.random_range(0..body.min(document.len() - body + 1));
        sequences.extend(document[offset..].chunks_exact(body).map(with_bos));
        sequences.push(with_bos(&document[document.len() - body..]));
    }
    sequences.shuffle(&mut rng);
    sequences
}

/// Held-out sequences of `ctx` tokens, each beginning with BOS, without overlap; the rest of a document is left out.
pub(crate) fn windows(documents: &[Vec<i64>], ctx: usize, bos: i64) -> Vec<Vec<i64>> {
    let with_bos = |piece: &[i64]| std::iter::once(bos).chain(piece.iter().copied()).collect();
    documents.iter().flat_map(|d| d.chunks_exact(ctx - 1).map(with_bos)).collect()
}
