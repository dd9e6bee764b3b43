/// Where something is not defined.
pub(super) const UNDEFINED: &str = "–";

/// A number with so many decimals; with an exponent where these would show nothing of it.
pub(super) fn fixed(value: Option<f64>, decimals: usize) -> String {
    match value.filter(|v| v.is_finite()) {
        None => UNDEFINED.to_owned(),
        Some(v) if v != 0.0 && v.abs() < 5.0 * 0.1_f64.powi(decimals as i32) => minus(format!("{v:.1e}")),
        Some(v) if v.abs() >= 1e7 => minus(format!("{v:.3e}")),
        Some(v) => minus(format!("{v:.decimals$}")),
    }
}

/// Four digits, for plots: what a screen can't show is left out of the page.
pub(super) fn rounded(value: f64) -> Option<f64> {
    value.is_finite().then(|| format!("{value:.3e}").parse().unwrap_or(value))
}

/// Four digits, for reading.
pub(super) fn four(value: Option<f64>) -> String {
    match value.and_then(rounded) {
        None => UNDEFINED.to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(v) if (1e-4..1e7).contains(&v.abs()) => {
            let digits = (3 - v.abs().log10().floor() as i32).max(0) as usize;
            minus(format!("{v:.digits$}"))
        }
        Some(v) => minus(format!("{v:.3e}")),
    }
}

/// `16,384`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As releases are named: 16384 is `16k`, 65536 is `65k`, 1048576 is `1m`; below 10,000 the number itself.
pub(super) fn short_width(width: i64) -> String {
    match width {
        10_000..1_000_000 => format!("{}k", width / 1000),
        1_000_000.. => format!("{}m", width / 1_000_000),
        _ => width.to_string(),
    }
}

/// A minus sign in the place of the hyphen.
fn minus(text: String) -> String {
    text.replace('-', "−")
}
