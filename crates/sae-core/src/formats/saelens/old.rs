use serde_json::{Map, Value};

use super::{super::config::Config, config::DESCRIPTION};
use crate::Result;

/// Whether the version is before 6.0.0-rc.0, or not said (SAELens, `handle_config_defaulting`).
pub(super) fn is_old(config: &Config) -> Result<bool> {
    const KEY: &str = "sae_lens_version";
    let said = |value: Option<&Value>| value.filter(|v| v.as_str() != Some("")).cloned();
    let nested = || config.get("metadata").and_then(|m| m.get(KEY)).filter(|v| !v.is_null());
    let Some(version) = said(config.get(KEY)).or_else(|| said(nested())) else { return Ok(true) };
    let before = version.as_str().and_then(before_6);
    before.ok_or_else(|| config.bad(&format!("`{KEY}` is no version: {version}")))
}

/// Whether a version (PEP 440) is before 6.0.0-rc.0; `None` for what is none.
pub(super) fn before_6(version: &str) -> Option<bool> {
    let version = version.trim().trim_start_matches('v').to_lowercase();
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let (release, rest) = version.split_at_checked(end)?;
    let numbers = release.trim_end_matches('.').split('.').map(str::parse);
    let numbers = numbers.collect::<Result<Vec<u64>, _>>().ok()?;
    let rest = rest.trim_start_matches(['-', '_', '.']);
    let suffixes = ["a", "b", "c", "rc", "pre", "dev", "post", "r", "+"];
    if !(rest.is_empty()
        || rest.starts_with(|c: char| c.is_ascii_digit())
        || suffixes.iter().any(|s| rest.starts_with(s)))
    {
        return None;
    }
    let major = *numbers.first()?;
    if major != 6 || numbers.iter().skip(1).any(|n| *n > 0) {
        return Some(major < 6);
    }
    // Of 6.0.0 itself: alphas, betas and what was made before them.
    Some(rest.starts_with(['a', 'b']) || rest.starts_with("dev"))
}

/// The flat settings of before version 6 in the form of version 6 (SAELens, `handle_pre_6_0_config`).
pub(super) fn renewed(mut old: Config) -> Result<Config> {
    let hook = either(&mut old, "hook_name", "hook_point")?;
    let head = either(&mut old, "hook_head_index", "hook_point_head_index")?;
    let mut set = Map::new();
    let (architecture, k) = architecture(&mut old)?;
    set.insert("architecture".to_owned(), architecture.into());
    set.extend(k.map(|k| ("k".to_owned(), k.into())));
    let normalize = match old.take("normalize_activations") {
        Some(Value::Bool(true)) => "expected_average_only_in".into(),
        Some(Value::Bool(false)) | None => "none".into(),
        Some(other) => other,
    };
    set.insert("normalize_activations".to_owned(), normalize);
    if !old.has("reshape_activations") {
        let heads = hook.as_ref().and_then(Value::as_str).is_some_and(|h| h.contains("hook_z"));
        set.insert("reshape_activations".to_owned(), if heads { "hook_z" } else { "none" }.into());
    }
    let mut metadata = old.object("metadata")?.map(Config::rest).unwrap_or_default();
    metadata.entry("prepend_bos").or_insert(true.into());
    metadata.extend(old.harmless(&DESCRIPTION));
    for (key, value) in [("hook_name", hook), ("hook_head_index", head)] {
        metadata.extend(value.map(|value| (key.to_owned(), value)));
    }
    set.insert("metadata".to_owned(), metadata.into());
    let file = old.file().to_owned();
    let mut all = old.rest();
    all.extend(set);
    Ok(Config::new(&file, all))
}

/// A value that had two names.
fn either(old: &mut Config, name: &str, before: &str) -> Result<Option<Value>> {
    match (old.take(name), old.take(before)) {
        (Some(a), Some(b)) if a != b => Err(old.bad(&format!("`{name}` is {a}, but `{before}` is {b}"))),
        (a, b) => Ok(a.or(b)),
    }
}

/// The architecture, and the `k` of its activation.
fn architecture(old: &mut Config) -> Result<(String, Option<i64>)> {
    let activation = either(old, "activation_fn", "activation_fn_str")?.unwrap_or_else(|| "relu".into());
    let kwargs = old.object("activation_fn_kwargs")?;
    let there = kwargs.is_some();
    let mut k = None;
    if let Some(mut kwargs) = kwargs {
        k = kwargs.size("k")?;
        kwargs.only("signed", &[false.into()])?;
        kwargs.finish()?;
    }
    let architecture = old.text("architecture")?.unwrap_or_else(|| "standard".to_owned());
    match activation.as_str() {
        Some("topk") if k.is_some() => Ok(("topk".to_owned(), k)),
        Some("topk" | "relu") if architecture == "topk" && there == k.is_some() => Ok((architecture, k)),
        Some("relu") if architecture != "topk" && k.is_none() => Ok((architecture, None)),
        Some("topk") => Err(old.bad("`activation_fn` is `topk`, but there is no `activation_fn_kwargs.k`")),
        Some("relu") if architecture == "topk" => Err(old.bad("`activation_fn_kwargs.k` is missing")),
        Some("relu") => {
            Err(old.bad(&format!("`activation_fn_kwargs.k` is set, but `architecture` is `{architecture}`")))
        }
        _ => Err(old
            .bad(&format!("`activation_fn` is {activation}, which is not read: only `relu` and `topk` are"))),
    }
}
