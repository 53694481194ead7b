# SPDX-License-Identifier: Apache-2.0
"""Rows of token ids, each token with what it is to the loss: book text, an answer of a task, or nothing to predict."""
import hashlib
import multiprocessing
import os
import random
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

import retrieval
from tokenizer import ASSISTANT_ID, BOS_ID, END_ID, SPECIAL_TOKENS, USER_ID

# Kinds of tokens. Questions are random and not worth predicting: SKIP. Answers have the index of their task, from ANSWER on.
SKIP, TEXT, REPEAT, ANSWER = 0, 1, 2, 3
TASK_NAMES = list(retrieval.TASKS)


class Corpus:
    """The books as one array of ids, each book behind a BOS, plus their texts for passages."""

    def __init__(self, books, tok, cache=None):
        """cache: a file that keeps the ids, for the next run with the same books and tokenizer."""
        self.tok = tok
        self.text = "\n\n".join(text for _, text in books)
        key = hashlib.sha256((tok.to_str() + self.text).encode()).hexdigest()
        path = cache and f"{cache}.{key[:16]}.npy"
        if path and os.path.exists(path):
            self.ids = np.load(path)
            return
        pieces = []
        for _, text in books:
            pieces.append(np.array([BOS_ID] + tok.encode(text, add_special_tokens=False).ids, dtype=np.uint16))
        self.ids = np.concatenate(pieces)
        if path:
            np.save(path, self.ids)

    def span(self, rng, count):
        start = rng.randrange(len(self.ids) - count)
        return self.ids[start : start + count].astype(np.int64)

    def passage(self, rng):
        """A function tokens -> text of so many tokens that begins at a sentence where one is near."""

        def pick(tokens):
            size = tokens * 6  # characters; a token has 3.6 of them
            start = rng.randrange(len(self.text) - size - 2000)
            sentence = self.text.find(". ", start, start + 1500)
            start = sentence + 2 if sentence >= 0 else start
            text = self.text[start : start + size]
            offsets = self.tok.encode(text, add_special_tokens=False).offsets
            return text[: offsets[:tokens][-1][1]].strip()

        return pick


def chat_turns(tok, turns, kind):
    """ids and kinds of a conversation of [(question, answer)]; an answer's end counts as part of it."""
    ids, kinds = [BOS_ID], [SKIP]
    for question, answer in turns:
        q = [USER_ID] + tok.encode(question, add_special_tokens=False).ids + [END_ID, ASSISTANT_ID]
        a = tok.encode(answer, add_special_tokens=False).ids + [END_ID]
        ids += q + a
        kinds += [SKIP] * len(q) + [kind] * len(a)
    return ids, kinds


def retrieval_row(corpus, rng, length, longest, asks):
    """A row filled with whole problems, and with book text where none fits any more."""
    ids, kinds = [], []
    while len(ids) < length:
        room = length - len(ids)
        more = None
        for _ in range(4 if room >= 60 else 0):
            task = rng.randrange(len(TASK_NAMES))
            budget = rng.randrange(25, max(26, min(room - 10, longest)))
            turns = retrieval.make(TASK_NAMES[task], rng, budget, corpus.passage(rng), rng.randrange(1, asks + 1))
            more, kind = chat_turns(corpus.tok, turns, ANSWER + task)
            if len(more) <= room:
                break
            more = None
        if more is None:
            more, kind = corpus.span(rng, room).tolist(), [TEXT] * room
        ids += more
        kinds += kind
    return ids, kinds


def repeat_row(corpus, rng, length):
    """Random tokens, or a span of a book, over and over: what teaches copying first."""
    period = rng.randrange(8, max(9, length // 3))
    if rng.random() < 0.3:
        span = corpus.span(rng, period).tolist()
    else:
        span = [rng.randrange(len(SPECIAL_TOKENS), corpus.tok.get_vocab_size()) for _ in range(period)]
    ids = (span * (length // period + 1))[:length]
    return ids, [SKIP] * (period + 1) + [REPEAT] * (length - period - 1)


def story_row(corpus, rng, length):
    """Chat form of the books: a passage to continue, then its continuation."""
    asked = rng.randrange(20, length // 3)
    span = corpus.span(rng, length - 12).tolist()
    prompt = corpus.tok.encode("Continue this story: ", add_special_tokens=False).ids
    head = [BOS_ID, USER_ID] + prompt + span[:asked] + [END_ID, ASSISTANT_ID]
    ids = (head + span[asked:] + [END_ID])[:length]
    ids += [END_ID] * (length - len(ids))
    return ids, [TEXT] * length


def text_row(corpus, rng, length):
    span = corpus.span(rng, length).tolist()
    if rng.random() < 0.3:
        span = [BOS_ID] + span[:-1]
    return span, [TEXT] * length


def batch(corpus, seed, form):
    """(ids, targets, kinds of the targets), each [rows, length], by a plan.Rows; a pure function of its arguments."""
    length, shares = form.length, form.shares
    rng = random.Random(seed)
    all_ids, all_kinds = [], []
    for _ in range(form.rows):
        draw = rng.random()
        if draw < shares[0]:
            ids, kinds = retrieval_row(corpus, rng, length + 1, form.longest, form.asks)
        elif draw < shares[0] + shares[1]:
            ids, kinds = repeat_row(corpus, rng, length + 1)
        elif draw < shares[0] + shares[1] + shares[2]:
            ids, kinds = story_row(corpus, rng, length + 1)
        else:
            ids, kinds = text_row(corpus, rng, length + 1)
        all_ids.append(ids)
        all_kinds.append(kinds)
    ids = torch.tensor(all_ids)
    return ids[:, :-1], ids[:, 1:], torch.tensor(all_kinds)[:, 1:]


def packed(corpus, seed, form):
    """A batch without what is not to be predicted: (ids, places in the flattened ids, targets there, their kinds)."""
    ids, targets, kinds = batch(corpus, seed, form)
    places = (kinds.flatten() != SKIP).nonzero().flatten()
    return (
        ids.numpy().astype(np.uint16),
        places.numpy().astype(np.int32),
        targets.flatten()[places].numpy().astype(np.uint16),
        kinds.flatten()[places].numpy().astype(np.uint8),
    )


def begin_work(corpus):
    """In a new worker process, which has the corpus by its birth."""
    global worker_corpus
    worker_corpus = corpus
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):  # of the whole group: the trainer stops its workers itself
        signal.signal(number, signal.SIG_IGN)


def work(seed, form):
    return packed(worker_corpus, seed, form)


class Feeder:
    """Packed batches in the order in which they were asked for, made ahead by worker processes where there are any.

    To be made before a thread or a GPU is used: the workers are forked.
    """

    def __init__(self, corpus, workers):
        self.corpus, self.waiting = corpus, deque()
        self.pool, self.ahead = None, 1
        if workers:
            self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), begin_work, (corpus,))
            self.pool.submit(os.getpid).result()  # the first task forks them all
            self.ahead = 2 * workers

    def ask(self, seed, form):
        self.waiting.append(self.pool.submit(work, seed, form) if self.pool else (seed, form))

    def take(self):
        first = self.waiting.popleft()
        return first.result() if self.pool else packed(self.corpus, *first)

    def close(self):
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
