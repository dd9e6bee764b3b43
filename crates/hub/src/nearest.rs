//! Names like the one that was asked for.

/// How many names an error lists.
const MOST: usize = 4;

/// The `names` nearest to `wanted`, the nearest first: what lies in a folder of this name, what has this name in
/// another folder, then what is at most a quarter of its letters away.
pub(crate) fn nearest(wanted: &str, names: &[String]) -> Vec<String> {
    let wanted = wanted.trim_matches('/');
    let mut near: Vec<(usize, &String)> = names
        .iter()
        .filter_map(|name| {
            if name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/'))
                || name.strip_suffix(wanted).is_some_and(|rest| rest.ends_with('/'))
            {
                return Some((0, name));
            }
            let distance = edit_distance(wanted.as_bytes(), name.as_bytes());
            (distance <= (wanted.len() / 4).max(2)).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter().take(MOST).map(|(_, name)| name.clone()).collect()
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn distance_of_known_pairs() {
        for (a, b, distance) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("l0_70", "l0_71", 1)]
        {
            assert_eq!(edit_distance(a.as_bytes(), b.as_bytes()), distance);
            assert_eq!(edit_distance(b.as_bytes(), a.as_bytes()), distance);
        }
    }

    #[test]
    fn nearest_first_and_nothing_far() {
        let files = names(&[
            ".gitattributes",
            "layer_20/width_16k/average_l0_139/params.npz",
            "layer_20/width_16k/average_l0_71/params.npz",
            "layer_2/width_16k/average_l0_71/params.npz",
        ]);
        let near = nearest("layer_20/width_16k/average_l0_70/params.npz", &files);
        assert_eq!(near[0], files[2]);
        assert!(!near.contains(&files[0]));
        assert_eq!(nearest("layer_20/width_16k/average_l0_71", &files)[0], files[2]);
        assert!(nearest("params.npz", &files).contains(&files[1]));
        assert_eq!(nearest("tokenizer.json", &files), Vec::<String>::new());
    }
}
