use tch::{Device, Kind, Tensor};

use crate::{
    MixerOptions, Result, Rows,
    order::{Use, shuffle},
};

/// A block while it is read: each row goes to its random place in one of the parts at once.
#[derive(Debug)]
pub(crate) struct Block {
    /// The place of each row: part · `part_rows` + row of it.
    places: Vec<u32>,
    part_rows: i64,
    kind: Kind,
    filled: usize,
    /// `None` for parts that were served before the round that is begun.
    parts: Vec<Option<Part>>,
}

/// A part of a block: rows in a random order, that belong to a round.
#[derive(Debug)]
pub(crate) struct Part {
    round: u64,
    /// `[rows, width]` for each site; none before the first row comes, and none again behind the last.
    rows: Vec<Tensor>,
    left: i64,
    given: i64,
}

impl Block {
    /// An empty block, of which the parts are kept that are served in `round` or later.
    pub(crate) fn new(number: u64, round: u64, options: &MixerOptions, part_rows: u64) -> Self {
        // Rounds begin when `parts` blocks are there; the first blocks do without what earlier rounds would have served.
        let first = (options.parts - 1).saturating_sub(number);
        let count = (options.parts - first) * part_rows;
        let mut places: Vec<u32> = (0..count as u32).collect();
        shuffle(&mut places, options.seed, Use::Block, number);
        let part = |i: u64| (number + i >= round).then(|| Part::new(number + i));
        let parts = (first..options.parts).map(part).collect();
        Self { places, part_rows: part_rows as i64, kind: options.dtype.kind(), filled: 0, parts }
    }

    /// Rows that it still takes.
    pub(crate) fn room(&self) -> i64 {
        (self.places.len() - self.filled) as i64
    }

    /// Rows that its memory has room for.
    pub(crate) fn held(&self) -> u64 {
        self.parts.iter().flatten().filter(|part| !part.rows.is_empty()).count() as u64
            * self.part_rows as u64
    }

    /// Takes rows, no more than there is room for.
    pub(crate) fn put(&mut self, rows: &Rows) -> Result<()> {
        let places = self.places.get(self.filled..).unwrap_or_default();
        let places = places.get(..rows.rows() as usize).unwrap_or(places);
        // Which rows go to each part, and where in it.
        let mut to = vec![(Vec::new(), Vec::new()); self.parts.len()];
        for (row, place) in places.iter().enumerate() {
            let (part, at) = (i64::from(*place) / self.part_rows, i64::from(*place) % self.part_rows);
            if let Some((from, into)) = to.get_mut(part as usize) {
                from.push(row as i64);
                into.push(at);
            }
        }
        self.filled += places.len();
        for (part, (from, into)) in self.parts.iter_mut().zip(to) {
            if let (Some(part), false) = (part, from.is_empty()) {
                part.put(rows, &from, &into, (self.part_rows, self.kind))?;
            }
        }
        Ok(())
    }

    /// The parts that were kept, without the places that no row came to.
    pub(crate) fn into_parts(mut self) -> Result<Vec<Part>> {
        if self.room() > 0 {
            let mut filled = vec![Vec::new(); self.parts.len()];
            let mut places = self.places.get(..self.filled).unwrap_or_default().to_vec();
            places.sort_unstable();
            for place in places {
                if let Some(part) = filled.get_mut((i64::from(place) / self.part_rows) as usize) {
                    part.push(i64::from(place) % self.part_rows);
                }
            }
            for (part, filled) in self.parts.iter_mut().zip(filled) {
                if let Some(part) = part {
                    part.keep(&filled)?;
                }
            }
        }
        Ok(self.parts.into_iter().flatten().filter(|part| part.left > 0).collect())
    }
}

impl Part {
    fn new(round: u64) -> Self {
        Self { round, rows: Vec::new(), left: 0, given: 0 }
    }

    /// The round in which it is served.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// Rows that were not given yet.
    pub(crate) fn left(&self) -> i64 {
        self.left
    }

    /// Rows in memory.
    pub(crate) fn held(&self) -> i64 {
        self.rows.first().and_then(|t| t.size().first().copied()).unwrap_or(0)
    }

    /// Where its rows lie.
    pub(crate) fn device(&self) -> Option<Device> {
        self.rows.first().map(Tensor::device)
    }

    fn put(&mut self, rows: &Rows, from: &[i64], into: &[i64], (room, kind): (i64, Kind)) -> Result<()> {
        if self.rows.is_empty() {
            let empty = |t: &Tensor| {
                let width = t.size().get(1).copied().unwrap_or(0);
                Tensor::f_empty([room, width], (kind, t.device()))
            };
            self.rows = rows.at.iter().map(empty).collect::<Result<_, _>>()?;
        }
        let (from, into) = (Tensor::f_from_slice(from)?, Tensor::f_from_slice(into)?);
        for (mine, rows) in self.rows.iter_mut().zip(&rows.at) {
            let (from, into) = (from.f_to_device(rows.device())?, into.f_to_device(rows.device())?);
            let rows = rows.f_index_select(0, &from)?.f_to_kind(kind)?;
            let _mine = mine.f_index_copy_(0, &into, &rows)?;
        }
        self.left += into.numel() as i64;
        Ok(())
    }

    /// Keeps some rows alone.
    fn keep(&mut self, rows: &[i64]) -> Result<()> {
        let index = Tensor::f_from_slice(rows)?;
        for mine in &mut self.rows {
            *mine = mine.f_index_select(0, &index.f_to_device(mine.device())?)?;
        }
        Ok(())
    }

    /// Leaves out the next rows.
    pub(crate) fn skip(&mut self, rows: i64) {
        (self.given, self.left) = (self.given + rows, self.left - rows);
        if self.left <= 0 {
            self.rows = Vec::new();
        }
    }

    /// Copies the next rows to some places of a batch, and frees its memory with the last.
    pub(crate) fn give(&mut self, places: &[i64], batch: &mut [Tensor]) -> Result<()> {
        let count = places.len() as i64;
        let places = Tensor::f_from_slice(places)?;
        for (mine, batch) in self.rows.iter().zip(batch) {
            let rows = mine.f_narrow(0, self.given, count)?.f_to_kind(Kind::Float)?;
            let _batch = batch.f_index_copy_(0, &places.f_to_device(batch.device())?, &rows)?;
        }
        self.skip(count);
        Ok(())
    }
}
