//! Several SAEs in one pass, and parts of the data.

use eval::{EvalOptions, Judged, Report, Subsets};
use hooks::{HookPoint, Positions, TokenBatch};
use sae_core::Sae;

use crate::{
    common::{
        FLOAT64, SPECIAL, assert_agree, at, batch, cut, gemma, judge, random_sae, refused, suite, tokens,
        width,
    },
    golden::{Case, all_cases},
};

/// At every kind of site, and two at some: more runs than have their logits made side by side.
fn many() -> Vec<(HookPoint, HookPoint, Sae)> {
    let model = gemma();
    let dims = hooks::HookedModel::dims(&model).clone();
    let sites = [
        "hook_embed",
        "blocks.0.attn.hook_q",
        "blocks.0.hook_resid_mid",
        "blocks.1.attn.hook_z",
        "blocks.1.attn.hook_z",
        "blocks.1.ln2.hook_normalized",
        "blocks.2.hook_mlp_out",
        "blocks.2.hook_resid_post",
        "blocks.3.hook_resid_pre",
        "blocks.3.hook_resid_post",
    ];
    let of = |(seed, (site, site_out)): (usize, (&str, &str))| {
        let [site, site_out]: [HookPoint; 2] = [site, site_out].map(|name| name.parse().unwrap());
        (
            site,
            site_out,
            random_sae(width(&dims, site), 32 + seed as i64, width(&dims, site_out), 7 * seed as u64),
        )
    };
    let pairs = sites.map(|site| (site, site));
    let transcoders =
        [("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"), ("hook_embed", "blocks.2.hook_mlp_out")];
    pairs.into_iter().chain(transcoders).enumerate().map(of).collect()
}

fn judged(saes: &[(HookPoint, HookPoint, Sae)]) -> Vec<Judged<'_>> {
    let mut judged = Vec::new();
    for (i, (site, site_out, sae)) in saes.iter().enumerate() {
        judged.push(Judged::new(format!("sae-{i}"), *site, sae).put_at(*site_out));
    }
    judged
}

#[test]
fn many_together_are_judged_as_each_alone() {
    let (model, saes, tokens) = (gemma(), many(), tokens());
    let judged = judged(&saes);
    for positions in [Positions::Counted, Positions::Range { start: 4, end: Some(15) }] {
        let options = EvalOptions { uniformity: 2, ..at(positions) };
        let batches = || cut(tokens.rows(), 5);
        let together = judge(&model, &judged, &batches(), options);
        assert_eq!(together.len(), judged.len());
        for (one, together) in judged.iter().zip(&together) {
            let alone = judge(&model, std::slice::from_ref(one), &batches(), options);
            assert_agree(&format!("{} to {}", one.site, one.site_out), together, &alone[0], FLOAT64);
        }
        // Nor does the order in which they are named matter.
        let mut turned: Vec<Judged<'_>> = judged.clone();
        turned.reverse();
        let turned = judge(&model, &turned, &batches(), options);
        for (turned, together) in turned.iter().rev().zip(&together) {
            assert_agree(&together.id, turned, together, FLOAT64);
        }
    }
}

/// Ids divided into named parts, some in none.
fn parts(tokens: &TokenBatch, n: u32) -> Vec<Vec<Option<u32>>> {
    let of = |id: &i64| Some((id % i64::from(n + 1)) as u32).filter(|part| *part < n);
    tokens.rows().iter().map(|row| row.iter().map(of).collect()).collect()
}

fn names(n: u32) -> Vec<String> {
    (0..n).map(|i| format!("part {i}")).collect()
}

#[track_caller]
fn assert_parts_make_the_whole(got: &Report) {
    let mut divisions = vec![("positions", got.by_position.clone())];
    if !got.by_subset.is_empty() {
        divisions.push(("subsets", got.by_subset.values().cloned().collect()));
    }
    for (what, parts) in divisions {
        let of = |value: &dyn Fn(&eval::Quality) -> f64| parts.iter().map(value).sum::<f64>();
        assert_eq!(parts.iter().map(|part| part.tokens).sum::<u64>(), got.tokens, "{what}");
        assert_eq!(parts.iter().map(|part| part.scored).sum::<u64>(), got.scored, "{what}");
        let weighted = |value: fn(&eval::Quality) -> Option<f64>| {
            of(&|part| value(part).unwrap_or(0.0) * part.scored as f64) / got.scored as f64
        };
        let over = |value: fn(&eval::Quality) -> Option<f64>| {
            of(&|part| value(part).unwrap_or(0.0) * part.tokens as f64) / got.tokens as f64
        };
        for (name, sum) in [
            ("ce_clean", weighted(|part| part.ce_clean)),
            ("ce_spliced", weighted(|part| part.ce_spliced)),
            ("delta_loss", weighted(|part| part.delta_loss)),
            ("kl", weighted(|part| part.kl)),
            ("mse", over(|part| part.mse)),
            ("l0", over(|part| part.l0)),
        ] {
            let want = got.metrics[name];
            assert!((sum - want).abs() <= FLOAT64, "{what}: {name} is {want}, its parts make {sum}");
        }
        // Error over FVU is the spread, and those of the parts add up to the whole's.
        let spread =
            of(&|part| part.fvu.map_or(0.0, |fvu| part.mse.unwrap_or(0.0) * part.tokens as f64 / fvu));
        let whole = got.metrics["mse"] * got.tokens as f64 / got.metrics["fvu"];
        assert!((spread / whole - 1.0).abs() <= 1e-6, "{what}: {spread} and {whole}");
    }
}

