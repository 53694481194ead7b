"""Lines of mixed-script Unicode, the same here and in tests/text/lines.h: each line is a function of its number.

The pieces that lines are made of are in tests/fixtures/text/pieces.json, so that both read the same ones.
"""

import json
import pathlib

PIECES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "text" / "pieces.json"
MASK = (1 << 64) - 1


class Random:
    """SplitMix64."""

    def __init__(self, seed: int):
        self.state = seed & MASK

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        return (self.next() >> 11) % n


def line(number: int, pieces: dict) -> str:
    random = Random(number * 0x2545F4914F6CDD1D + 1)
    texts, ranges = pieces["texts"], pieces["ranges"]
    out = []
    for _ in range(1 + random.below(10)):
        kind = random.below(16)
        if kind < 9:
            out.append(texts[random.below(len(texts))])
        elif kind < 12:  # characters of one block
            first, last = ranges[random.below(len(ranges))]
            out.extend(chr(first + random.below(last - first + 1)) for _ in range(1 + random.below(8)))
        elif kind == 12:  # a very long word
            text = texts[random.below(len(texts))].strip()
            out.append(text * (1 + random.below(40)))
        elif kind == 13:
            out.append(" " * random.below(12))
        elif kind == 14:
            out.append(str(random.next() >> random.below(60)))
        else:  # one character from anywhere, controls too
            first, last = ranges[random.below(len(ranges))]
            out.append(chr([random.below(32), 127 + random.below(34), first][random.below(3)]))
        if random.below(2):
            out.append(" ")
    return "".join(out)


def lines(count: int) -> list[str]:
    pieces = json.loads(PIECES.read_text(encoding="utf-8"))
    return [line(number, pieces) for number in range(count)]
