"""Compare the catalogue in the program with SAELens' index, row by row, and print how many SAEs each release has.

    gemma-scope list --json | python tools/catalogue/check.py INDEX.tsv

INDEX.tsv is what `make.py` beside this was given; what it says of the index's contradictions is allowed for here.
"""

import csv
import json
import sys
from collections import Counter

WRONG_PAGE = {"layer_2/width_16k/average_l0_8", "layer_20/width_131k/average_l0_114"}


def main():
    entries = {(e["repo"], e["path"]): e for e in json.load(sys.stdin)}
    unseen, wrong, rows, counts = set(entries), 0, 0, Counter()
    with open(sys.argv[1], newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            rows += 1
            entry = entries.get((row["repo_id"], row["path"]))
            problem = "is not in the catalogue" if entry is None else compare(row, entry)
            if problem:
                print(f"{row['release']}/{row['sae_id']}: {problem}", file=sys.stderr)
                wrong += 1
            unseen.discard((row["repo_id"], row["path"]))
            counts[row["release"]] += 1
    for repo, path in sorted(unseen):
        print(f"{repo}/{path}: is not in the index", file=sys.stderr)
    for release, n in counts.items():
        print(n, release)
    print(f"{rows} rows, {len(entries)} SAEs: {wrong} rows differ, {len(unseen)} SAEs are in no row")
    return bool(wrong or unseen)


def compare(row, entry):
    release = row["release"].removesuffix("-canonical")
    canonical = release != row["release"]
    model = "google/" + row["model"].removeprefix("google/")
    if release == "gemma-scope-9b-it-res":
        model = "google/gemma-2-9b-it"
    for key, want in [("release", release), ("model", model)]:
        if entry[key] != want:
            return f"{key} is {entry[key]}, not {want}"
    # One canonical row (9b, layer 20, 524k) gives another L0 than its own path.
    if row["l0"] and not canonical and entry["l0"] != int(row["l0"]):
        return f"l0 is {entry['l0']}, not {row['l0']}"
    if not row["l0"] and not row["path"].endswith(f"_l0_{entry['l0']}"):
        return f"l0 is {entry['l0']}, not the path's"
    if canonical and not entry["canonical"]:
        return "is not canonical"
    second = release.startswith("gemma-scope-2-")
    if second and entry["name"] != f"{row['repo_id']}/{row['path']}":
        return f"is called {entry['name']}"
    if not second and entry["name"] != f"{release}/{row['path']}":
        return f"is called {entry['name']}"
    if f"width_{entry['width']}" not in row["path"]:
        return f"width is {entry['width']}"
    if entry["layer"] is not None and f"layer_{entry['layer']}" not in row["path"]:
        return f"layer is {entry['layer']}"
    # A canonical SAE may have a page of its L0 besides; two rows name a page of another.
    if entry["canonical"] and not canonical:
        return None
    if release == "gemma-scope-9b-pt-res" and row["path"] in WRONG_PAGE:
        return None
    if (entry["neuronpedia"] or "") != row["neuronpedia"]:
        return f"neuronpedia is {entry['neuronpedia']}, not {row['neuronpedia']}"
    return None


sys.exit(main())
