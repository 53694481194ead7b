"""64 requests at a server whose recipe combines lossy methods: the answers are the same one by one and all at once, with
and without a prompt's beginning that others have computed."""

import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import tempfile
import unittest
import urllib.request

BINARY = os.environ["MILLRACE"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMON = """{"millrace_recipe": 1, "weights": {"default": "int4"}, "kv": {"format": "fp8_e4m3"},
 "activations": {"method": "down", "thresholds": {"*": 0.02}}, "attention": {"prefill": {%s, "dense_layers": 1},
 "decode": {"select": "quest", "tokens": 256, "dense_layers": 1}%s}}"""
XATTENTION = '"select": "xattention", "mass": 0.8'
HYPER = '"select": "hyper", "block": 64, "samples": 64, "chunk": 128, "min_tokens": 256'


def requests():
    """Prompts of some hundred tokens; every second one begins with one of three texts."""
    text = "".join((ROOT / "docs" / name).read_text() for name in ("architecture.md", "evaluation.md", "cuda.md"))
    dice = random.Random(4)
    common = [text[i * 3000:i * 3000 + 1500] for i in range(3)]
    for i in range(64):
        begin = 10000 + i * 200
        rest = text[begin:begin + dice.randint(200, 1000)]
        yield {"prompt": (common[i % 3] if i % 2 == 0 else "") + rest, "max_tokens": dice.randint(4, 40),
               "temperature": 0.8 if i % 3 else 0, "seed": i}


class ServeIdentity(unittest.TestCase):
    def serve(self, recipe):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "recipe.json"
        path.write_text(recipe)
        process = subprocess.Popen([BINARY, "serve", "--recipe", str(path), "--port", "0", "--json", "--access-log", "off"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def end():
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return json.loads(process.stdout.readline())["listening"]

    def ask(self, url, request):
        body = json.dumps(request).encode()
        with urllib.request.urlopen(urllib.request.Request(
                url + "/v1/completions", body, {"Content-Type": "application/json"}), timeout=300) as answer:
            reply = json.load(answer)
        cached = (reply["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        choice = reply["choices"][0]
        return (choice["text"], choice["finish_reason"], reply["usage"]["completion_tokens"]), cached

    def check(self, recipe):
        url = self.serve(recipe)
        asked = list(requests())
        alone = [self.ask(url, request)[0] for request in asked]
        for seed in range(2):
            order = list(range(len(asked)))
            random.Random(seed).shuffle(order)
            with concurrent.futures.ThreadPoolExecutor(len(asked)) as together:
                answers = dict(zip(order, together.map(lambda i: self.ask(url, asked[i]), order)))
            self.assertEqual([answers[i][0] for i in range(len(asked))], alone)
            self.assertGreater(sum(cached for _, cached in answers.values()), 10000)

    def test_blocks_pages_and_thresholds(self):
        self.check(COMMON % (XATTENTION, ""))

    def test_blocks_pages_thresholds_and_heavy_hitters(self):
        self.check(COMMON % (XATTENTION, ', "keep": {"select": "heavy_hitters", "tokens": 256, "last_tokens": 160}'))

    def test_hyper_and_recent(self):
        self.check(COMMON % (HYPER, ', "keep": {"select": "recent", "tokens": 256}'))


if __name__ == "__main__":
    unittest.main()
