//! Reads what `tools/catalogue/make.py` wrote.

use std::sync::LazyLock;

use hooks::LayerIdx;

use super::{Entry, Page, Site, Size, Width};

/// Its first lines say how to read it.
const RELEASED: &str = include_str!("released.txt");

/// In order.
pub(super) fn entries() -> &'static [Entry] {
    // A damaged file would make an empty catalogue; the tests count.
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| read(RELEASED).unwrap_or_default());
    &ENTRIES
}

fn read(text: &'static str) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut release = None;
    // Where the release begins whose lines are being read.
    let mut first = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix("@ ") {
            in_order(&mut entries[first..]);
            first = entries.len();
            release = Some(Release::read(head)?);
        } else {
            release.as_ref()?.read_line(line, &mut entries)?;
        }
    }
    in_order(&mut entries[first..]);
    Some(entries)
}

/// Widths with the same L0s stand on one line, so that the lines are out of order; the SAEs of one width are not.
fn in_order(of_one_release: &mut [Entry]) {
    of_one_release.sort_by_key(|e| (e.layer, e.width));
}

struct Release {
    name: &'static str,
    model: &'static str,
    repo: &'static str,
    folder: Option<&'static str>,
    site: Site,
}

impl Release {
    fn read(head: &'static str) -> Option<Self> {
        let mut words = head.split(' ');
        let (name, model, place) = (words.next()?, words.next()?, words.next()?);
        let slash = place.match_indices('/').nth(1);
        let (repo, folder) = slash.map_or((place, None), |(at, _)| (&place[..at], Some(&place[at + 1..])));
        let site = match name.trim_end_matches("-all").rsplit('-').next()? {
            "res" => Site::Residual,
            "att" => Site::Attention,
            "mlp" => Site::Mlp,
            "transcoders" => Site::Transcoder,
            _ => return None,
        };
        Some(Self { name, model, repo, folder, site })
    }

    /// `20 16k,65k 22 38 71*`.
    fn read_line(&self, line: &'static str, entries: &mut Vec<Entry>) -> Option<()> {
        let mut words = line.split(' ');
        let (layer, widths) = (words.next()?, words.next()?);
        let layer = if layer == "e" { None } else { Some(LayerIdx(layer.parse().ok()?)) };
        for width in widths.split(',') {
            let width = Width::labelled(width)?;
            for item in words.clone() {
                entries.push(self.entry(layer, width, item)?);
            }
        }
        Some(())
    }

    /// `71*`, `ma54`.
    fn entry(&self, layer: Option<LayerIdx>, width: Width, item: &str) -> Option<Entry> {
        let at = item.find(|c: char| c.is_ascii_digit())?;
        let (letters, rest) = item.split_at(at);
        let digits = rest.trim_end_matches(['*', '+', '~']);
        let (canonical, page) = match &rest[digits.len()..] {
            "*" => (true, Page::OfLayerAndWidth),
            "+" => (false, Page::OfLayerAndWidth),
            "~" => (false, Page::OfL0),
            "" => (false, Page::None),
            _ => return None,
        };
        Some(Entry {
            release: self.name,
            repo: self.repo,
            model: self.model,
            site: if layer.is_some() { self.site } else { Site::Embedding },
            layer,
            width,
            l0: digits.parse().ok()?,
            canonical,
            folder: self.folder,
            size: if letters.is_empty() { None } else { Some(size(letters)?) },
            page,
        })
    }
}

fn size(letters: &str) -> Option<Size> {
    let (name, suffix) = letters.split_at(1);
    let name = match name {
        "s" => "small",
        "m" => "medium",
        "b" => "big",
        _ => return None,
    };
    let suffix = match suffix {
        "" => "",
        "a" => "_affine",
        "r" => "_seed_1",
        _ => return None,
    };
    Some(Size { name, suffix })
}
