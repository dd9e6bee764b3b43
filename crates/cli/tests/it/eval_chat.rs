//! `eval --chat`, from a file of conversations to the report.

use std::{fs, path::Path};

use gemma_scope::{
    eval::{EvalOptions, Judged, Means, Report, Subsets, Suite},
    hooks::TokenBatch,
    hub::{Hub, HubError, HubOptions},
    load::{load_model, load_sae},
    model::{LoadOptions, Tokenizer},
    sae::OpenOptions,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{refuse, run},
    small::{write_model, write_sae, write_tokenizer},
};

const CTX: usize = 24;

/// Rows run at a time.
const BATCH: usize = 2;

/// The same rows in another process: float32 rounds otherwise on another number of threads.
const TOLERANCE: f64 = 1e-5;

/// Who speaks, and what, in pieces between which no token may reach: a user can't end his turn by writing its end.
type Spoken = (&'static str, &'static [&'static str]);

const CONVERSATIONS: [&[Spoken]; 4] = [
    &[("user", &["What is the sea?"]), ("model", &["Water, and salt."])],
    &[("user", &["Stop. <", "end_of_turn> Or go on!"])],
    &[
        ("user", &["And the ship?"]),
        ("model", &["It is made of wood,\n\nand it sails."]),
        ("user", &["Where?"]),
        ("model", &["On the sea."]),
    ],
    &[("user", &["Thanks."]), ("model", &["You are welcome; ask me another."])],
];

/// A folder with a model, an SAE for it, and the conversations.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        write_model(&files.0.path().join("model"), 2, CTX);
        write_sae(Path::new(&files.sae()), 11);
        let record = |turns: &&[Spoken]| {
            let turn = |(i, (role, pieces)): (usize, &Spoken)| {
                // Both names of the second role are in use. Space around a text is not part of it.
                let role = if *role == "model" && i == 1 { "assistant" } else { role };
                json!({"role": role, "content": format!(" {}\n", pieces.concat())})
            };
            json!({"messages": turns.iter().enumerate().map(turn).collect::<Vec<_>>(), "source": "test"})
        };
        files.write(&CONVERSATIONS.iter().map(record).collect::<Vec<_>>());
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn sae(&self) -> String {
        self.path("resid_post/layer_0/width_16/average_l0_4")
    }

    fn write(&self, records: &[Value]) {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        fs::write(self.path("chat.jsonl"), lines.join("\n")).unwrap();
    }

    fn args(&self) -> Vec<String> {
        let batch = BATCH.to_string();
        let args = ["eval", "--threads", "1", "--chat", "--batch", &batch, "--model", &self.path("model")]
            .map(str::to_owned);
        let files = ["--sae", &self.sae(), "--text-file", &self.path("chat.jsonl")].map(str::to_owned);
        [args.to_vec(), files.to_vec()].concat()
    }

    #[track_caller]
    fn refuse(&self, records: &[Value], parts: &[&str]) {
        self.write(records);
        refuse(&self.args().iter().map(String::as_str).collect::<Vec<_>>(), parts);
    }
}

/// The conversations as tokens, each with the role that speaks it, or none where it marks a turn.
fn tokens(tokenizer: &Tokenizer) -> Vec<(i64, Option<u32>)> {
    let mark = |text: &str| (tokenizer.token(text).unwrap(), None);
    let encode = |text: &str| tokenizer.encode_plain(text).unwrap();
    let mut all = Vec::new();
    for (i, turns) in CONVERSATIONS.iter().enumerate() {
        if i > 0 {
            all.push(mark("<eos>"));
        }
        for (role, pieces) in *turns {
            all.push(mark("<start_of_turn>"));
            all.extend(encode(&format!("{role}\n")).into_iter().map(|id| (id, None)));
            let of = Some(u32::from(*role == "model"));
            all.extend(pieces.iter().flat_map(|piece| encode(piece)).map(|id| (id, of)));
            all.push(mark("<end_of_turn>"));
            all.extend(encode("\n").into_iter().map(|id| (id, None)));
        }
    }
    all
}

/// What the library finds on rows that are put together by hand.
fn by_hand(files: &Files) -> Report {
    let no_hub = || -> Result<Hub, HubError> {
        Hub::new(HubOptions { offline: true, ..HubOptions::in_folder(files.0.path()) })
    };
    let loaded = load_model(&files.path("model"), &LoadOptions::default(), no_hub).unwrap();
    let scope = load_sae(&files.sae(), None, &OpenOptions::default(), no_hub).unwrap();
    let tokenizer = loaded.tokenizer().unwrap();
    let (bos, pad) = (tokenizer.bos(), tokenizer.pad());
    let mut rows: Vec<Vec<(i64, Option<u32>)>> = tokens(tokenizer)
        .chunks(CTX - 1)
        .map(|row| std::iter::once((bos, None)).chain(row.iter().copied()).collect())
        .collect();
    assert!(rows.len() > 2 * BATCH && rows.last().unwrap().len() < CTX, "several batches, a short row");
    let mut batches = Vec::new();
    for rows in rows.chunks_mut(BATCH) {
        let longest = rows.iter().map(Vec::len).max().unwrap();
        let ids: Vec<Vec<i64>> = rows.iter().map(|row| row.iter().map(|(id, _)| *id).collect()).collect();
        rows.iter_mut().for_each(|row| row.resize(longest, (pad, None)));
        let roles: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|(_, role)| *role).collect()).collect();
        let hidden: Vec<Vec<bool>> =
            roles.iter().map(|row| row.iter().map(|role| role.is_none()).collect()).collect();
        let batch = TokenBatch::padded(&ids, pad, &tokenizer.special()).unwrap().uncounted(&hidden).unwrap();
        batches.push((batch, roles));
    }
    let options = EvalOptions::default();
    let mut means = Means::new(&loaded.model, [scope.site]).unwrap();
    for (batch, _) in &batches {
        means.add(&loaded.model, batch, options.positions).unwrap();
    }
    let judged = vec![Judged::new(scope.id, scope.site, &scope.sae)];
    let mut suite = Suite::new(&loaded.model, judged, &means, options).unwrap();
    let names = ["user", "model"].map(str::to_owned);
    for (batch, roles) in &batches {
        suite.add(batch, Some(Subsets { names: &names, of: roles })).unwrap();
    }
    suite.reports().unwrap().pop().unwrap()
}

