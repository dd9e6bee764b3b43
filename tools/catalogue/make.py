"""Write the catalogue of released SAEs from SAELens' index of them.

    python tools/catalogue/make.py INDEX.tsv > crates/sae-core/src/catalogue/released.txt

INDEX.tsv has a row for each SAE and the columns release, repo_id, model, sae_id, path, l0, neuronpedia, as SAELens'
`pretrained_saes.yaml` lists them (https://github.com/decoderesearch/SAELens). What is regular in them is said once; the header
that is written explains the form. Whatever isn't regular stops this script.

Where the index contradicts itself:
* rows of `gemma-scope-9b-it-res` by L0 name the base model, and those of the same files as canonical the right one, 9b-it;
* two by-L0 rows name another SAE's page on Neuronpedia: they are left without one.
"""

import csv
import re
import sys
from collections import defaultdict

HEADER = """\
# The released SAEs; tools/catalogue/make.py wrote this. A line "@" begins a release: its name in SAELens, its model, and the
# repository and folder that it lies in. A line under it: a layer ("e" is the embedding); widths; an L0 for each SAE of each
# of these widths, with letters before it where it is named by size: s(mall), m(edium), b(ig), a(ffine), r (another seed).
# Behind it: "*" canonical, with Neuronpedia's page of this layer and width; "+" such a page alone; "~" a page of this L0's own."""
FIRST = re.compile(r"(?:embedding|layer_(?P<layer>\d+))/width_(?P<width>\w+)/average_l0_(?P<l0>\d+)")
SECOND = re.compile(r"(?P<folder>\w+)/layer_(?P<layer>\d+)_width_(?P<width>\w+?)_l0_(?P<size>small|medium|big)(?P<kind>_affine|_seed_1)?")
SITES = {"res": "res", "att": "att", "mlp": "mlp", "transcoders": "transcoder"}
KINDS = {None: "", "_affine": "a", "_seed_1": "r"}
ORDER = ["270m", "1b", "2b", "4b", "9b", "12b", "27b"]


def number(width):
    return int(width[:-1]) * (1000 if width.endswith("m") else 1)


def rank(release):
    """First Gemma Scope, then the second; base models before tuned ones; small models first; all layers last."""
    second = release.startswith("gemma-scope-2-")
    size, tuned, site = release.removeprefix("gemma-scope-").removeprefix("2-" if second else "").split("-", 2)
    return second, tuned == "it" and not second, ORDER.index(size), tuned == "it", site.endswith("-all"), list(SITES).index(site.removesuffix("-all"))


def read(index):
    """By release: its header, and by layer and width what is said of each L0, with the canonical ones marked."""
    releases, pages = {}, {}
    rows = sorted(index, key=lambda row: not row["release"].endswith("-canonical"))
    for row in rows:
        release = row["release"].removesuffix("-canonical")
        canonical = release != row["release"]
        second = release.startswith("gemma-scope-2-")
        found = (SECOND if second else FIRST).fullmatch(row["path"])
        assert found, row
        site = SITES[release.removesuffix("-all").rsplit("-", 1)[1]]
        repo = row["repo_id"] + ("/" + found["folder"] if second else "")
        model = "google/" + row["model"].removeprefix("google/")
        at = (-1 if found["layer"] is None else int(found["layer"]), found["width"])
        if second:
            assert row["sae_id"] in (row["path"], row["path"].split("/")[1]) and row["l0"], row
            item = (int(row["l0"]), found["size"][0] + KINDS[found["kind"]] + row["l0"])
        else:
            assert row["sae_id"] == (row["path"].rsplit("/", 1)[0] + "/canonical" if canonical else row["path"]), row
            assert repo == "google/" + release, row
            item = (int(found["l0"]), found["l0"])
        # The first to name the model is the canonical row.
        head, saes = releases.setdefault(release, ([release, model, repo], defaultdict(dict)))
        assert head[2] == repo and head[1] in (model, model + "-it"), row
        mark = page_of(row, head[1], at, item[1], "2-" if second else "", site)
        saes[at].setdefault(item, "*" if canonical else mark)
        assert not canonical or mark == "+", row
    return releases


def page_of(row, model, at, l0, second, site):
    if not row["neuronpedia"]:
        return ""
    name = model.removeprefix("google/").removesuffix("-pt")
    page = f"{name}/{at[0]}-gemmascope-{second}{site}-{at[1]}"
    if row["neuronpedia"] == page:
        return "+"
    if row["neuronpedia"] != f"{page}__l0-{l0}":
        print(f"{row['release']}/{row['sae_id']} names another page, {row['neuronpedia']}", file=sys.stderr)
        return ""
    return "~"


def main():
    with open(sys.argv[1], newline="") as file:
        releases = read(csv.DictReader(file, delimiter="\t"))
    print(HEADER)
    for release in sorted(releases, key=rank):
        head, saes = releases[release]
        print("@", *head)
        lines = defaultdict(list)
        for at in sorted(saes, key=lambda at: (at[0], number(at[1]))):
            items = " ".join(item + mark for (_, item), mark in sorted(saes[at].items()))
            lines[(at[0], items)].append(at[1])
        for (layer, items), widths in lines.items():
            print("e" if layer < 0 else layer, ",".join(widths), items)


main()
