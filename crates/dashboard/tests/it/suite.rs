//! The page of a suite as text. What it does in a browser was tried by hand: `tests/suite.mjs`.

use dashboard::{DashboardError, suite_page};
use eval::Report;
use serde_json::Value;

use crate::invented::{Invented, suite};

/// Texts that would break a careless page.
const HOSTILE: [&str; 8] = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\"'`&amp;<b>",
    "</noscript><img src=x onerror=alert(2)>",
    "\u{2028}\u{2029}",
    "{{js}}{{json}}{{plotly}}",
    "%{x}<a href=\"javascript:alert(3)\">$x^2$</a>",
    "</title>",
];

fn one() -> Report {
    Invented {
        id: "tiny",
        site: "blocks.3.hook_resid_post",
        d_sae: 2048,
        l0: 23.0,
        positions: 8,
        subsets: &[],
        seed: 1,
    }
    .report()
}

/// What the page's own script and texts are, without plotly.js.
fn without_plotly(html: &str) -> String {
    let (before, rest) = html.split_once("<script>/**\n* plotly.js").expect("plotly.js is in the page");
    format!("{before}{}", rest.split_once("</script>").unwrap().1)
}

fn data(html: &str) -> Value {
    let (_, rest) = html.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn figures(html: &str, id: &str) -> Vec<Value> {
    let data = data(html);
    let figures = data["figures"].as_array().unwrap().iter();
    figures.filter(|figure| figure["id"].as_str().unwrap().starts_with(id)).cloned().collect()
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn nothing_is_drawn_of_no_reports() {
    assert!(matches!(suite_page(&[], "none"), Err(DashboardError::NoReport)));
}

#[test]
fn every_sae_is_a_point_and_lines_ascend() {
    let reports = suite();
    let html = suite_page(&reports, "a suite").unwrap();
    for metric in ["delta_loss", "fvu"] {
        let mut seen = Vec::new();
        let of: Vec<Value> = figures(&html, "fidelity-")
            .into_iter()
            .filter(|figure| figure["id"].as_str().unwrap().ends_with(metric))
            .collect();
        assert_eq!(of.len(), 3, "a figure for each kind of site");
        for figure in of {
            assert_eq!(figure["layout"]["xaxis"]["type"], "log");
            for series in figure["series"].as_array().unwrap() {
                let trace = &series["trace"];
                let (xs, ys) = (numbers(&trace["x"]), numbers(&trace["y"]));
                assert!(xs.is_sorted(), "{xs:?}");
                for (i, id) in trace["ids"].as_array().unwrap().iter().enumerate() {
                    let report = &reports[id.as_str().unwrap().parse::<usize>().unwrap()];
                    seen.push(report.id.clone());
                    for (name, shown) in [("l0", xs[i]), (metric, ys[i])] {
                        let exact = report.metrics[name];
                        // Four digits are kept.
                        assert!((shown - exact).abs() <= 5.1e-4 * exact.abs(), "{name}: {shown} for {exact}");
                    }
                    let hover = trace["hovertext"][i].as_str().unwrap();
                    assert!(hover.contains(&report.id) && hover.contains("loss recovered"), "{hover}");
                }
            }
        }
        seen.sort();
        let mut all: Vec<_> = reports.iter().map(|report| report.id.clone()).collect();
        all.sort();
        assert_eq!(seen, all);
    }
}

#[test]
fn by_layer_where_there_are_layers() {
    let reports = suite();
    let html = suite_page(&reports, "a suite").unwrap();
    let found = figures(&html, "layers-");
    assert_eq!(found.len(), 6, "delta loss and FVU at three kinds of sites");
    for figure in found {
        let series = figure["series"].as_array().unwrap();
        for line in series.iter().filter(|series| series["trace"]["mode"] == "lines+markers") {
            let xs = numbers(&line["trace"]["x"]);
            assert!(xs.windows(2).all(|pair| pair[0] < pair[1]), "one SAE a layer: {xs:?}");
            for id in line["trace"]["ids"].as_array().unwrap() {
                let report = &reports[id.as_str().unwrap().parse::<usize>().unwrap()];
                let near = |report: &Report| (report.metrics["l0"] / 100.0).ln().abs();
                let rivals = reports.iter().filter(|other| {
                    other.provenance.hook == report.provenance.hook
                        && other.provenance.d_sae == report.provenance.d_sae
                });
                assert!(rivals.map(near).all(|other| near(report) <= other), "{}", report.id);
            }
        }
        let points = series.iter().map(|series| series["trace"]["x"].as_array().unwrap().len());
        assert!(points.sum::<usize>() >= 10);
    }
    assert!(figures(&suite_page(&[one()], "one").unwrap(), "layers-").is_empty());
}

#[test]
fn different_models_dtypes_and_architectures_share_no_line() {
    for change in [
        (|report: &mut Report| report.provenance.architecture = "topk".to_owned()) as fn(&mut Report),
        |report| {
            report.provenance.more.insert("model".to_owned(), "another".into());
        },
        |report| {
            report.provenance.more.insert("sae_dtype".to_owned(), "bf16".into());
        },
    ] {
        let mut reports = [one(), one()];
        assert_eq!(
            figures(&suite_page(&reports, "").unwrap(), "fidelity-")[0]["series"].as_array().unwrap().len(),
            1
        );
        change(&mut reports[1]);
        let html = suite_page(&reports, "").unwrap();
        let series = figures(&html, "fidelity-")[0]["series"].as_array().unwrap().clone();
        assert_eq!(series.len(), 2);
        assert_ne!(series[0]["trace"]["line"]["dash"], series[1]["trace"]["line"]["dash"]);
    }
}

#[test]
fn picked_figures_have_a_series_for_each_sae() {
    let reports = suite();
    let html = suite_page(&reports, "a suite").unwrap();
    for id in ["density", "l0", "position-delta_loss", "position-fvu", "position-l0", "subset-fvu"] {
        let found = figures(&html, id);
        let series = found[0]["series"].as_array().unwrap();
        assert_eq!(series.len(), reports.len(), "{id}");
        for (i, (series, report)) in series.iter().zip(&reports).enumerate() {
            assert_eq!(series["sae"], i);
            assert_eq!(series["trace"]["name"], report.id.as_str());
        }
    }
    let fvu = &figures(&html, "position-fvu")[0]["series"][0]["trace"]["y"];
    assert!(fvu[0].is_null(), "BOS does not count");
    assert_eq!(fvu.as_array().unwrap().len(), 1024, "each position as it is");
    let density = &figures(&html, "density")[0]["series"][0]["trace"];
    let shares: f64 = numbers(&density["y"]).iter().sum();
    let histogram = &reports[0].density_histogram;
    let alive = histogram.latents.iter().sum::<u64>() as f64;
    let exact = 100.0 * alive / (alive + histogram.dead as f64);
    assert!((shares - exact).abs() < 0.1, "{shares} for {exact}");
}

#[test]
fn numbers_per_latent_stay_out() {
    let html = suite_page(&[one()], "one").unwrap();
    assert!(!html.contains("0.123456789"), "a latent's frequency is in the page");
    assert!(data(&html)["saes"][0].get("latents").is_none());
}

#[test]
fn what_is_not_defined_is_a_dash_and_no_point() {
    let mut reports = [one(), one(), one()];
    reports[0].metrics.values.remove("delta_loss");
    reports[1].metrics.values.insert("delta_loss".to_owned(), f64::NAN);
    reports[2].metrics.values.insert("l0".to_owned(), 0.0);
    let html = suite_page(&reports, "gaps").unwrap();
    let own = without_plotly(&html);
    let table = own.split_once("<table id=\"saes\"").unwrap().1.split_once("</table>").unwrap().0;
    assert_eq!(table.matches("<td class=\"n\">–</td>").count(), 2);
    assert!(!table.contains("NaN") && !own.split("<script").next().unwrap().contains("NaN"));
    assert!(figures(&html, "fidelity-0-delta_loss").is_empty(), "no SAE has both values");
    assert_eq!(figures(&html, "fidelity-0-fvu")[0]["series"][0]["trace"]["x"].as_array().unwrap().len(), 2);
    for (metric, value) in [("delta_loss", Value::Null), ("l0", 23.0.into())] {
        assert_eq!(data(&html)["saes"][1]["metrics"][metric], value);
    }
}

#[test]
fn parts_that_are_missing_leave_no_empty_plot() {
    let mut bare = one();
    bare.by_position.clear();
    bare.l0_histogram = eval::L0Histogram::default();
    bare.density_histogram = eval::DensityHistogram::default();
    bare.metrics.values.retain(|name, _| name == "fvu");
    let html = suite_page(&[bare], "bare").unwrap();
    assert_eq!(data(&html)["figures"].as_array().unwrap().len(), 0);
    assert!(!html.contains("class=\"plot\""));
}

#[test]
fn the_header_says_what_reports_share_and_where_they_differ() {
    let mut reports = suite();
    let html = without_plotly(&suite_page(&reports, "a suite").unwrap());
    let header = html.split("<main>").next().unwrap();
    for fact in ["google/gemma-2-2b", "heldout.jsonl", "100,000", "counted", "0.1.0", "1c9e"] {
        assert!(header.contains(&format!("<dd>{fact}</dd>")), "{fact}");
    }
    assert!(!html.contains("class=\"warning\" role"));
    reports[3].provenance.more.insert("model".to_owned(), "google/gemma-2-9b".into());
    let html = suite_page(&reports, "a suite").unwrap();
    assert!(html.contains("model (google/gemma-2-2b, google/gemma-2-9b)"));
}

#[test]
fn no_text_ends_a_script_or_adds_markup() {
    let count = |html: &str, tag: &str| html.matches(tag).count();
    let plain = without_plotly(&suite_page(&[one(), one()], "plain").unwrap());
    for text in HOSTILE {
        let mut report = Invented { id: text, subsets: &[text], ..INVENTED }.report();
        report.provenance.architecture = text.to_owned();
        report.provenance.more.insert("model".to_owned(), text.into());
        report.provenance.more.insert(text.to_owned(), text.into());
        report.metrics.values.insert(text.to_owned(), 1.0);
        report.definitions.insert(text.to_owned(), text.to_owned());
        let html = suite_page(&[report, one()], text).unwrap();
        let own = without_plotly(&html);
        for tag in
            ["<script", "</script", "<noscript", "</noscript", "<title", "</title", "<style", "</style"]
        {
            assert_eq!(count(&own, tag), count(&plain, tag), "{tag} of {text:?}");
        }
        for never in ["<!--", "<img", "&amp;<b>", "href=\"j"] {
            assert!(!own.split("<script").next().unwrap().contains(never), "{never:?} of {text:?}");
        }
        assert_eq!(data(&html)["saes"][0]["id"], text, "the text itself is unchanged");
        // plotly.js reads tags in what it draws.
        for figure in data(&html)["figures"].as_array().unwrap() {
            for series in figure["series"].as_array().unwrap() {
                let name = series["trace"]["name"].as_str().unwrap();
                assert!(!name.contains('<'), "{name}");
            }
        }
    }
}

const INVENTED: Invented<'_> = Invented {
    id: "",
    site: "blocks.3.hook_mlp_out",
    d_sae: 512,
    l0: 9.0,
    positions: 4,
    subsets: &[],
    seed: 2,
};

#[test]
fn needs_nothing_from_elsewhere() {
    let html = suite_page(&suite(), "a suite").unwrap();
    assert!(html.contains("default-src 'none'"), "the browser is told to load nothing, plotly.js included");
    assert!(!html.contains("MathJax.loader"), "what nothing needs is left out");
    let own = without_plotly(&html);
    for link in ["://", " src=", "url(", "@import", "import(", "fetch(", "XMLHttpRequest", "WebSocket"] {
        assert!(!own.contains(link), "`{link}` is in the page");
    }
    for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!own.contains(markup), "`{markup}` is in the page");
    }
    assert!(!own.contains("{{"), "a mark was not replaced");
    assert_eq!(own.matches("href=\"").count(), own.matches("href=\"#sae-").count());
}

#[test]
fn can_be_read_without_javascript() {
    let reports = suite();
    let html = suite_page(&reports, "a suite").unwrap();
    let read = html.split("<script").next().unwrap();
    assert_eq!(read.matches("<tr id=\"sae-").count(), reports.len());
    for metric in ["l0", "fvu", "delta_loss"] {
        let (_, rest) = read.split_once(&format!("<code>{metric}</code>")).unwrap();
        let definition = eval::Metric::named(metric).unwrap().definition;
        assert!(rest.split_once("</tr>").unwrap().0.contains(&definition.replace('>', "&gt;")), "{metric}");
    }
    assert!(read.contains("<div id=\"plots\" hidden>"), "places without plots are not shown");
}
