use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    Analysis, DashboardError, PromptAnalysis, PromptTokens, Result, TokenAnalysis,
    table::{percent, short, summary, visible},
};

const PAGE: &str = include_str!("../assets/page.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPT: &str = include_str!("../assets/page.js");

/// The analysis as one HTML page: the whole of a file that needs no other and no network, and works from `file://`.
///
/// The sentences stand there token by token, coloured by a latent; every token and latent can be looked at. Without
/// JavaScript the page shows the numbers as tables. Texts are inlined so that no text can end the script or add markup.
///
/// # Errors
/// [`DashboardError::Analysis`] where the lengths in an analysis (one made by hand, or read from a file) contradict each
/// other; JSON that could not be written.
pub fn page(analysis: &Analysis) -> Result<String> {
    check(analysis)?;
    let mut parts = String::new();
    let mut rest = PAGE;
    // In the order of the page. What is put in is never searched: a text may contain a mark.
    for (mark, text) in [
        ("{{title}}", escape(&title(analysis))),
        ("{{css}}", STYLE.to_owned()),
        ("{{tables}}", tables(analysis)),
        ("{{json}}", inline_json(analysis)?),
        ("{{js}}", SCRIPT.to_owned()),
    ] {
        let (before, after) = rest.split_once(mark).unwrap_or((rest, ""));
        parts += before;
        parts += &text;
        rest = after;
    }
    parts += rest;
    Ok(parts)
}

fn check(analysis: &Analysis) -> Result<()> {
    let bad = |problem: String| Err(DashboardError::Analysis(problem));
    if analysis.saes.is_empty() {
        return Err(DashboardError::NoSae);
    }
    for (i, prompt) in analysis.prompts.iter().enumerate() {
        let n = prompt.tokens.len();
        if prompt.ids.len() != n || prompt.counted.len() != n {
            return bad(format!("prompt {i} has {n} tokens, but not as many ids and counted flags"));
        }
    }
    for sae in &analysis.saes {
        if sae.prompts.len() != analysis.prompts.len() {
            return bad(format!(
                "`{}` has {} prompts of {}",
                sae.id,
                sae.prompts.len(),
                analysis.prompts.len()
            ));
        }
        for (i, (found, prompt)) in sae.prompts.iter().zip(&analysis.prompts).enumerate() {
            let n = prompt.tokens.len();
            let mut named = found.strongest.iter().chain(&found.distinctive);
            let strong = named.all(|latent| latent.activations.len() == n && latent.max_token < n);
            if found.tokens.len() != n || !strong {
                return bad(format!("`{}` does not have {n} tokens in prompt {i}", sae.id));
            }
        }
        let fits = |prompt: usize, token: usize| {
            analysis.prompts.get(prompt).is_some_and(|p| token < p.tokens.len())
        };
        for trace in &sae.latents {
            let mut active = trace.active.iter();
            if !active
                .all(|a| a.tokens.len() == a.activations.len() && a.tokens.iter().all(|&t| fits(a.prompt, t)))
            {
                return bad(format!(
                    "latent {} of `{}` is active on a token that is none",
                    trace.latent, sae.id
                ));
            }
        }
        let of_tokens =
            sae.prompts.iter().flat_map(|p| &p.tokens).flat_map(|t| t.top.iter().chain(&t.distinctive));
        let of_prompts = sae.prompts.iter().flat_map(|p| p.strongest.iter().chain(&p.distinctive));
        let mut named = of_tokens.map(|entry| entry.latent).chain(of_prompts.map(|named| named.latent));
        let known: std::collections::BTreeSet<usize> = sae.latents.iter().map(|trace| trace.latent).collect();
        if let Some(latent) = named.find(|latent| !known.contains(latent)) {
            return bad(format!("latent {latent} of `{}` is named, but is not among its latents", sae.id));
        }
    }
    Ok(())
}

fn title(analysis: &Analysis) -> String {
    match analysis.saes.as_slice() {
        [sae] => format!("{} in {}", sae.id, analysis.model),
        saes => format!("{} SAEs in {}", saes.len(), analysis.model),
    }
}

/// JSON for a `<script>` element: `<`, `>` and `&` can neither end it nor begin a comment, and the two line separators that
/// JavaScript once refused in strings are escaped as well. It is the same JSON to any reader.
pub(crate) fn inline_json(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(value)?;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    Ok(text)
}

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(c),
        }
    }
    escaped
}

/// What a reader without JavaScript sees.
fn tables(analysis: &Analysis) -> String {
    let mut html = String::from("<div class=\"plain\">\n");
    let _ = writeln!(html, "<h1>{}</h1>", escape(&title(analysis)));
    for sae in &analysis.saes {
        let about = format!("reads {} · {}, {} latents", sae.hook, sae.architecture, sae.d_sae);
        let _ = writeln!(html, "<h2>{}</h2>\n<p>{}</p>", escape(&summary(sae)), escape(&about));
        for (i, (tokens, found)) in analysis.prompts.iter().zip(&sae.prompts).enumerate() {
            let _ = writeln!(html, "<table><caption>Sentence {}</caption>", i + 1);
            html +=
                "<tr><th>token</th><th>L0</th><th>variance explained</th><th>strongest latents</th></tr>\n";
            for row in rows(tokens, found) {
                html += &row;
            }
            html += "</table>\n";
        }
    }
    for (name, text) in &analysis.definitions {
        let _ = writeln!(html, "<p><b>{}</b>: {}</p>", escape(name), escape(text));
    }
    html += "</div>";
    html
}

fn rows<'a>(tokens: &'a PromptTokens, found: &'a PromptAnalysis) -> impl Iterator<Item = String> {
    tokens.tokens.iter().zip(&tokens.counted).zip(&found.tokens).map(|((token, counted), found)| {
        let class = if *counted { "" } else { " class=\"no\"" };
        let TokenAnalysis { l0, explained_variance, top, .. } = found;
        let explained = explained_variance.map_or_else(String::new, percent);
        let latents: Vec<_> =
            top.iter().map(|l| format!("{}&nbsp;×{}", l.latent, short(l.activation))).collect();
        let token = escape(&visible(token));
        format!(
            "<tr{class}><td>{token}</td><td>{l0}</td><td>{explained}</td><td>{}</td></tr>\n",
            latents.join(", ")
        )
    })
}
