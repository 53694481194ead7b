# SPDX-License-Identifier: Apache-2.0
"""Write a training checkpoint as a Hugging Face directory (BF16), and check it against transformers where that is installed.

    python export.py --checkpoint build/train/checkpoint.pt --out models/millrace-tiny

The tokenizer.json is expected in the output folder already (tokenizer.py wrote it there).
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file

from model import Config, Llama
from tokenizer import BOS, BOS_ID, CHAT_TEMPLATE, END, END_ID, SPECIAL_TOKENS


def write_json(folder, name, value):
    path = os.path.join(folder, name)
    with open(path + ".new", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")
    os.replace(path + ".new", path)


def config_json(cfg):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **cfg.to_dict(),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": END_ID,
        "pad_token_id": None,
        "torch_dtype": "bfloat16",
    }


def tokenizer_config_json(cfg):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in (BOS, END)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": cfg.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }


# The model is small: without a cut of the tail one unlikely word after another leads it astray.
GENERATION_CONFIG = {
    "bos_token_id": BOS_ID,
    "eos_token_id": END_ID,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "repetition_penalty": 1.05,
}


def check(folder, model):
    """Largest difference to transformers' logits on the exported weights, both in float32."""
    try:
        from transformers import LlamaForCausalLM
    except ImportError:
        return "transformers is not installed: not compared"
    judge = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(5, model.cfg.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (judge(ids).logits - model(ids)).abs().max().item()
    assert difference < 1e-3, difference
    return f"largest difference to transformers' logits: {difference:.1e}"


def export(folder, model):
    """Write all but the tokenizer.json; the weights rounded to BF16."""
    os.makedirs(folder, exist_ok=True)
    tensors = {name: p.detach().bfloat16().cpu().contiguous() for name, p in model.named_parameters()}
    path = os.path.join(folder, "model.safetensors")
    save_file(tensors, path + ".new", metadata={"format": "pt"})
    os.replace(path + ".new", path)
    write_json(folder, "config.json", config_json(model.cfg))
    write_json(folder, "tokenizer_config.json", tokenizer_config_json(model.cfg))
    write_json(folder, "generation_config.json", GENERATION_CONFIG)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", required=True)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    saved = torch.load(args.checkpoint, map_location="cpu")
    model = Llama(Config(**saved.get("config", {})))
    model.load_state_dict(saved["model"])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    export(args.out, model)
    print(f"step {saved['step']}, {saved['tokens']} tokens, {model.parameter_count()} parameters; {check(args.out, model)}")


if __name__ == "__main__":
    main()
