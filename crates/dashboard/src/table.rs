use std::fmt::Write as _;

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, Table, TableComponent, Width, presets,
};

use crate::{
    Analysis, LatentActivation, PromptAnalysis, PromptLatent, PromptTokens, SaeAnalysis, TokenAnalysis,
};

/// How a [`table`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableOptions {
    /// How many columns the terminal has. Below [`NARROWEST`](Self::NARROWEST) it is taken to be that.
    pub width: u16,
    /// Whether to colour strong activations, and dim tokens that do not count and latents that are active on more than half
    /// of those that do, with ANSI escape sequences.
    pub colours: bool,
}

impl TableOptions {
    /// The narrowest table.
    pub const NARROWEST: u16 = 30;
}

impl Default for TableOptions {
    /// 100 columns, no colours.
    fn default() -> Self {
        Self { width: 100, colours: false }
    }
}

/// A token's cell is never wider than this; a longer token goes on in the next line.
const TOKEN_WIDTH: u16 = 24;

/// The analysis as text for a terminal: for each SAE and prompt a table of tokens with their L0 and strongest latents, and
/// the latents that stand out; then one line an SAE with its metrics.
///
/// Spaces of a token are shown as `·`, newlines as `⏎`, tabs as `⇥`; control characters, and those that have no width or
/// reorder their neighbours, are escaped (`\u{200b}`). Tokens that do not count stand in parentheses.
pub fn table(analysis: &Analysis, options: &TableOptions) -> String {
    let width = options.width.max(TableOptions::NARROWEST);
    let mut text = String::new();
    for sae in &analysis.saes {
        let about = format!("{} reads {} ({}, {} latents)", sae.id, sae.hook, sae.architecture, sae.d_sae);
        heading(&mut text, &visible_line(&about), width);
        for (i, (tokens, found)) in analysis.prompts.iter().zip(&sae.prompts).enumerate() {
            text += "\n";
            if analysis.prompts.len() > 1 {
                heading(&mut text, &format!("sentence {}", i + 1), width);
            }
            text += &prompt_table(tokens, found, sae, width);
            text += "\n";
            if let Some(line) = standing_out(tokens, found) {
                heading(&mut text, &line, width);
            }
        }
        text += "\n";
    }
    for sae in &analysis.saes {
        heading(&mut text, &visible_line(&summary(sae)), width);
    }
    paint(&text, options.colours)
}

fn prompt_table(tokens: &PromptTokens, found: &PromptAnalysis, sae: &SaeAnalysis, width: u16) -> String {
    let shades = Shades::new(found, sae);
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(["token", "L0", "strongest latents"]);
    for ((token, &counted), analysis) in tokens.tokens.iter().zip(&tokens.counted).zip(&found.tokens) {
        let shown = visible(token);
        let name = if counted { shown } else { format!("{DIM}({shown}){END}") };
        table.add_row([name, analysis.l0.to_string(), latents(analysis, counted, &shades)]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(TOKEN_WIDTH.min(width / 3))));
    }
    if let Some(column) = table.column_mut(1) {
        column.set_constraint(ColumnConstraint::ContentWidth);
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// `1234 ×7.1  88 ×3.0`, where each pair stays on one line.
fn latents(token: &TokenAnalysis, counted: bool, shades: &Shades) -> String {
    let one = |entry: &LatentActivation| {
        let colour = if counted { shades.of(entry) } else { DIM };
        format!("{colour}{}{GLUE}×{}{END}", entry.latent, short(entry.activation))
    };
    token.top.iter().map(one).collect::<Vec<_>>().join(&format!("{GLUE} "))
}

/// `these stand out: 1956 ×24.4 at ·sea, …`.
fn standing_out(tokens: &PromptTokens, found: &PromptAnalysis) -> Option<String> {
    const SHOWN: usize = 5;
    let one = |latent: &PromptLatent| {
        let at = tokens.tokens.get(latent.max_token).map_or("", String::as_str);
        format!("{}{GLUE}×{}{GLUE}at{GLUE}{}", latent.latent, short(latent.max_activation), visible(at))
    };
    let named: Vec<_> = found.distinctive.iter().take(SHOWN).map(one).collect();
    (!named.is_empty()).then(|| format!("these stand out: {}", named.join(", ")))
}

/// Which latents of a prompt to dim, and which to colour.
struct Shades<'a> {
    sae: &'a SaeAnalysis,
    /// The largest activation of a latent that stands out.
    largest: f32,
}

