"""`millrace eval --tasks` as a user meets it: its document, its cache, its picture, its errors."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

BINARY = os.environ["MILLRACE"]
MODEL = os.fsencode(pathlib.Path(__file__).parents[2] / "models" / "millrace-tiny")
INT4 = '{"millrace_recipe": 1, "weights": {"default": "int4"}}'


class Tasks(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)
        self.cache = self.path / "cache"
        self.write("recipe.json", INT4)
        (self.path / "pairs").mkdir()
        for name, verbs in (("be", ("was", "were")), ("have", ("has", "have"))):
            lines = [json.dumps({"sentence_good": f"{who} {verbs[0]} a {what}.", "sentence_bad": f"{who} {verbs[1]} a {what}."})
                     for who in ("Tom", "Anne", "She") for what in ("king", "sailor", "good man", "child")]
            self.write(f"pairs/{name}.jsonl", "\n".join(lines))

    def write(self, name, text):
        (self.path / name).write_text(text)
        return str(self.path / name)

    def eval(self, *arguments):
        return self.bare_eval("--reference-cache", str(self.cache), *arguments)

    def bare_eval(self, *arguments, environment=None):
        return subprocess.run([BINARY, "eval", *arguments], capture_output=True, text=True, timeout=120, env=environment)

    def copied_model(self, name):
        return shutil.copytree(MODEL, os.path.join(os.fsencode(self.path), name))

    def document(self, *arguments):
        result = self.eval(*arguments, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_figures_of_a_recipe_stand_beside_those_of_the_model_as_stored(self):
        tasks = ("--tasks", f"blimp:{self.path / 'pairs'}", "--tasks", "key_value:100", "--limit", "10")
        alone = self.document(*tasks)["tasks"]
        (stored,) = self.cache.iterdir()
        written = stored.stat().st_mtime_ns
        figures = self.document(*tasks, "--recipe", str(self.path / "recipe.json"))["tasks"]
        self.assertEqual([f["task"] for f in figures], ["blimp", "blimp/be", "blimp/have", "key_value", "key_value/100"])
        self.assertEqual([f["documents"] for f in figures], [20, 10, 10, 10, 10])
        for figure, before in zip(figures, alone):
            self.assertEqual(figure["reference"], before["value"])
            self.assertEqual((before["reference"], before["difference"]), (before["value"], 0))
            self.assertAlmostEqual(figure["difference"], figure["value"] - before["value"])
            for value, interval in (("value", "ci95"), ("difference", "difference_ci95")):
                low, high = figure[interval]
                self.assertTrue(low <= figure[value] <= high, figure)
        self.assertEqual(figures[0]["baseline"], 0.5)
        self.assertEqual(list(self.cache.iterdir()), [stored])  # a run that has ended leaves nothing of its own
        self.assertEqual(stored.stat().st_mtime_ns, written)  # and the model as stored ran once

    def test_an_interrupted_run_goes_on(self):
        tasks = ("--tasks", f"blimp:{self.path / 'pairs'}")
        whole = self.document(*tasks)
        (stored,) = self.cache.iterdir()
        lines = stored.read_text().splitlines(keepends=True)
        self.assertEqual(len(lines), 1 + 24)
        stored.write_text("".join(lines[:9]) + lines[9][:11])
        self.assertEqual(self.document(*tasks), whole)
        self.assertEqual(stored.read_text().splitlines(keepends=True), lines)

    def test_text_and_tasks_share_a_document_and_a_picture(self):
        text = self.write("text.txt", "The old man went down to the sea, and the sea was calm and grey. " * 30)
        picture = self.path / "p.svg"
        document = self.document("--text", text, "--window", "128", "--tasks", "needle:100", "--limit", "4",
                                 "--recipe", str(self.path / "recipe.json"), "--plot", str(picture))
        self.assertGreater(document["kl_mean"], 0)
        self.assertEqual(document["tasks"][0]["task"], "needle")
        drawn = picture.read_text()
        self.assertTrue(xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg"))
        for part in ("KL divergence, nats", "needle/100 exact_match (n = 4)", "as stored", "baseline"):
            self.assertIn(part, drawn)

    def test_questions_are_answered_in_words(self):
        questions = self.write("q.jsonl", '{"prompt": "Once upon a", "answer": "little", "max_tokens": 4}\n')
        result = self.eval("--tasks", f"generate:{questions}")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("generate contains: 100 % (no interval: one document) over 1 documents", result.stdout)

    def test_an_answer_that_the_context_would_cut_is_refused(self):
        questions = self.write("q.jsonl", '{"prompt": "Once upon a", "answer": "little"}\n')
        for flags in (("--max-model-len", "40"), ("--kv-memory", "64KiB")):
            result = self.eval("--tasks", f"generate:{questions}", *flags)
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn("q.jsonl line 1", result.stderr)
            self.assertIn("max_tokens", result.stderr)
        self.assertEqual(self.eval("--tasks", f"generate:{questions}").returncode, 0)

    def test_another_end_of_sequence_is_another_answer(self):
        model = self.copied_model(b"model")
        questions = self.write("q.jsonl", '{"prompt": "Once upon a", "answer": "time", "max_tokens": 8}\n')
        before = self.document(model, "--tasks", f"generate:{questions}")["tasks"]
        config = pathlib.Path(os.fsdecode(model)) / "generation_config.json"
        ids = json.loads(subprocess.run([BINARY, "run", model, "-p", "Once upon a", "-n", "1", "--temperature", "0",
                                         "--json"], capture_output=True, check=True).stdout)["token_ids"]
        config.write_text(json.dumps({"eos_token_id": ids}))
        after = self.document(model, "--tasks", f"generate:{questions}")["tasks"]
        self.assertEqual((before[0]["metric"], after[0]["value"]), ("exact_match", 0))
        self.assertEqual(len(list(self.cache.iterdir())), 2)  # files of another model, too

    def test_names_are_bytes(self):
        model = self.copied_model(b"mod\xffel")
        pairs = os.fsencode(self.path / "pairs") + b"/b\xfe.jsonl"
        shutil.copy(self.path / "pairs" / "be.jsonl", pairs)
        picture = self.path / "p.svg"
        result = subprocess.run([BINARY, "eval", model, "--reference-cache", str(self.cache), "--tasks", b"blimp:" + pairs,
                                 "--json", "--plot", str(picture)], capture_output=True, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout.decode())["tasks"][1]["task"], "blimp/b\ufffd")
        xml.etree.ElementTree.fromstring(picture.read_bytes())

    def test_files_may_be_gzip(self):
        for name in ("be", "have"):
            text = (self.path / "pairs" / f"{name}.jsonl").read_bytes()
            (self.path / "none").mkdir(exist_ok=True)
            (self.path / "none" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text))
        plain = self.document("--tasks", f"blimp:{self.path / 'pairs'}")
        self.assertEqual(self.document("--tasks", f"blimp:{self.path / 'none'}"), plain)
        line = b'{"goal": "Open a door", "sol1": "Push it.", "sol2": "Eat it."}\n'
        (self.path / "p.jsonl.gz").write_bytes(gzip.compress(line))
        self.write("p-labels.lst", "0\n")
        self.assertEqual(len(self.document("--tasks", f"piqa:{self.path / 'p.jsonl.gz'}")["tasks"]), 2)

    def test_without_a_reference_nothing_is_kept_unless_a_folder_is_named(self):
        bare = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
        flags = ("--no-reference", "--tasks", "key_value:100", "--limit", "2")
        result = self.bare_eval(*flags, environment=bare)
        self.assertEqual(result.returncode, 0, result.stderr)
        result = self.bare_eval(*flags, environment=bare | {"HOME": str(self.path / "home")})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertFalse((self.path / "home").exists())
        self.assertEqual(self.eval(*flags).returncode, 0)
        self.assertEqual(len(list(self.cache.iterdir())), 1)

    def test_a_run_that_fails_leaves_no_picture(self):
        there = self.write("there.svg", "before")
        for picture in (there, str(self.path / "new.svg")):
            self.assertEqual(self.eval("--tasks", "lambada:no/such.jsonl", "--plot", picture).returncode, 1)
        self.assertFalse((self.path / "new.svg").exists())
        self.assertEqual(pathlib.Path(there).read_text(), "before")

    def test_what_is_wrong_is_said_in_a_line(self):
        for part, *arguments in (("no/such.jsonl", "--tasks", "lambada:no/such.jsonl"),
                                 ("line 1", "--tasks", "lambada:" + self.write("l.jsonl", "words")),
                                 ("has no .jsonl", "--tasks", f"blimp:{self.cache.parent / 'none'}"),
                                 ("may have 2048", "--tasks", "key_value:4096"),
                                 ("may have 128", "--tasks", "key_value:256", "--max-model-len", "128"),
                                 ("--plot", "--tasks", "key_value:100", "--plot", "/no/such/folder/p.svg")):
            (self.path / "none").mkdir(exist_ok=True)
            result = self.eval(*arguments)
            self.assertEqual(result.returncode, 1, arguments)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn(part, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_wrong_usage_is_exit_code_2(self):
        for part, *arguments in (("--text or --tasks", ), ("needs a file", "--tasks", "blimp"), ("no task", "--tasks", "x:y"),
                                 (".svg", "--tasks", "key_value", "--plot", "p.png")):
            result = self.eval(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(part, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
