use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    ActivationError, Cursor, Dtype, Result, Rows, Site, Source,
    block::{Block, Part},
    order::{Use, shuffle},
};

/// How rows are mixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixerOptions {
    /// Rows that the buffer holds: about 10⁶ in Gemma Scope (section 3.1).
    pub buffer_rows: u64,
    /// Parts that a block is served in, 1 to 256: more parts spread a block's rows further, less evenly.
    pub parts: u64,
    /// The order's seed.
    pub seed: u64,
    /// How the buffer keeps numbers. Batches are float32 in any case.
    pub dtype: Dtype,
}

impl Default for MixerOptions {
    /// 2²⁰ rows, 8 parts, seed 0, float32.
    fn default() -> Self {
        Self { buffer_rows: 1 << 20, parts: 8, seed: 0, dtype: Dtype::F32 }
    }
}

impl MixerOptions {
    fn check(&self) -> Result<()> {
        if !(1..=256).contains(&self.parts) {
            return Err(ActivationError::Options(format!("`parts` must be 1 to 256, but is {}", self.parts)));
        }
        if !(1..=1 << 31).contains(&self.buffer_rows) {
            let problem = format!("`buffer_rows` must be 1 to 2^31, but is {}", self.buffer_rows);
            return Err(ActivationError::Options(problem));
        }
        Ok(())
    }

    /// Rows of a part: a block of `parts` of them is 2·buffer/(parts + 1), so that the parts that wait fill the buffer.
    fn part_rows(&self) -> u64 {
        (2 * self.buffer_rows / (self.parts + 1)).div_ceil(self.parts).max(1)
    }
}

/// Where a mixer stands: what it takes to go on, without the rows that its buffer holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixerState {
    /// The options that the order depends on.
    pub options: MixerOptions,
    /// The round that is served.
    pub round: u64,
    /// Rows of it that were served.
    pub served: u64,
    /// Where the oldest block begins of which a row is still to be served.
    pub from: Cursor,
}

/// Where a mixer's time went, and how much it held.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct MixerStats {
    /// Seconds in the source, waiting included: of a live source, the model's.
    pub source: f64,
    /// Seconds of it in which the source waited for storage.
    pub waited: f64,
    /// Seconds in which rows were moved.
    pub mixing: f64,
    /// Rows that the buffer holds.
    pub held: u64,
    /// The most it has held.
    pub most_held: u64,
}

/// Mixes the rows of a source, and can be taken up from a small state to the last bit.
///
/// The source's rows are cut into blocks of `2·buffer/(parts + 1)` rows. A block's rows are put in a random order, seeded by the
/// block's number, and cut into `parts` equal parts; part i of block j is served in round j + i, together with a part of each of the
/// blocks before. Within a round the next row is taken from a random one of its parts. So a row meets those of `2·parts − 1` blocks,
/// the buffer holds `buffer_rows` when a round begins, and all that is served later depends on the last `parts` blocks alone: a
/// resumed mixer reads these again and goes on with the same rows.
///
/// The first blocks are shorter, as if what rounds before the first would have served had not been there. When the source ends, all
/// that is left is served as one round.
#[derive(Debug)]
pub struct Mixer<S> {
    source: S,
    options: MixerOptions,
    /// Parts that wait for a later round.
    waiting: Vec<Part>,
    /// Parts of the round that is served.
    serving: Vec<Part>,
    /// The part that each row of the round comes from.
    order: Vec<u16>,
    served: usize,
    round: u64,
    /// Number and beginning of each block of which rows may be left.
    starts: VecDeque<(u64, Cursor)>,
    /// Where the first block begins.
    origin: Cursor,
    /// Whether a round was begun.
    begun: bool,
    /// Whether the source has ended.
    ended: bool,
    /// The rest of a chunk that the last block had no room for, with its place.
    rest: Option<(Cursor, Rows)>,
    /// Set when a batch failed half-way: where to go on.
    failed: Option<MixerState>,
    stats: Times,
}

#[derive(Debug, Default)]
struct Times {
    all: Duration,
    source: Duration,
    most_held: u64,
}

impl<S: Source> Mixer<S> {
    /// A mixer of what a source gives from here on. Nothing is read yet.
    ///
    /// # Errors
    /// [`ActivationError::Options`].
    pub fn new(source: S, options: MixerOptions) -> Result<Self> {
        options.check()?;
        let (origin, round) = (source.cursor(), options.parts - 1);
        Ok(Self {
            source,
            options,
            waiting: Vec::new(),
            serving: Vec::new(),
            order: Vec::new(),
            served: 0,
            round,
            starts: VecDeque::new(),
            origin,
            begun: false,
            ended: false,
            rest: None,
            failed: None,
            stats: Times::default(),
        })
    }