impl<'a> Shades<'a> {
    fn new(found: &PromptAnalysis, sae: &'a SaeAnalysis) -> Self {
        Self {
            sae,
            largest: found.distinctive.iter().map(|latent| latent.max_activation).fold(0.0, f32::max),
        }
    }

    fn of(&self, entry: &LatentActivation) -> char {
        let found = self.sae.latents.binary_search_by_key(&entry.latent, |trace| trace.latent).ok();
        let active = found.and_then(|i| self.sae.latents.get(i)).map_or(0, |trace| trace.active_tokens);
        // What is active nearly everywhere says little of one token.
        if active > 2 && 2 * active as i64 > self.sae.metrics.tokens {
            return DIM;
        }
        match entry.activation / self.largest {
            share if share >= 0.75 => HOT,
            share if share >= 0.5 => WARM,
            _ => PLAIN,
        }
    }
}

pub(crate) fn summary(sae: &SaeAnalysis) -> String {
    let metrics = &sae.metrics;
    let or = |value: Option<String>| value.unwrap_or_else(|| "undefined".to_owned());
    format!(
        "{}: L0 {} · FVU {} · variance explained {} · {} counted tokens",
        sae.id,
        or(metrics.l0.map(|v| format!("{v:.1}"))),
        or(metrics.fvu.map(|v| format!("{v:.4}"))),
        or(metrics.explained_variance.map(percent)),
        metrics.tokens,
    )
}

/// Three digits or so: `0.042`, `7.1`, `123`, `1.2e6`.
pub(crate) fn short(value: f32) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(0.001..99_999.5).contains(&size) => format!("{value:.1e}"),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 0.995 => format!("{value:.1}"),
        size if size >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// `98.3 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A token's text with nothing invisible in it.
pub(crate) fn visible(token: &str) -> String {
    let mut text = String::new();
    let mut rest = token;
    while let Some(c) = rest.chars().next() {
        let sign = match c {
            ' ' => Some('·'),
            '\n' => Some('⏎'),
            '\t' => Some('⇥'),
            '\'' | '"' | '\\' => Some(c),
            _ => None,
        };
        if let Some(sign) = sign {
            text.push(sign);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            continue;
        }
        // The standard library knows what does not print, and what would join the character before it.
        let plain = rest.find([' ', '\n', '\t', '\'', '"', '\\']).unwrap_or(rest.len());
        let (run, after) = rest.split_at(plain);
        let _ = write!(text, "{}", run.escape_debug());
        rest = after;
    }
    text
}

/// A line in which nothing is invisible, wrapped at spaces.
fn heading(text: &mut String, line: &str, width: u16) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.add_row([line]);
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 0));
    }
    *text += &table.trim_fmt();
    *text += "\n";
}

/// As [`visible`], but spaces stay.
fn visible_line(line: &str) -> String {
    line.split(' ').map(visible).collect::<Vec<_>>().join(" ")
}

// Signs of no width that stand for colours, and a space that no line ends at, until the table is laid out. None of them can
// come from a text: `visible` escapes them.
const PLAIN: char = '\u{2060}';
const DIM: char = '\u{2061}';
const WARM: char = '\u{2062}';
const HOT: char = '\u{2063}';
const END: char = '\u{2064}';
const GLUE: char = '\u{a0}';

/// Puts escape sequences in the place of the signs, or nothing.
fn paint(text: &str, colours: bool) -> String {
    let mut painted = String::with_capacity(text.len());
    let mut open = false;
    for c in text.chars() {
        let code = match c {
            DIM => "2",
            WARM => "33",
            HOT => "1;33",
            // A colour ends with its line, however a narrow table has cut it.
            END | '\n' => "0",
            PLAIN => continue,
            GLUE => {
                painted.push(' ');
                continue;
            }
            _ => {
                painted.push(c);
                continue;
            }
        };
        let ends = code == "0";
        if colours && (!ends || open) {
            let _ = write!(painted, "\x1b[{code}m");
            open = !ends;
        }
        if c == '\n' {
            painted.push(c);
        }
    }
    painted
}
