# SPDX-License-Identifier: Apache-2.0
"""Train the byte-level BPE tokenizer (4096 tokens) on the training books.

    python tokenizer.py --corpus ../shared/data/corpus/children_and_adventure.txt.xz \
        --out models/millrace-tiny/tokenizer.json
"""
import argparse
import os
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from books import load_books, split_books

BOS, END, USER, ASSISTANT, SYSTEM = "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = [BOS, END, USER, ASSISTANT, SYSTEM]  # ids 0..4 in this order
BOS_ID, END_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID = range(5)
VOCAB_SIZE = 4096

CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}\n"
    "{{- raise_exception('Unknown role: ' + message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|assistant|>' -}}\n"
    "{%- endif -%}"
)


def train_tokenizer(texts):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Digits are left out of the merge training: every digit stays a token of
    # its own, which makes copying numbers a matter of copying tokens.
    pieces = (re.sub(r"[0-9]+", "", line) for text in texts for line in text.split("\n"))
    tok.train_from_iterator(pieces, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    train, _ = split_books(load_books(args.corpus))
    tok = train_tokenizer([text for _, text in train])
    for i, name in enumerate(SPECIAL_TOKENS):
        assert tok.token_to_id(name) == i
    assert tok.get_vocab_size() == VOCAB_SIZE
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    tok.save(args.out)
    sample = train[0][1][2000:4000]
    assert tok.decode(tok.encode(sample).ids) == sample
    print(f"{args.out}: {VOCAB_SIZE} tokens, {len(sample.encode()) / len(tok.encode(sample).ids):.2f} bytes a token")


if __name__ == "__main__":
    main()