    /// The sites of each batch.
    pub fn sites(&self) -> &[Site] {
        self.source.sites()
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The next `rows` rows, float32, on the source's device; fewer at the end of the source, then `None`.
    ///
    /// # Errors
    /// The source's. No row is lost: the next call tries the same batch again, and [`state`](Self::state) is what it was before.
    pub fn next_batch(&mut self, rows: usize) -> Result<Option<Rows>> {
        let start = Instant::now();
        let batch = self.try_batch(rows);
        self.stats.all += start.elapsed();
        batch
    }

    fn try_batch(&mut self, rows: usize) -> Result<Option<Rows>> {
        if let Some(state) = self.failed.take() {
            self.go_to(&state)?;
        }
        let before = self.state();
        let batch = self.take(rows);
        if batch.is_err() {
            self.failed = Some(before);
        }
        batch
    }

    /// Where the mixer stands: behind the last batch that it gave.
    pub fn state(&self) -> MixerState {
        if let Some(state) = &self.failed {
            return state.clone();
        }
        let from = self.starts.front().map_or(self.origin, |(_, start)| *start);
        MixerState { options: self.options.clone(), round: self.round, served: self.served as u64, from }
    }

    /// Goes to where a mixer of the same source and options stood. The blocks that wait there are read again.
    ///
    /// # Errors
    /// [`ActivationError::Settings`] for a state of other options; a place that the source does not have; the source's.
    pub fn restore(&mut self, state: &MixerState) -> Result<()> {
        let (there, here) = (&state.options, &self.options);
        for (setting, found, asked) in [
            ("buffer_rows", there.buffer_rows.to_string(), here.buffer_rows.to_string()),
            ("parts", there.parts.to_string(), here.parts.to_string()),
            ("seed", there.seed.to_string(), here.seed.to_string()),
            ("dtype", there.dtype.to_string(), here.dtype.to_string()),
        ] {
            if found != asked {
                let what = "the stream".to_owned();
                return Err(ActivationError::Settings { what, setting, found, asked });
            }
        }
        self.failed = None;
        self.go_to(state)
    }

    /// As [`restore`](Self::restore); a failure leaves the state for another try.
    fn go_to(&mut self, state: &MixerState) -> Result<()> {
        let gone = self.try_to_go(state);
        if gone.is_err() {
            self.failed = Some(state.clone());
        }
        gone
    }

    fn try_to_go(&mut self, state: &MixerState) -> Result<()> {
        let no_state = |problem: String| {
            Err(ActivationError::Seek { what: "the mixer".to_owned(), at: state.from, problem })
        };
        if state.round < self.options.parts - 1 {
            return no_state(format!("there is no round {}", state.round));
        }
        (self.waiting, self.serving, self.order, self.served) = (Vec::new(), Vec::new(), Vec::new(), 0);
        (self.starts, self.rest, self.ended, self.begun) = (VecDeque::new(), None, false, false);
        self.source.seek(state.from)?;
        self.origin = state.from;
        let oldest = state.round - (self.options.parts - 1);
        // A mixer that has not begun needs nothing yet.
        if oldest == 0 && state.served == 0 {
            self.round = state.round;
            return Ok(());
        }
        self.begin(state.round, oldest)?;
        let Some(served) = usize::try_from(state.served).ok().and_then(|n| self.order.get(..n)) else {
            return no_state(format!("round {} has {} rows", state.round, self.order.len()));
        };
        for part in served {
            if let Some(part) = self.serving.get_mut(usize::from(*part)) {
                part.skip(1);
            }
        }
        self.served = served.len();
        Ok(())
    }

    /// Where the time went.
    pub fn stats(&self) -> MixerStats {
        MixerStats {
            source: self.stats.source.as_secs_f64(),
            waited: self.source.waited().as_secs_f64(),
            mixing: self.stats.all.saturating_sub(self.stats.source).as_secs_f64(),
            held: self.held(),
            most_held: self.stats.most_held,
        }
    }

    /// Rows in memory, those of parts that are served in part included.
    fn held(&self) -> u64 {
        let rest = self.rest.as_ref().map_or(0, |(_, rows)| rows.rows());
        (self.waiting.iter().chain(&self.serving).map(Part::held).sum::<i64>() + rest) as u64
    }

    fn take(&mut self, rows: usize) -> Result<Option<Rows>> {
        let mut batch: Option<Rows> = None;
        let mut have = 0;
        while have < rows {
            if self.served == self.order.len() && !self.begin_next()? {
                break;
            }
            if batch.is_none() {
                batch = Some(self.room_for(rows)?);
            }
            let Some(batch) = &mut batch else { break };
            have += self.serve(batch, have, rows)?;
        }
        match batch {
            Some(batch) if have < rows => Ok(Some(batch.narrow(0, have as i64)?)),
            batch => Ok(batch),
        }
    }

    fn room_for(&self, rows: usize) -> Result<Rows> {
        let device = self.serving.iter().find_map(Part::device).unwrap_or(Device::Cpu);
        let room = |site: &Site| Ok(Tensor::f_empty([rows as i64, site.width], (Kind::Float, device))?);
        Rows::new(self.source.sites().iter().map(room).collect::<Result<_>>()?)
    }

    /// Puts rows of this round into a batch from `have` on, and says how many.
    fn serve(&mut self, batch: &mut Rows, have: usize, rows: usize) -> Result<usize> {
        let order = self.order.get(self.served..).unwrap_or_default();
        let order = order.get(..rows - have).unwrap_or(order);
        // The places in the batch of what each part gives.
        let mut places = vec![Vec::new(); self.serving.len()];
        for (i, part) in order.iter().enumerate() {
            if let Some(places) = places.get_mut(usize::from(*part)) {
                places.push((have + i) as i64);
            }
        }
        for (part, places) in self.serving.iter_mut().zip(places) {
            if !places.is_empty() {
                part.give(&places, &mut batch.at)?;
            }
        }
        self.served += order.len();
        Ok(order.len())
    }

    /// Begins the round behind this one. `false` where none is.
    fn begin_next(&mut self) -> Result<bool> {
        match (self.begun, self.ended) {
            (true, true) => return Ok(false),
            (true, false) => self.begin(self.round + 1, self.round + 1)?,
            (false, _) => self.begin(self.round, 0)?,
        }
        Ok(!self.order.is_empty())
    }

    /// Begins a round, once the blocks from `block` to the round's own are read.
    fn begin(&mut self, round: u64, block: u64) -> Result<()> {
        self.serving = Vec::new();
        for block in block..=round {
            if self.ended {
                break;
            }
            self.read_block(block, round)?;
        }
        let oldest = round.saturating_sub(self.options.parts - 1);
        while self.starts.front().is_some_and(|(block, _)| *block < oldest) {
            self.starts.pop_front();
        }
        let ended = self.ended;
        let waiting = std::mem::take(&mut self.waiting);
        (self.serving, self.waiting) = waiting.into_iter().partition(|part| ended || part.round() == round);
        self.order = Vec::new();
        for (i, part) in self.serving.iter().enumerate() {
            // At most parts·(parts + 1)/2 parts are left in the end, fewer than 2¹⁶.
            self.order.extend(std::iter::repeat_n(i as u16, part.left() as usize));
        }
        shuffle(&mut self.order, self.options.seed, Use::Round, round);
        (self.round, self.served, self.begun) = (round, 0, true);
        Ok(())
    }

    /// Reads a block and keeps those of its parts that are served in `round` or later.
    fn read_block(&mut self, number: u64, round: u64) -> Result<()> {
        let start = self.rest.as_ref().map_or_else(|| self.source.cursor(), |(at, _)| *at);
        self.starts.push_back((number, start));
        let mut block = Block::new(number, round, &self.options, self.options.part_rows());
        while block.room() > 0 {
            let Some((at, rows)) = self.next_chunk()? else {
                self.ended = true;
                break;
            };
            let take = block.room().min(rows.rows());
            block.put(&rows.narrow(0, take)?)?;
            if take < rows.rows() {
                let at = Cursor { chunk: at.chunk, row: at.row + take as u64 };
                self.rest = Some((at, rows.narrow(take, rows.rows() - take)?));
            }
            self.stats.most_held = self.stats.most_held.max(self.held() + block.held());
        }
        self.waiting.extend(block.into_parts()?);
        Ok(())
    }

    fn next_chunk(&mut self) -> Result<Option<(Cursor, Rows)>> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        let (start, at) = (Instant::now(), self.source.cursor());
        let rows = self.source.next();
        self.stats.source += start.elapsed();
        Ok(rows?.map(|rows| (at, rows)))
    }
}
