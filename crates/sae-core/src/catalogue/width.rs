use std::{fmt, str::FromStr};

use crate::SaeError;

/// Labels and what they stand for: 16k is 2^14, 1m is 2^20.
const WIDTHS: [Width; 8] = [
    Width { d_sae: 1 << 12, label: "4k" },
    Width { d_sae: 1 << 14, label: "16k" },
    Width { d_sae: 1 << 15, label: "32k" },
    Width { d_sae: 1 << 16, label: "65k" },
    Width { d_sae: 1 << 17, label: "131k" },
    Width { d_sae: 1 << 18, label: "262k" },
    Width { d_sae: 1 << 19, label: "524k" },
    Width { d_sae: 1 << 20, label: "1m" },
];

/// One of the widths of the releases: `16k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Width {
    // First, so that widths are in the order of their numbers.
    d_sae: i64,
    label: &'static str,
}

impl Width {
    /// The number of latents: 16,384.
    pub fn d_sae(self) -> i64 {
        self.d_sae
    }

    /// As the releases write it: `16k`.
    pub fn label(self) -> &'static str {
        self.label
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        WIDTHS.into_iter()
    }

    pub(crate) fn labelled(label: &str) -> Option<Self> {
        WIDTHS.into_iter().find(|width| width.label == label)
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label)
    }
}

/// From a label, or from the number of latents.
impl FromStr for Width {
    type Err = SaeError;

    fn from_str(text: &str) -> Result<Self, SaeError> {
        let numbered = || WIDTHS.into_iter().find(|width| width.d_sae.to_string() == text);
        Self::labelled(text).or_else(numbered).ok_or_else(|| {
            let known = WIDTHS.map(Self::label).join(", ");
            SaeError::Catalogue(format!("`{}` is no width; the widths are {known}", text.escape_debug()))
        })
    }
}
