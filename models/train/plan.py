# SPDX-License-Identifier: Apache-2.0
"""How a model of each size is trained: the rows of every step, and what differs between the sizes beside them."""
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rows:
    """Rows of one step.

    shares: of the rows with retrieval problems, repetitions, stories; the others are book text.
    longest: tokens of a problem at most; asks: questions after one context at most.
    """

    rows: int
    length: int
    shares: tuple
    longest: int
    asks: int

    def scaled(self, factor):
        return replace(self, rows=max(1, round(self.rows * factor)))


@dataclass(frozen=True)
class Plan:
    """phases: (share of the time until which it lasts, [(share of the steps up to which rows are taken, rows)]).

    Few tokens are answers, and each of them says much more about retrieval than a token of a book does: answer_weight.
    """

    phases: tuple
    answer_weight: float
    weight_decay: float
    chunk: int  # tokens whose logits are there at once
    spread_weight: float = 0.0  # of MLP.spread, mean over the layers, in the loss

    def rows(self, step, progress):
        """Short rows first, long ones later; within a phase spread evenly over the steps."""
        turn = (step * 0.6180339887) % 1.0
        choices = next(choices for until, choices in self.phases if progress < until or until == 1.0)
        return next(rows for until, rows in choices if turn < until or until == 1.0)


PLANS = {
    # For two cores, whose caches a thousand rows of logits fill.
    "tiny": Plan(
        phases=(
            (0.12, ((1.0, Rows(16, 128, (0.35, 0.10, 0.00), 110, 6)),)),
            (0.50, ((1.0, Rows(4, 512, (0.25, 0.03, 0.05), 440, 6)),)),
            (
                1.0,
                (
                    (0.35, Rows(2, 2048, (0.40, 0.00, 0.05), 1900, 6)),
                    (1.0, Rows(8, 512, (0.20, 0.00, 0.05), 440, 6)),
                ),
            ),
        ),
        answer_weight=2.0,
        weight_decay=0.02,
        chunk=1024,
    ),
    # For one core, from the weights of `tiny`: they know books and retrieval already, and learn to do with fewer neurons.
    "tiny-relu2": Plan(
        phases=(
            (0.60, ((1.0, Rows(4, 512, (0.25, 0.03, 0.05), 440, 6)),)),
            (
                1.0,
                (
                    (0.35, Rows(2, 2048, (0.40, 0.00, 0.05), 1900, 6)),
                    (1.0, Rows(8, 512, (0.20, 0.00, 0.05), 440, 6)),
                ),
            ),
        ),
        answer_weight=2.0,
        weight_decay=0.02,
        chunk=1024,
        spread_weight=0.5,
    ),
    # For a GPU that sees the books many times over in minutes: more of the rows are problems, which never come again, more
    # questions are put after the long contexts, and weights decay faster, lest the books be learnt by heart.
    "small": Plan(
        phases=(
            (0.05, ((1.0, Rows(512, 128, (0.35, 0.10, 0.00), 110, 6)),)),
            (0.30, ((1.0, Rows(128, 512, (0.40, 0.05, 0.05), 440, 12)),)),
            (
                0.50,
                (
                    (0.50, Rows(32, 2048, (0.45, 0.05, 0.05), 1900, 24)),
                    (1.0, Rows(128, 512, (0.35, 0.00, 0.05), 440, 12)),
                ),
            ),
            (
                1.0,
                (
                    (0.60, Rows(16, 4096, (0.50, 0.05, 0.05), 3950, 24)),
                    (1.0, Rows(128, 512, (0.35, 0.00, 0.05), 440, 12)),
                ),
            ),
        ),
        answer_weight=3.0,
        weight_decay=0.05,
        chunk=16384,
    ),
}
