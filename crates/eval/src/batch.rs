use std::collections::BTreeMap;

use hooks::{HookPoint, TokenBatch};
use sae_core::{SparseFeatures, as_input};
use tch::{Kind, Tensor};

use crate::{
    EvalOptions, Result, Subsets,
    head::Losses,
    loss::scored,
    means::{indices, mask},
    reconstruction::Row,
    sums::{Part, SaeSums},
    uniformity::{Pick, picks},
};

/// Where in a batch positions and losses count, and what belongs to them.
pub(crate) struct BatchView<'t> {
    tokens: &'t TokenBatch,
    /// Positions that count, `[n]`: indices into the batch's positions in a row.
    pub(crate) kept_index: Tensor,
    scored_index: Tensor,
    /// The tokens that follow where losses count.
    pub(crate) next: Tensor,
    /// Sequence and column of each position that counts.
    pub(crate) kept: Vec<(usize, usize)>,
    /// Sequence and column of each position whose loss counts.
    pub(crate) scored: Vec<(usize, usize)>,
    /// The positions whose latents' importance is looked at.
    pub(crate) picks: Vec<Pick>,
    subsets: Option<Subsets<'t>>,
}

impl<'t> BatchView<'t> {
    pub(crate) fn new(
        tokens: &'t TokenBatch,
        subsets: Option<Subsets<'t>>,
        options: EvalOptions,
    ) -> Result<Self> {
        if let Some(subsets) = &subsets {
            subsets.check(tokens)?;
        }
        let mask = mask(options.positions, tokens)?;
        let kept_index = indices(&mask)?;
        // The last position has no next.
        let last = Tensor::f_zeros([tokens.batch(), 1], (Kind::Bool, mask.device()))?;
        let scored_index = indices(&Tensor::f_cat(&[scored(&mask, tokens)?, last], 1)?)?;
        let next = tokens.ids().f_reshape([-1])?.f_index_select(0, &scored_index.f_add_scalar(1)?)?;
        let pos = tokens.pos() as usize;
        let places = |index: &Tensor| -> Result<Vec<(usize, usize)>> {
            let index = Vec::<i64>::try_from(index.f_to_device(tch::Device::Cpu)?)?;
            Ok(index.into_iter().map(|i| (i as usize / pos, i as usize % pos)).collect())
        };
        let (kept, scored) = (places(&kept_index)?, places(&scored_index)?);
        let row_of: BTreeMap<(usize, usize), usize> =
            kept.iter().enumerate().map(|(row, at)| (*at, row)).collect();
        let pick = |at: &(usize, usize)| {
            Some(Pick { at: *at, row: *row_of.get(at)?, next: *tokens.rows().get(at.0)?.get(at.1 + 1)? })
        };
        let all: Vec<Pick> = scored.iter().filter_map(pick).collect();
        let picks = picks(&all, options.uniformity);
        Ok(Self { tokens, kept_index, scored_index, next, kept, scored, picks, subsets })
    }

    /// The sequence of each position that counts.
    pub(crate) fn sequences(&self) -> Vec<u32> {
        self.kept.iter().map(|(sequence, _)| *sequence as u32).collect()
    }

    /// The rows of `[batch, pos, d]` where losses count: `[n, d]`.
    pub(crate) fn at_scored(&self, stream: &Tensor) -> Result<Tensor> {
        Ok(stream.f_flatten(0, 1)?.f_index_select(0, &self.scored_index.f_to_device(stream.device())?)?)
    }

    /// An activation with other rows, `[n, d]`, at the positions that count.
    pub(crate) fn put(&self, site: HookPoint, act: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let x = as_input(site, act)?.f_flatten(0, 1)?;
        let put = x.f_index_copy(0, &self.kept_index.f_to_device(x.device())?, rows)?;
        Ok(put.f_reshape(act.size())?.f_to_kind(act.f_kind()?)?)
    }

    /// Adds what each position that counts contributed to the parts it belongs to.
    pub(crate) fn add_rows(&self, sae: &mut SaeSums, rows: &[Row], features: &SparseFeatures) -> Result<()> {
        let starts = Vec::<i64>::try_from(features.indptr().f_to_device(tch::Device::Cpu)?)?;
        let active: Vec<f64> = starts.windows(2).map(|bounds| (bounds[1] - bounds[0]) as f64).collect();
        let error: Vec<f64> = rows.iter().map(|row| row.error).collect();
        let spread: Vec<f64> = rows.iter().map(|row| row.spread).collect();
        self.for_each_part(sae, &self.kept, &[&active, &error, &spread], |part, n, sums| {
            part.tokens += n;
            part.active += sums[0] as u64;
            part.error.add(sums[1]);
            part.spread.add(sums[2]);
        });
        Ok(())
    }

    /// Adds the losses to the parts of the data.
    pub(crate) fn add_losses(&self, sae: &mut SaeSums, clean: &Losses, spliced: &Losses) {
        let values = [clean.ce.as_slice(), &spliced.ce, &spliced.kl];
        self.for_each_part(sae, &self.scored, &values, |part, n, sums| {
            part.scored += n;
            part.ce_clean.add(sums[0]);
            part.ce_spliced.add(sums[1]);
            part.kl.add(sums[2]);
        });
    }

    /// Sums values of some places by column and by subset, and has each part take the number of places and the sums.
    fn for_each_part(
        &self,
        sae: &mut SaeSums,
        places: &[(usize, usize)],
        values: &[&[f64]],
        take: impl Fn(&mut Part, u64, &[f64]),
    ) {
        let columns = self.tokens.pos() as usize;
        if sae.by_position.len() < columns {
            sae.by_position.resize_with(columns, Part::default);
        }
        for (part, (n, sums)) in
            sae.by_position.iter_mut().zip(grouped(places, values, columns, |(_, column)| Some(column)))
        {
            if n > 0 {
                take(part, n, &sums);
            }
        }
        let Some(Subsets { names, of }) = self.subsets else { return };
        let by_name = grouped(places, values, names.len(), |(sequence, column)| {
            of[sequence][column].map(|name| name as usize)
        });
        for (name, (n, sums)) in names.iter().zip(by_name) {
            if n > 0 {
                take(sae.by_subset.entry(name.clone()).or_default(), n, &sums);
            }
        }
    }
}

/// How many places fall into each group, and the sums of their values.
fn grouped(
    places: &[(usize, usize)],
    values: &[&[f64]],
    groups: usize,
    group_of: impl Fn((usize, usize)) -> Option<usize>,
) -> Vec<(u64, Vec<f64>)> {
    let mut found = vec![(0, vec![0.0; values.len()]); groups];
    for (i, place) in places.iter().enumerate() {
        let Some((n, sums)) = group_of(*place).and_then(|group| found.get_mut(group)) else { continue };
        *n += 1;
        for (sum, values) in sums.iter_mut().zip(values) {
            *sum += values[i];
        }
    }
    found
}
