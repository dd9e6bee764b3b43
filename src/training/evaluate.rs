use corpus::{Batch, Packing};
use eval::{EvalOptions, Judged, Means, Suite};
use train::run::{Member, Progress, Watch};

use super::{EvalTable, Result, TextSource, TrainingError, settings::Resolved};
use crate::{load::LoadedModel, suite::Encoder};

/// The metrics that a run follows, of `eval`'s.
const FOLLOWED: [&str; 9] = [
    "ce_clean",
    "ce_spliced",
    "delta_loss",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "kl",
    "fvu",
    "l0",
    "dead_fraction",
];

/// Judges the SAEs of a run on text that they are not trained on.
pub(super) struct Evaluation<'m> {
    model: &'m LoadedModel,
    batches: Vec<Batch>,
    means: Means,
    sites: Vec<(hooks::HookPoint, Option<hooks::HookPoint>)>,
}

impl<'m> Evaluation<'m> {
    pub(super) fn new(
        model: &'m LoadedModel,
        table: &EvalTable,
        text: &TextSource,
        saes: &[Resolved],
    ) -> Result<Self> {
        let documents = corpus::open(&table.text, &text.options)?;
        let tokenizer = model.tokenizer()?;
        let rows = corpus::Rows::new(documents, Encoder(tokenizer), text.context(model)?, Packing::Packed)?;
        let batches = corpus::Batches::new(rows, 1, tokenizer.pad())?.take(table.rows);
        let batches: Vec<Batch> = batches.collect::<corpus::Result<_>>()?;
        if batches.is_empty() {
            let problem = "there is no text in it".to_owned();
            return Err(TrainingError::File { path: table.text.clone(), problem });
        }
        let sites: Vec<_> = saes.iter().map(|sae| (sae.hook, sae.hook_out)).collect();
        let written = sites.iter().map(|(hook, out)| out.unwrap_or(*hook));
        let mut means = Means::new(&model.model, written)?;
        for batch in &batches {
            means.add(&model.model, &batch.tokens, EvalOptions::default().positions)?;
        }
        Ok(Self { model, batches, means, sites })
    }

    fn judge(&self, members: &[Member]) -> Result<Vec<Vec<(String, f64)>>> {
        let saes = members.iter().map(Member::to_sae).collect::<Result<Vec<_>, _>>()?;
        let judged = saes.iter().zip(members).zip(&self.sites).map(|((sae, member), (hook, out))| {
            Judged::new(member.name.clone(), *hook, sae).put_at(out.unwrap_or(*hook))
        });
        let mut suite = Suite::new(&self.model.model, judged.collect(), &self.means, EvalOptions::default())?;
        for batch in &self.batches {
            suite.add(&batch.tokens, None)?;
        }
        let of = |report: &eval::Report| {
            FOLLOWED.iter().filter_map(|name| Some(((*name).to_owned(), report.metrics.get(name)?))).collect()
        };
        Ok(suite.reports()?.iter().map(of).collect())
    }
}

/// A user's watch, with the evaluation of a run.
pub(super) struct Watched<'w, 'm> {
    pub(super) user: &'w mut dyn Watch,
    pub(super) evaluation: Option<Evaluation<'m>>,
}

impl Watch for Watched<'_, '_> {
    fn progress(&mut self, progress: Progress<'_>) {
        self.user.progress(progress);
    }

    fn stop(&mut self) -> bool {
        self.user.stop()
    }

    fn evaluate(&mut self, members: &[Member]) -> train::Result<Vec<Vec<(String, f64)>>> {
        match &self.evaluation {
            Some(evaluation) => evaluation.judge(members).map_err(|e| train::TrainError::Watch(e.into())),
            None => self.user.evaluate(members),
        }
    }
}