#[test]
fn parts_of_the_data_make_the_whole() {
    let (model, cases, all) = (gemma(), all_cases(), tokens());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    for positions in [Positions::Counted, Positions::All] {
        for size in [5, 12] {
            let batches = cut(all.rows(), size);
            let mut suite = suite(&model, &judged, &batches, at(positions));
            let names = names(3);
            for tokens in &batches {
                // Every position in one part.
                let of: Vec<Vec<Option<u32>>> = parts(tokens, 2)
                    .iter()
                    .map(|row| row.iter().map(|part| part.or(Some(2))).collect())
                    .collect();
                suite.add(tokens, Some(Subsets { names: &names, of: &of })).unwrap();
            }
            for report in suite.reports().unwrap() {
                assert_eq!(report.by_subset.len(), 3);
                assert_parts_make_the_whole(&report);
            }
        }
    }
}

/// What names there are does not matter, nor which batch knows which; and what is of no part is in none.
#[test]
fn subsets_are_told_apart_by_name() {
    let (model, cases, all) = (gemma(), all_cases(), tokens());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let batches = cut(all.rows(), 4);
    let run = |renamed: bool| {
        let mut suite = suite(&model, &judged, &batches, at(Positions::Counted));
        for (i, tokens) in batches.iter().enumerate() {
            let (mut names, mut of) = (names(3), parts(tokens, 3));
            if renamed && i == 1 {
                names = ["nobody", "part 2", "part 0", "part 1"].map(str::to_owned).to_vec();
                let other = |part: u32| [2, 3, 1][part as usize];
                of.iter_mut().flatten().for_each(|part| *part = part.map(other));
            }
            suite.add(tokens, Some(Subsets { names: &names, of: &of })).unwrap();
        }
        suite.reports().unwrap()
    };
    let got = run(false);
    assert_eq!(got, run(true));
    for report in &got {
        assert!(report.by_subset.values().map(|part| part.tokens).sum::<u64>() < report.tokens);
    }
    let plain = judge(&model, &judged, &batches, at(Positions::Counted));
    for (mut report, plain) in got.into_iter().zip(plain) {
        report.by_subset.clear();
        assert_eq!(report, plain, "subsets change nothing else");
    }
}

#[test]
fn subsets_that_do_not_fit_are_refused() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let judged = [Judged::new("sae", "blocks.1.hook_resid_post".parse().unwrap(), &sae)];
    let mut suite = suite(&model, &judged, &[tokens()], EvalOptions::default());
    let before = suite.sums().clone();
    let names = names(2);
    let full = vec![vec![Some(1); 20]; 12];
    let mut try_with = |of: &[Vec<Option<u32>>], at_fault: &[&str]| {
        refused(suite.add(&tokens(), Some(Subsets { names: &names, of })), at_fault);
        assert_eq!(*suite.sums(), before, "what was refused left a trace");
    };
    try_with(&full[..11], &["[12, 20]"]);
    let mut short = full.clone();
    short[11].pop();
    try_with(&short, &["[12, 20]"]);
    let mut unknown = full;
    unknown[3][4] = Some(2);
    try_with(&unknown, &["2 names", "subset 2"]);
}

/// A row of documents, each alone: what attention does not see, and what the next document does not predict.
#[test]
fn packed_documents_are_judged_as_alone() {
    let (model, cases) = (gemma(), all_cases());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let texts: Vec<Vec<i64>> =
        tokens().rows()[..3].iter().zip([7, 5, 8]).map(|(row, n)| row[..n].to_vec()).collect();
    let packed = TokenBatch::packed(&texts, 20, 0, &SPECIAL).unwrap();
    assert_eq!(packed.batch(), 1);
    let alone: Vec<TokenBatch> = texts.iter().map(|text| batch(std::slice::from_ref(text))).collect();
    let got = judge(&model, &judged, &[packed], at(Positions::Counted));
    let want = judge(&model, &judged, &alone, at(Positions::Counted));
    for (mut got, mut want) in got.into_iter().zip(want) {
        // Columns, and sequences, are others.
        for report in [&mut got, &mut want] {
            report.by_position.clear();
            report.latents.consistent_activation_heuristic.clear();
            report.metrics.values.remove("consistent_activation_heuristic");
        }
        assert_agree("packed", &got, &want, 1e-5);
    }
}

#[test]
fn means_of_two_halves_are_those_of_the_whole() {
    let model = gemma();
    let sites = ["blocks.1.attn.hook_z", "blocks.2.hook_resid_post"].map(|name| name.parse().unwrap());
    let of = |batches: &[TokenBatch]| {
        let mut means = eval::Means::new(&model, sites).unwrap();
        batches.iter().for_each(|tokens| means.add(&model, tokens, Positions::Counted).unwrap());
        means
    };
    let batches = cut(tokens().rows(), 3);
    let (mut first, second) = (of(&batches[..1]), of(&batches[1..]));
    first.merge(&second).unwrap();
    let whole = of(&batches);
    assert_eq!(first.tokens(), whole.tokens());
    for site in sites {
        assert_eq!(first.of(site).unwrap(), whole.of(site).unwrap(), "{site}");
    }
    let other = eval::Means::new(&model, [sites[0]]).unwrap();
    refused(first.merge(&other), &["means", "sites"]);
}