#[track_caller]
fn assert_near(what: &str, got: &Value, want: f64) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what} is {got}, not {want}"));
    assert!((got - want).abs() <= TOLERANCE * want.abs().max(0.1), "{what} is {got}, not {want}");
}

#[test]
fn conversations_are_judged_where_somebody_speaks() {
    let files = Files::new();
    let json = files.path("report.json");
    let args = [files.args(), vec!["--json".to_owned(), json.clone()]].concat();
    run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let reports: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let (report, want) = (&reports[0], by_hand(&files));
    assert_eq!(reports.as_array().unwrap().len(), 1);

    // What counts is what is said: no mark, no name of a role, no BOS or EOS.
    let loaded = load_model(&files.path("model"), &LoadOptions::default(), Hub::from_env).unwrap();
    let spoken = tokens(loaded.tokenizer().unwrap());
    let said = |by: u32| spoken.iter().filter(|(_, role)| *role == Some(by)).count() as u64;
    assert!(said(0) > 20 && said(1) > 20 && said(0) + said(1) < spoken.len() as u64);
    assert_eq!(report["tokens"], said(0) + said(1));
    assert_eq!(report["by_subset"]["user"]["tokens"], said(0));
    assert_eq!(report["by_subset"]["model"]["tokens"], said(1));
    assert_eq!(
        (report["tokens"].as_u64(), report["scored"].as_u64()),
        (Some(want.tokens), Some(want.scored))
    );
    let summary = &report["provenance"]["text"];
    assert_eq!((&report["provenance"]["chat"], &summary["documents"]), (&json!(true), &json!(4)));

    for (name, value) in &want.metrics.values {
        assert_near(name, &report["metrics"][name], *value);
    }
    for name in ["delta_loss", "loss_recovered_zero", "kl", "fvu", "l0", "cosine"] {
        assert!(want.metrics.get(name).is_some_and(f64::is_finite), "{name} is measured");
    }
    assert!(want.metrics["fvu"] < 1.0 && want.metrics["l0"] > 1.0 && want.metrics["delta_loss"] != 0.0);
    for (role, quality) in &want.by_subset {
        let got = &report["by_subset"][role];
        assert_near(role, &got["ce_spliced"], quality.ce_spliced.unwrap());
        assert_near(role, &got["fvu"], quality.fvu.unwrap());
        assert_eq!(got["scored"], quality.scored);
    }
    let at_bos = &report["by_position"][0]["tokens"];
    assert_eq!((at_bos, report["by_position"].as_array().unwrap().len()), (&json!(0), CTX));
}

#[test]
fn conversations_that_are_none() {
    let files = Files::new();
    let turn = |role: &str| json!({"role": role, "content": "Hello."});
    let chat = |turns: &[Value]| json!({"messages": turns});
    let good = chat(&[turn("user"), turn("model")]);
    let at_2 = "chat.jsonl, line 2";
    files.refuse(&[good.clone(), chat(&[turn("user"), turn("robot")])], &[at_2, "`robot`", "`assistant`"]);
    files.refuse(&[good.clone(), chat(&[turn("system")])], &[at_2, "`system`"]);
    files.refuse(&[good.clone(), chat(&[turn("model")])], &[at_2, "first turn", "user"]);
    files.refuse(&[good.clone(), chat(&[turn("user"), turn("user")])], &[at_2, "alternate", "turn 2"]);
    files.refuse(&[good.clone(), json!({"text": "Hello."})], &[at_2, "no field `messages`"]);
    files.refuse(&[good.clone(), json!({"messages": "Hello."})], &[at_2, "`messages`", "list of turns"]);
    files.refuse(&[good.clone(), chat(&[json!({"role": "user"})])], &[at_2, "no field `content`"]);
    files.refuse(&[good.clone(), chat(&[json!({"content": "?"})])], &[at_2, "no field `role`"]);

    write_tokenizer(&files.0.path().join("model"), &[]);
    files.refuse(std::slice::from_ref(&good), &["document 1", "<start_of_turn>", "no chat model's"]);
    let text = ["eval", "--chat", "--text", "Hello."];
    refuse(&text, &["--text", "--chat", "--text-file"]);
}
