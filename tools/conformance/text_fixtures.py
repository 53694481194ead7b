"""Writes tests/fixtures/text: what PyPI tokenizers and transformers make of texts and chats.

    python text_fixtures.py --texts FILE ... [--templates DIRECTORY]    writes the fixtures
    python text_fixtures.py --check [--templates DIRECTORY]             compares them with what the judges say now

--texts are what the small tokenizers are trained on; without it, those that are there are kept. See README.md there.
"""

import argparse
import datetime
import json
import pathlib
import struct
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import text_lines
import text_snippets

FIXTURES = text_lines.PIECES.parent
LINES = 10_000
SHOWN = 100  # lines whose ids are written out


def fnv1a(data: bytes, value: int, prime: int, bits: int) -> int:
    for byte in data:
        value = ((value ^ byte) * prime) & ((1 << bits) - 1)
    return value


def hash32(data: bytes) -> int:
    return fnv1a(data, 0x811C9DC5, 0x01000193, 32)


def hash64(data: bytes) -> int:
    return fnv1a(data, 0xCBF29CE484222325, 0x100000001B3, 64)


class Frozen(datetime.datetime):
    """now() of transformers' strftime_now."""

    moment = {}

    @classmethod
    def now(cls, tz=None):
        fields = ("year", "month", "day", "hour", "minute", "second", "microsecond")
        return cls(*(cls.moment[name] for name in fields))


def judge(config: dict) -> PreTrainedTokenizerFast:
    """A tokenizer that has nothing but special tokens and apply_chat_template."""
    tokens = {name: value["content"] if isinstance(value, dict) else value
              for name, value in config.items() if name.endswith("_token") and isinstance(value, (str, dict))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)


def render(tokenizer: PreTrainedTokenizerFast, template: str, context: dict) -> tuple[bool, str]:
    """(True, text) or (False, the error)."""
    context = json.loads(json.dumps(context))
    messages = context.pop("messages")
    try:
        return True, tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **context)
    except Exception as error:  # whatever a template can raise
        return False, str(error)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    hashes, shown = [], []
    for text in text_lines.lines(LINES):
        ids = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        hashes.append(hash32(struct.pack(f"<{len(ids)}i", *ids) + decoded.encode()))
        if len(shown) < SHOWN:
            shown.append({"ids": ids, "decoded": decoded})
    return {"hashes": struct.pack(f"<{LINES}I", *hashes), "shown": dump(shown)}


def dump(value) -> bytes:
    return (json.dumps(value, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n").encode()


def templates_file(directory: pathlib.Path) -> bytes:
    """For each template and conversation the length in bytes and the hash of the text, or null for an error."""
    fixture = json.loads((FIXTURES / "conversations.json").read_text(encoding="utf-8"))
    Frozen.moment = fixture["now"]
    tokenizer = judge(fixture["tokenizer_config"])
    expected = {}
    for path in sorted(directory.glob("*.jinja")):
        template = path.read_bytes().decode()
        rows = []
        for conversation in fixture["conversations"]:
            done, text = render(tokenizer, template, conversation["context"])
            rows.append([len(text.encode()), f"{hash64(text.encode()):016x}"] if done else None)
        expected[path.name] = rows
    return (json.dumps(expected, indent=1) + "\n").encode()


def snippets_file() -> bytes:
    fixture = json.loads((FIXTURES / "conversations.json").read_text(encoding="utf-8"))
    Frozen.moment = fixture["now"]
    tokenizer = judge(fixture["tokenizer_config"])
    rows = []
    for template in text_snippets.SNIPPETS:
        done, text = render(tokenizer, template, text_snippets.CONTEXT)
        rows.append({"template": template, "text": text} if done else {"template": template, "error": True})
    for template, message in text_snippets.RAISED.items():
        done, text = render(tokenizer, template, text_snippets.CONTEXT)
        if done or text != message:
            raise RuntimeError(f"{template!r} should raise {message!r}")
        rows.append({"template": template, "message": message})
    content = {"context": text_snippets.CONTEXT, "snippets": rows}
    return (json.dumps(content, ensure_ascii=True, indent=0) + "\n").encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", help="texts to train the small tokenizers on")
    parser.add_argument("--templates", type=pathlib.Path, help="directory of *.jinja files")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    chat_template_utils.datetime = Frozen

    files = {"snippets.json": snippets_file()}
    if options.templates:
        files["chat_templates.json"] = templates_file(options.templates)
    if options.texts:
        import text_tokenizers  # needs sentencepiece
        for name, train in text_tokenizers.KINDS.items():
            files[f"{name}/tokenizer.json"] = train(options.texts).to_str().encode() + b"\n"
    for name in ("byte_level_bpe", "spm_bpe", "unigram"):
        stored = FIXTURES / name / "tokenizer.json"
        text = files.get(f"{name}/tokenizer.json") or stored.read_bytes()
        made = tokenizer_files(Tokenizer.from_str(text.decode()))
        files[f"{name}/hashes.bin"], files[f"{name}/shown.json"] = made["hashes"], made["shown"]

    wrong = 0
    for name, data in files.items():
        path = FIXTURES / name
        if options.check:
            same = path.is_file() and path.read_bytes() == data
            wrong += not same
            print(f"{'same' if same else 'DIFFERENT'}  {name}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{len(data):8} {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
