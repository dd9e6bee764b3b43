use dashboard::{TableOptions, table};

use crate::{example, with_pieces};

/// Columns that a character takes in a terminal, for the characters of these tests.
fn width(line: &str) -> usize {
    line.chars().map(|c| if ('\u{2e80}'..'\u{a4d0}').contains(&c) || c >= '\u{1f000}' { 2 } else { 1 }).sum()
}

const TEXTS: [&str; 12] = [
    " 漢字漢字漢字漢字漢字漢字漢字漢字",
    "👩\u{200d}🚀",
    " averyveryverylongtokenthatgoesonandonandonandon",
    "\n\n",
    "\t",
    "e\u{301}",
    "\u{301}",
    "\u{202e}rtl",
    "\u{1b}[31mred",
    "\u{200b}",
    "\u{a0}\u{2063}",
    " \"it's\" a\\b",
];

#[test]
fn no_line_is_wider_than_asked() {
    for analysis in [example(), with_pieces(&TEXTS)] {
        for columns in [30, 41, 60, 80, 100, 200] {
            let text = table(&analysis, &TableOptions { width: columns, colours: false });
            for line in text.lines() {
                let line = line.replace('\u{301}', "");
                assert!(width(&line) <= usize::from(columns), "{columns}: {} {line:?}", width(&line));
            }
        }
    }
    let narrow = table(&example(), &TableOptions { width: 3, colours: false });
    assert_eq!(narrow, table(&example(), &TableOptions { width: TableOptions::NARROWEST, colours: false }));
}

#[test]
fn nothing_invisible_is_left() {
    let text = table(&with_pieces(&TEXTS), &TableOptions::default());
    let shown = [
        "👩\\u{200d}🚀",
        "⏎⏎",
        "⇥",
        "e\u{301}",
        "\\u{301}",
        "\\u{202e}rtl",
        "\\u{1b}[31mred",
        "\\u{200b}",
        "\\u{a0}\\u{2063}",
        "·\"it's\"·a\\b",
        "(<bos>)",
    ];
    for shown in shown {
        assert!(text.contains(shown), "{shown} is not in\n{text}");
    }
    let invisible =
        |c: char| c != '\n' && (c.is_control() || ('\u{2000}'..='\u{206f}').contains(&c) || c == '\u{a0}');
    assert!(!text.contains(invisible));
}

#[test]
fn says_what_the_analysis_says() {
    let analysis = example();
    let text = table(&analysis, &TableOptions { width: 250, colours: false });
    for sae in &analysis.saes {
        let metrics = &sae.metrics;
        let line = format!(
            "{}: L0 {:.1} · FVU {:.4} · variance explained {:.1} % · 12 counted tokens",
            sae.id,
            metrics.l0.unwrap(),
            metrics.fvu.unwrap(),
            100.0 * metrics.explained_variance.unwrap()
        );
        assert!(text.contains(&line), "{line}\nis not in\n{text}");
        assert!(text.contains(&format!("{} reads {} (jumprelu, {} latents)", sae.id, sae.hook, sae.d_sae)));
        for (prompt, found) in analysis.prompts.iter().zip(&sae.prompts) {
            let named = found.distinctive.iter().take(5).map(|latent| {
                let at = prompt.tokens[latent.max_token].replace(' ', "·");
                let size = latent.max_activation;
                let size = if size < 0.995 { format!("{size:.2}") } else { format!("{size:.1}") };
                format!("{} ×{size} at {at}", latent.latent)
            });
            let line = format!("these stand out: {}", named.collect::<Vec<_>>().join(", "));
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
            for (token, found) in prompt.tokens.iter().zip(&found.tokens).skip(1) {
                let (token, l0) = (token.replace(' ', "·"), found.l0.to_string());
                let mut lines =
                    text.lines().filter(|line| line.split_whitespace().take(2).eq([&*token, &*l0]));
                let latents: Vec<String> = found.top.iter().map(|l| format!(" {} ×", l.latent)).collect();
                assert!(
                    lines.any(|line| latents.iter().all(|l| line.contains(l))),
                    "{token} {l0} {latents:?}"
                );
            }
        }
    }
}

#[test]
fn colours_are_for_those_who_ask() {
    for columns in [30, 80] {
        let plain = table(&example(), &TableOptions { width: columns, colours: false });
        let coloured = table(&example(), &TableOptions { width: columns, colours: true });
        assert!(!plain.contains('\x1b'));
        assert!(coloured.contains("\x1b[1;33m") && coloured.contains("\x1b[2m"));
        let mut stripped = coloured.clone();
        for code in ["0", "2", "33", "1;33"] {
            stripped = stripped.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(stripped, plain);
        for line in coloured.lines() {
            let (open, closed) = (line.matches("\x1b[").count(), line.matches("\x1b[0m").count());
            assert_eq!(open, 2 * closed, "a colour goes on past its line: {line:?}");
        }
    }
}
