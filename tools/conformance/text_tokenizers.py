"""Small tokenizers of the three kinds that published models use, trained on a few texts.

byte_level_bpe  byte-level BPE with a Split by regex, as Llama 3 and Qwen have it
spm_bpe         SentencePiece BPE with byte fallback, as Llama 2 and Mistral have it
unigram         SentencePiece Unigram with a precompiled character map, as T5 has it
"""

import base64
import json
import pathlib
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB = 1500
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Rules of the character map, from -> to, as code points: ligatures, full width, no-break space, soft hyphen, line feed.
CHARACTER_RULES = [
    ("FB01", "66 69"), ("FF21", "41"), ("FF22", "42"), ("FF10", "30"), ("A0", "20"), ("3000", "20"), ("AD", ""),
    ("A", "20"), ("9", "20"), ("2026", "2E 2E 2E"), ("2126", "3A9"), ("41 30A", "C5"), ("61 308", "E4"), ("FEFF", ""),
]


def byte_level_bpe(files: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False), AddedToken("café", normalized=True)])
    bos = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", bos)])
    return tokenizer


def train_sentencepiece(files: list[str], kind: str, **options) -> sentencepiece.SentencePieceProcessor:
    with tempfile.TemporaryDirectory() as directory:
        prefix = str(pathlib.Path(directory) / "model")
        sentencepiece.SentencePieceTrainer.train(
            input=",".join(files), model_prefix=prefix, model_type=kind, vocab_size=VOCAB, minloglevel=2, num_threads=1,
            input_sentence_size=4000, shuffle_input_sentence=False, **options)
        return sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")


def pieces(model: sentencepiece.SentencePieceProcessor) -> list[tuple[str, float]]:
    return [(model.IdToPiece(i), model.GetScore(i)) for i in range(model.GetPieceSize())]


def spm_bpe(files: list[str]) -> Tokenizer:
    model = train_sentencepiece(files, "bpe", byte_fallback=True, normalization_rule_name="identity",
                                remove_extra_whitespaces=False, split_digits=True)
    vocabulary = pieces(model)
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    merges = []
    for i, (piece, score) in enumerate(vocabulary):
        if model.IsByte(i) or model.IsControl(i) or model.IsUnknown(i):
            continue
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [(-score, ids[a], ids[b], (a, b)) for a, b in cuts if a in ids and b in ids]
    merges = [pair for *_, pair in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])])
    return tokenizer


def fields(message: bytes):
    """(number, value) of a serialised protocol buffer's fields; varints as int, the rest as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, message[at:at + size]
        at += size


def character_map(model: sentencepiece.SentencePieceProcessor) -> bytes:
    normalizer_spec = dict(fields(model.serialized_model_proto()))[3]
    return dict(fields(normalizer_spec))[2]


def unigram(files: list[str]) -> Tokenizer:
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("".join(f"{a}\t{b}\n" for a, b in CHARACTER_RULES))
        rules.flush()
        model = train_sentencepiece(files, "unigram", normalization_rule_tsv=rules.name)
    unk = next(i for i in range(model.GetPieceSize()) if model.IsUnknown(i))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map(model)).decode()},
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        ]},
        "pre_tokenizer": metaspace, "post_processor": None, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": unk, "vocab": pieces(model), "byte_fallback": False},
    }))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    eos = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", eos)])
    return tokenizer


KINDS = {"byte_level_bpe": byte_level_bpe, "spm_bpe": spm_bpe, "unigram": unigram}
