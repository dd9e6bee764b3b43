//! The page as text. What it does in a browser was tried by hand: see the crate's README.

use dashboard::{Analysis, DashboardError, page};

use crate::{example, with_pieces};

/// Texts that would break a careless page.
const HOSTILE: [&str; 12] = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\"'`&amp;<b>",
    "</noscript><img src=x onerror=alert(2)>",
    " 👩\u{200d}🚀",
    "שלום\u{202e}",
    "\u{2028}\u{2029}",
    "{{js}}{{json}}",
    "\u{301}",
    "\u{0}\u{1b}[31m\r\n",
    "</title>",
    "]]>",
];

/// The analysis as a reader of its JSON has it.
fn reread(analysis: &Analysis) -> Analysis {
    serde_json::from_str(&serde_json::to_string(analysis).unwrap()).unwrap()
}

fn inlined(page: &str) -> Analysis {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"analysis\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn holds_the_analysis() {
    let analysis = example();
    assert!(inlined(&page(&analysis).unwrap()) == reread(&analysis));
}

#[test]
fn no_text_ends_a_script_or_adds_markup() {
    let mut analysis = with_pieces(&HOSTILE);
    analysis.model = HOSTILE[0].to_owned();
    analysis.saes[0].id = HOSTILE[10].to_owned();
    for html in [page(&analysis).unwrap(), {
        analysis.saes.truncate(1);
        page(&analysis).unwrap()
    }] {
        let plain = page(&example()).unwrap();
        for tag in ["<script", "</script", "<noscript", "</noscript", "<title", "</title"] {
            assert_eq!(html.matches(tag).count(), plain.matches(tag).count(), "{tag}");
        }
        for never in
            ["<!--", "<img", "<b>alert", "\u{2028}", "\u{2029}", "\u{202e}", "\u{0}", "\u{1b}", "]]>"]
        {
            let tables = html.split("<script").next().unwrap();
            assert!(!tables.contains(never), "{never:?} is in the tables");
        }
        assert!(!html.contains("<!--") && !html.contains('\u{2028}') && !html.contains("onerror=alert(2)>"));
    }
    assert!(inlined(&page(&analysis).unwrap()) == reread(&analysis), "the texts themselves are unchanged");
}

#[test]
fn needs_nothing_from_elsewhere() {
    let html = page(&example()).unwrap();
    for link in
        ["://", " src=", "href", "url(", "@import", "import(", "fetch(", "XMLHttpRequest", "WebSocket"]
    {
        assert!(!html.contains(link), "`{link}` is in the page");
    }
    for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!html.contains(markup), "`{markup}` is in the page");
    }
    assert!(html.contains("default-src 'none'"), "and the browser is told to load nothing");
    assert!(!html.contains("{{"), "a mark was not replaced");
}

#[test]
fn can_be_read_without_javascript() {
    let analysis = with_pieces(&[" Golden", " Gate", "\n"]);
    let html = page(&analysis).unwrap();
    let (_, rest) = html.split_once("<noscript>").unwrap();
    let tables = rest.split_once("</noscript>").unwrap().0;
    assert_eq!(tables.matches("<table>").count(), analysis.saes.len() * analysis.prompts.len());
    for token in ["&lt;bos&gt;", "·Golden", "·Gate", "⏎", "·t17"] {
        assert!(tables.contains(&format!("<td>{token}</td>")), "{token}");
    }
    let top = &analysis.saes[1].prompts[0].strongest[0];
    assert!(tables.contains(&format!("{}&nbsp;×", top.latent)));
}

#[test]
fn an_analysis_that_contradicts_itself_is_refused() {
    let broken: [fn(&mut Analysis); 6] = [
        |a| a.saes.clear(),
        |a| a.prompts[0].ids.push(1),
        |a| a.saes[0].prompts.truncate(1),
        |a| a.saes[0].prompts[0].tokens.truncate(1),
        |a| a.saes[0].latents[0].active[0].tokens[0] = 99,
        |a| a.saes[0].latents.truncate(1),
    ];
    for (i, damage) in broken.iter().enumerate() {
        let mut analysis = example();
        damage(&mut analysis);
        let error = page(&analysis).unwrap_err();
        assert!(matches!(error, DashboardError::Analysis(_) | DashboardError::NoSae), "{i}: {error}");
    }
}
