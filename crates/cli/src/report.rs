//! Where an evaluation's reports go: a table on stdout, JSON, CSV, a page.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use gemma_scope::{
    dashboard::suite_page,
    eval::{METRICS, Report},
    tensors::write_atomically,
};

use crate::output::{note, say, width, write_json, write_text};

/// Where to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Reports {
    /// Writes every metric, numbers of each latent, histograms, parts and definitions: docs/eval.schema.json describes it.
    #[arg(long, value_name = "F")]
    pub(crate) json: Option<PathBuf>,
    /// Writes a line an SAE and a column a metric.
    #[arg(long, value_name = "F")]
    csv: Option<PathBuf>,
    /// Writes a page with plots that needs no other file.
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,
}

/// What the table shows, since a terminal is not wide.
const COLUMNS: [(&str, &str); 9] = [
    ("l0", "L0"),
    ("fvu", "FVU"),
    ("delta_loss", "Δ loss"),
    ("loss_recovered_zero", "recovered"),
    ("kl", "KL"),
    ("cosine", "cosine"),
    ("relative_reconstruction_bias", "bias"),
    ("dead_fraction", "dead"),
    ("frac_over_10_percent", "> 10 %"),
];

impl Reports {
    /// Whether nothing else than JSON is asked for.
    pub(crate) fn only_json(&self) -> bool {
        self.csv.is_none() && self.html.is_none()
    }

    /// Refuses, before anything is done, what could not be written in the end, two outputs in one place, and outputs in the place of
    /// what is read: files, or anything in a folder.
    pub(crate) fn check<'p>(&self, reads: impl IntoIterator<Item = &'p Path>) -> Result<()> {
        let reads: Vec<PathBuf> = reads.into_iter().map(place).collect();
        let mut taken: Vec<(&str, PathBuf)> = Vec::new();
        for (option, path) in self.targets() {
            let name = || format!("{option} {}", path.display());
            ensure!(!path.is_dir(), "{}: is a folder", name());
            let place = place(path);
            // A new file beside those of a folder that is read harms none of them.
            let is_read =
                reads.iter().any(|read| place == *read || (path.exists() && place.starts_with(read)));
            ensure!(!is_read, "{}: would be written over what is read", name());
            if let Some((other, _)) = taken.iter().find(|(_, taken)| *taken == place) {
                bail!("{}: is where {other} writes", name());
            }
            taken.push((option, place));
        }
        Ok(())
    }

    fn targets(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [("--json", &self.json), ("--csv", &self.csv), ("--html", &self.html)]
            .into_iter()
            .filter_map(|(option, path)| Some((option, path.as_ref()?)))
    }

    /// Writes all that was asked for, and the table.
    pub(crate) fn write(&self, reports: &[Report]) -> Result<()> {
        say(&table(reports))?;
        if let Some(path) = &self.json {
            write_json(path, &reports)?;
        }
        if let Some(path) = &self.csv {
            write_csv(path, reports)?;
        }
        if let Some(path) = &self.html {
            write_text(path, &suite_page(reports, "Evaluation of sparse autoencoders")?)?;
        }
        for (_, path) in self.targets() {
            note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

/// The one name of a file that need not be there yet.
fn place(path: &Path) -> PathBuf {
    if let Ok(there) = fs::canonicalize(path) {
        return there;
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    path.file_name().map_or_else(|| folder.clone(), |name| folder.join(name))
}

/// A line an SAE; all metrics where there is but one.
fn table(reports: &[Report]) -> String {
    let mut text = match reports {
        [report] => report.to_string(),
        _ => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_width(width().max(80));
            let names = COLUMNS.iter().map(|(_, title)| (*title).to_owned());
            table.set_header(["SAE".to_owned()].into_iter().chain(names));
            for report in reports {
                let shown = |(name, _): &(&str, &str)| match report.metrics.get(name) {
                    Some(value) if *name == "l0" => format!("{value:.1}"),
                    Some(value) if value.abs() >= 1e6 => format!("{value:.3e}"),
                    Some(value) => format!("{value:.4}"),
                    None => "–".to_owned(),
                };
                table.add_row([report.id.clone()].into_iter().chain(COLUMNS.iter().map(shown)));
            }
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            format!("{table}\n")
        }
    };
    for report in reports.iter().filter(|report| !report.by_subset.is_empty()) {
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
        text += &format!("{} by subset\n", report.id);
        for (name, part) in &report.by_subset {
            let (loss, fvu) = (shown(part.delta_loss), shown(part.fvu));
            text += &format!("  {name}: {} tokens, Δ loss {loss}, FVU {fvu}\n", part.tokens);
        }
    }
    text
}

fn write_csv(path: &Path, reports: &[Report]) -> Result<()> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let about = [
        "id",
        "model",
        "sae_dtype",
        "positions",
        "hook",
        "hook_out",
        "architecture",
        "d_in",
        "d_out",
        "d_sae",
        "tokens",
    ];
    csv.write_record(about.into_iter().chain(METRICS.iter().map(|metric| metric.name)))?;
    for report in reports {
        let about = &report.provenance;
        let told =
            |key: &str| about.more.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let first = [
            report.id.clone(),
            told("model"),
            told("sae_dtype"),
            about.positions.clone(),
            about.hook.to_string(),
            about.hook_out.to_string(),
            about.architecture.clone(),
            about.d_in.to_string(),
            about.d_out.to_string(),
            about.d_sae.to_string(),
            report.tokens.to_string(),
        ];
        let value = |name| report.metrics.get(name).map_or(String::new(), |value| value.to_string());
        csv.write_record(first.into_iter().chain(METRICS.iter().map(|metric| value(metric.name))))?;
    }
    let bytes = csv.into_inner()?;
    write_atomically(path, |file| {
        std::io::Write::write_all(file, &bytes).map_err(|e| gemma_scope::tensors::TensorError::io(path, e))
    })?;
    Ok(())
}
