# SPDX-License-Identifier: Apache-2.0
"""Read the corpus of public domain books and split it into training and held-out books."""
import lzma
import re

# Whole books that no training step and no tokenizer merge ever sees. The first
# three are by authors of whom nothing else is in the training set.
HELD_OUT = [
    "Kenneth Grahame / The Wind in the Willows",
    "Johanna Spyri / Heidi",
    "Hugh Lofting / The Story of Doctor Dolittle",
    "George MacDonald / The Princess and the Goblin",
    "L. Frank Baum / Ozma of Oz",
    "Robert Louis Stevenson / Treasure Island",
    "Lewis Carroll / Through the Looking-Glass",
    "Arthur Conan Doyle / The Adventure of the Speckled Band",
]

# Characters without width that the source files carry here and there.
INVISIBLE = re.compile("[\ufeff\u200b\u2060]")


def load_books(path):
    """Return [(name, text)] in the order of the file."""
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as f:
        raw = f.read()
    parts = re.split(r"^<<<(.+)>>>$", raw, flags=re.M)
    books = []
    for name, text in zip(parts[1::2], parts[2::2]):
        text = INVISIBLE.sub("", text).replace("\r", "").strip()
        books.append((name.strip(), re.sub(r"\n{3,}", "\n\n", text)))
    return books


def split_books(books):
    """Return (training books, held-out books)."""
    names = {name for name, _ in books}
    missing = [name for name in HELD_OUT if name not in names]
    if missing:
        raise SystemExit(f"held-out books missing from the corpus: {missing}")
    train = [b for b in books if b[0] not in HELD_OUT]
    held = [b for b in books if b[0] in HELD_OUT]
    return train, held
