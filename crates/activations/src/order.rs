//! Random orders that depend on a seed and a number alone, so that any of them can be made again by itself.

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// What an order is for: each use has its own random numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    /// Where a block's rows go.
    Block = 1,
    /// From which part each row of a round comes.
    Round = 2,
}

/// Shuffles with the generator of (seed, use, number).
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64, purpose: Use, number: u64) {
    let mut key = [0; 32];
    for (byte, from) in
        key.iter_mut().zip([seed, number, purpose as u64].iter().flat_map(|word| word.to_le_bytes()))
    {
        *byte = from;
    }
    items.shuffle(&mut StdRng::from_seed(key));
}
