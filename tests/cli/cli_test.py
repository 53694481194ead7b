"""The command line as a user meets it: the binary itself, its output, its errors and exit codes."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import tempfile
import time
import unittest

BINARY = os.environ["MILLRACE"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURE = str(ROOT / "tests/fixtures/logits/llama2")


def millrace(*arguments, **options):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=120, **options)


def document(*arguments):
    result = millrace(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


class Usage(unittest.TestCase):
    def test_help_and_version_are_no_errors(self):
        for flag in ("--help", "--version"):
            self.assertEqual(millrace(flag).returncode, 0)
        self.assertIn("run", millrace("--help").stdout)

    def test_wrong_usage_is_exit_code_2(self):
        for arguments in ([], ["frobnicate"], ["run"], ["run", "-p", "x", "--ids", "1"], ["run", "--chat", "--json"], ["run", "--nope"], ["run", "-n", "0"], ["logits"],
                          ["run", "--threads", "-3"], ["run", "--compute-dtype", "int3"]):
            result = millrace(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertTrue(result.stderr or result.stdout, arguments)

    def failure(self, *arguments):
        """A failed command says why in one line on standard error, and nothing on standard output."""
        result = millrace(*arguments)
        self.assertEqual(result.returncode, 1, (arguments, result.stdout, result.stderr))
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("millrace: "), result.stderr)
        self.assertEqual(result.stdout, "")
        return result.stderr

    def test_failures_are_one_line_and_exit_code_1(self):
        self.assertIn("/no/such/model", self.failure("run", "/no/such/model", "-p", "x"))
        self.assertIn("1,2,x", self.failure("logits", FIXTURE, "--dummy", "--ids", "1,2,x"))
        self.assertIn("999999", self.failure("logits", FIXTURE, "--dummy", "--ids", "999999"))
        self.assertIn("top_p", self.failure("run", FIXTURE, "--dummy", "--ids", "1", "--top-p", "7"))
        self.assertIn("tokenizer", self.failure("run", FIXTURE, "--dummy", "-p", "text"))
        self.assertIn("size", self.failure("run", FIXTURE, "--dummy", "--ids", "1", "--kv-memory", "lots"))

    def test_cuda_runs_or_says_why_not(self):
        result = subprocess.run([BINARY, "run", FIXTURE, "--dummy", "--ids", "1", "-n", "1", "--device", "cuda"],
                                capture_output=True, text=True, timeout=60)
        if result.returncode != 0:
            self.assertEqual(result.returncode, 1)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn("CUDA", result.stderr)

    def test_stop_strings_do_not_swallow_the_model(self):
        self.assertIn("/no/such/model", self.failure("run", "-p", "x", "--stop", "END", "/no/such/model"))

    def test_output_that_is_lost_is_a_failure(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([BINARY, "logits", FIXTURE, "--dummy", "--ids", "1"], stdout=full,
                                    stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)

    def test_an_unknown_architecture_is_named_with_what_is_supported(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "config.json")
            path.write_text('{"architectures": ["ZebraForCausalLM"], "model_type": "zebra"}')
            message = self.failure("inspect", folder, "--dummy")
        self.assertIn("ZebraForCausalLM", message)
        self.assertIn("LlamaForCausalLM", message)

    def test_what_does_not_fit_is_refused_with_the_figures(self):
        ids = ",".join(["1"] * 200)
        message = self.failure("run", FIXTURE, "--dummy", "--ids", ids, "--kv-memory", "64K")
        self.assertIn("200", message)
        message = self.failure("run", FIXTURE, "--dummy", "--ids", "1", "--weight-memory", "1K")
        self.assertIn("--weight-memory", message)

    def test_a_recipe_never_half_applies(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "recipe.json")
            path.write_text('{"millrace_recipe": 1}')
            self.assertEqual(millrace("run", FIXTURE, "--dummy", "--ids", "1", "-n", "1", "--recipe", path).returncode, 0)
            for text, complaint in (
                ('{"millrace_recipe": 1, "sparsity": {}}', '"sparsity" is not supported'),
                ('{"millrace_recipe": 1, "attention": {"encode": {}}}', '"encode" is not supported'),
                ('{"millrace_recipe": 1, "attention": {"prefill": {"mass": 0.9}}}', '"select" must be there'),
                ('{"millrace_recipe": 1, "kv": {"format": "int7"}}', '"int7" is not supported'),
                ('{"millrace_recipe": 1, "weights": {"default": "int7"}}', '"int7" is not supported'),
                ('{"millrace_recipe": 1, "weights": {"*.no_such_proj": "int8"}}', "matches no linear layer"),
                ('{"millrace_recipe": 1, "weights": {"*.q_proj": "int8"}}', "need the same format"),
                ('{"millrace_recipe": 2}', "is not 1"),
            ):
                path.write_text(text)
                self.assertIn(complaint, self.failure("run", FIXTURE, "--dummy", "--ids", "1", "--recipe", path))
            path.write_text('{"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 512}}}')
            self.assertIn('"attention" is not of a checkpoint',
                          self.failure("quantize", ROOT / "models/millrace-tiny", "-o", pathlib.Path(folder, "out"), "--recipe", path))

    def test_answers_may_select_what_they_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "recipe.json")
            arguments = ("run", "-p", "To be, or not to be: that is the question. " * 20, "-n", "40", "--ignore-eos",
                         "--temperature", "0")
            dense = document(*arguments)["token_ids"]
            answers = {}
            for tokens in (112, 4096):
                path.write_text(json.dumps({"millrace_recipe": 1, "attention": {"decode": {
                    "select": "quest", "tokens": tokens, "dense_layers": 0}}}))
                answers[tokens] = document(*arguments, "--recipe", path)["token_ids"]
            self.assertEqual(answers[4096], dense)  # a budget that holds everything
            self.assertNotEqual(answers[112], dense)
            self.assertEqual(answers[112][0], dense[0])  # the prompt says it, and reads everything

    def test_a_recipe_changes_weights_and_memory(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "recipe.json")
            whole = document("inspect")["memory"]["weights_bytes"]
            logits = document("logits", "--ids", "1,2,3")["logits"]
            for name, most in (("int8", 0.6), ("int4", 0.55), ("int4.g32.sym", 0.55)):
                path.write_text(json.dumps({"millrace_recipe": 1, "weights": {"default": name}}))
                self.assertLess(document("inspect", "--recipe", path)["memory"]["weights_bytes"], most * whole)
                rounded = document("logits", "--ids", "1,2,3", "--recipe", path)["logits"]
                errors = [abs(a - b) for x, y in zip(logits, rounded) for a, b in zip(x, y)]
                spread = max(logits[-1]) - min(logits[-1])
                self.assertGreater(max(errors), 0)
                self.assertLess(sum(errors) / len(errors), 0.1 * spread)


class Contract(unittest.TestCase):
    def test_run(self):
        answer = document("run", "-p", "Once upon a time", "-n", "12", "--seed", "5", "--ignore-eos")
        self.assertEqual(len(answer["token_ids"]), 12)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertGreater(answer["prompt_tokens"], 1)
        self.assertGreater(answer["ttft_s"], 0)
        self.assertGreater(answer["tpot_s"], 0)
        self.assertTrue(answer["text"])

    def test_a_seed_makes_sampling_repeatable_and_seeds_differ(self):
        def text(seed):
            return document("run", "-p", "The", "-n", "24", "--temperature", "1", "--seed", str(seed))["text"]

        self.assertEqual(text(1), text(1))
        self.assertGreater(len({text(seed) for seed in range(4)}), 1)

    def test_stop_strings_end_the_text_before_them(self):
        whole = document("run", "-p", "Once upon a time", "-n", "60", "--temperature", "0", "--ignore-eos")["text"]
        stop = whole[20:25]
        answer = document("run", "-p", "Once upon a time", "-n", "60", "--temperature", "0", "--ignore-eos",
                          "--stop", stop)
        self.assertEqual(answer["text"], whole[: whole.index(stop)])
        self.assertEqual(answer["finish_reason"], "stop")

    def test_the_stream_and_the_document_hold_the_same_text(self):
        arguments = ("run", "-p", "The king", "-n", "50", "--seed", "9")
        streamed = millrace(*arguments)
        self.assertEqual(streamed.returncode, 0)
        self.assertEqual(streamed.stdout, "The king" + document(*arguments)["text"] + "\n")
        self.assertIn("TTFT", streamed.stderr)
        self.assertIn("tokens/s", streamed.stderr)

    def test_logits_and_threads(self):
        one = document("logits", FIXTURE, "--dummy", "--ids", "1,2,3", "--threads", "1")["logits"]
        two = document("logits", FIXTURE, "--dummy", "--ids", "1,2,3", "--threads", "2")["logits"]
        self.assertEqual(len(one), 3)
        self.assertEqual(one, two)

    def test_tokenize(self):
        ids = document("tokenize", "-p", "Once upon a time")["ids"]
        self.assertTrue(ids and all(isinstance(i, int) for i in ids))

    def test_inspect(self):
        model = document("inspect")
        self.assertEqual(model["architecture"], "LlamaForCausalLM")
        self.assertGreater(model["parameters"], 1_000_000)
        self.assertGreater(model["memory"]["kv_bytes_per_token"], 0)
        self.assertIn("model.embed_tokens.weight", [tensor["name"] for tensor in model["tensors"]])

    def test_bench(self):
        result = document("bench", "--prompt", "32", "--gen", "8", "--batch", "1,2", "--depth", "0,40", "--repeat", "1")
        tests = result["tests"]
        self.assertEqual([(t["test"], t["batch"], t["depth"]) for t in tests],
                         [("pp32", 1, 0), ("tg8", 1, 0), ("tg8", 2, 0), ("pp32", 1, 40), ("tg8", 1, 40), ("tg8", 2, 40),
                          ("mixed", 2, 0)])
        for test in tests:
            for figure in ("tokens_per_second", "gb_per_second", "gop_per_second", "fraction_of_limit"):
                self.assertGreater(test[figure], 0)
        for limit in ("read_gb_s", "int8_gop_s", "bf16_gflop_s", "f32_gflop_s"):
            self.assertGreater(result["machine"][limit], 0)

    def test_bench_profile_adds_up(self):
        (test,) = document("bench", "--prompt", "64", "--gen", "0", "--repeat", "1", "--profile")["tests"]
        seconds = sum(op["seconds"] for op in test["profile"])
        self.assertAlmostEqual(seconds * test["tokens_per_second"], 64, delta=0.01)
        self.assertIn("attend", [op["op"] for op in test["profile"]])
        self.assertEqual(test["profile"][-1]["op"], "outside operations")

    def test_eval(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("The old man went down to the sea. " * 40)
            text.flush()
            result = document("eval", "--text", text.name, "--window", "64")
        self.assertGreater(result["perplexity"], 1)
        low, high = result["ci95"]["perplexity"]
        self.assertLessEqual(low, result["perplexity"])
        self.assertGreaterEqual(high, result["perplexity"])
        self.assertEqual((result["kl_mean"], result["top1_agreement"]), (0, 1))  # a model as stored is its own judge

    def test_eval_of_a_recipe(self):
        with tempfile.TemporaryDirectory() as folder:
            text, recipe, cache = (pathlib.Path(folder, name) for name in ("t.txt", "r.json", "cache"))
            text.write_text("The old man went down to the sea, and the sea was calm and grey. " * 30)
            recipe.write_text('{"millrace_recipe": 1, "weights": {"default": "int4"}}')
            flags = ("eval", "--text", str(text), "--recipe", str(recipe), "--window", "128", "--reference-cache", str(cache))
            first = document(*flags)
            (reference,) = cache.iterdir()
            written = reference.stat().st_mtime_ns
            again = document(*flags)
            self.assertEqual(reference.stat().st_mtime_ns, written)  # the model as stored ran once
            alone = document("eval", "--text", str(text), "--window", "128")
            without = document(*flags, "--no-reference")
        self.assertEqual(first, again)
        self.assertGreater(first["kl_mean"], 0)
        self.assertGreater(first["kl_p99"], first["kl_mean"])
        self.assertLess(first["top1_agreement"], 1)
        self.assertAlmostEqual(first["reference_perplexity"], alone["perplexity"], delta=1e-3 * alone["perplexity"])
        self.assertAlmostEqual(first["perplexity_ratio"], first["perplexity"] / first["reference_perplexity"], places=6)
        for figure in ("perplexity", "perplexity_ratio", "kl_mean", "top1_agreement"):
            low, high = first["ci95"][figure]
            self.assertTrue(low <= first[figure] <= high, figure)
        self.assertNotIn("kl_mean", without)
        self.assertEqual(without["perplexity"], first["perplexity"])

    def test_calibrated_thresholds_keep_the_share_that_was_asked_for(self):
        """Calibrated on one text, judged on another."""
        story = ROOT / "README.md"
        other = ROOT / "CONTRIBUTING.md"
        with tempfile.TemporaryDirectory() as folder:
            recipe, profile = (pathlib.Path(folder, name) for name in ("r.json", "p.json"))
            written = document("calibrate", "--text", str(story), "--output", str(profile))
            self.assertEqual((written["inputs"], written["gates"]), (21, 5))  # four of each layer, and the head's

            def kept(method, density, text=other):
                recipe.write_text(json.dumps({"millrace_recipe": 1, "activations": {
                    "method": method, "profile": "p.json", "density": density}}))  # beside the recipe
                result = document("eval", "--text", str(text), "--recipe", str(recipe), "--window", "256",
                                  "--reference-cache", folder)
                return result["kept_inputs"], result["kl_mean"]

            for method in ("teal", "down", "cats"):
                self.assertAlmostEqual(kept(method, 0.6, story)[0], 0.6, delta=0.01, msg=method)
                divergences = [kept(method, density)[1] for density in (1, 0.9, 0.6, 0.3)]
                self.assertEqual(divergences, sorted(divergences), method)
                self.assertLess(divergences[0], 1e-6)  # the reference is kept in 16 bits
                self.assertGreater(divergences[1], divergences[0])

            profile.write_text(profile.read_text().replace(written["model"], "0123456789abcdef"))
            failed = millrace("eval", "--text", str(other), "--recipe", str(recipe))
            self.assertEqual(failed.returncode, 1)
            self.assertIn("is of another model", failed.stderr)

    def test_profiles_say_what_attention_and_keys_are_like(self):
        text = ROOT / "README.md"
        with tempfile.TemporaryDirectory() as folder:
            recipe, profile = (pathlib.Path(folder, name) for name in ("r.json", "p.json"))
            flags = ("calibrate", "--text", str(text), "--tokens", "1024", "--output", str(profile))
            written = document(*flags)
            sections = json.loads(profile.read_text())
            self.assertEqual([layer["layer"] for layer in written["attention"]], list(range(5)))
            for layer, whole in zip(written["attention"], sections["attention"]["layers"]):
                self.assertAlmostEqual(layer["sinks"] + layer["recent"] + layer["between"], 1, delta=1e-6)
                self.assertGreaterEqual(layer["pages"], 1)
                self.assertLessEqual(layer["pages"], 32)  # of a window
                self.assertAlmostEqual(layer["pages"], sum(whole["pages"]) / len(whole["pages"]))
                self.assertEqual(layer["rows"], 2 * 23)  # of each window every seventeenth from 128 on
            for layer in written["kv"]:
                self.assertGreaterEqual(layer["keys"]["largest_ratio"], 1)
                self.assertGreater(layer["values"]["largest"], 0)
            table = millrace(*flags)
            self.assertIn("what attention gives", table.stdout)
            self.assertIn("the largest key and value", table.stdout)

            def judged(**more):
                recipe.write_text(json.dumps({"millrace_recipe": 1, "attention": {"decode": {
                    "select": "quest", "tokens": 160, "dense_layers": 0, **more}}}))
                return document("eval", "--text", str(text), "--recipe", str(recipe), "--window", "512",
                                "--reference-cache", folder)

            by_layer, alike = judged(profile="p.json"), judged()
            self.assertNotEqual(by_layer["kl_mean"], alike["kl_mean"])
            self.assertAlmostEqual(by_layer["read_kv"], alike["read_kv"], delta=0.05)
            profile.write_text(profile.read_text().replace(written["model"], "0123456789abcdef"))
            judged()
            recipe.write_text(recipe.read_text().replace('"select"', '"profile": "p.json", "select"'))
            failed = millrace("eval", "--text", str(text), "--recipe", str(recipe))
            self.assertEqual(failed.returncode, 1)
            self.assertIn("is of another model", failed.stderr)

    def test_thresholds_for_a_target_lose_no_more(self):
        text = ROOT / "docs" / "architecture.md"
        with tempfile.TemporaryDirectory() as folder:
            recipe, base = (pathlib.Path(folder, name) for name in ("r.json", "base.json"))
            base.write_text('{"millrace_recipe": 1, "weights": {"default": "int8"}}')
            flags = ("calibrate", "--text", str(text), "--tokens", "2600", "--target-kl", "0.002", "-o", str(recipe))
            found = document(*flags, "--method", "down", "--recipe", str(base))
            low, high = found["ci95"]["kl_mean"]
            self.assertLess(low, found["kl_mean"])
            self.assertLessEqual(high, 0.002)
            self.assertGreater(high, 0.0015, "more could be left out")
            self.assertEqual(len(found["layers"]), 5)
            for layer in found["layers"]:
                self.assertAlmostEqual(layer["kept"], layer["wanted"], delta=0.06)
            self.assertEqual(sorted(p.name for p in pathlib.Path(folder).iterdir()), ["base.json", "r.json"])

            written = json.loads(recipe.read_text())
            self.assertEqual(written["weights"], {"default": "int8"})
            self.assertEqual(written["activations"]["method"], "down")
            for layer in found["layers"]:
                self.assertEqual(written["activations"]["thresholds"].get(layer["layers"][0]), layer["threshold"])
            # What the recipe does is what was measured.
            judged = document("eval", "--text", str(text), "--recipe", str(recipe), "--window", "512", "--no-reference")
            self.assertAlmostEqual(judged["kept_inputs"], found["kept_inputs"], delta=0.03)

            uniform = document(*flags, "--method", "cats", "--uniform")
            self.assertEqual(len({layer["wanted"] for layer in uniform["layers"]}), 1)
            for wrong, code in ((("--method", "down", "--recipe", str(recipe)), 1), (("--method", "best"), 2),
                                (("--method", "down", "--predictor", "4"), 2), ((), 2)):
                self.assertEqual(millrace(*flags, *wrong).returncode, code, wrong)

    def test_calibrating_without_a_text_is_for_made_up_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            failed = millrace("calibrate", "--output", folder + "/p.json")
            self.assertEqual(failed.returncode, 1)
            self.assertIn("--text", failed.stderr)
            drawn = document("calibrate", "--dummy", "--tokens", "600", "--output", folder + "/p.json")
            self.assertEqual(drawn["tokens"], 600)

    def test_one_window_has_no_interval(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("The old man went down to the sea.")
            text.flush()
            self.assertIsNone(document("eval", "--text", text.name)["ci95"]["perplexity"])


class Chat(unittest.TestCase):
    def test_what_is_not_utf8_does_not_end_a_conversation(self):
        result = subprocess.run([BINARY, "run", "--chat", "-n", "4", "--ignore-eos"], input=b"\xff\xfe hi\nand?\n",
                                capture_output=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count(b"4 generated"), 2)

    def test_answers_one_prompt_as_json(self):
        answer = document("run", "--chat", "-p", "Hello", "-n", "8")
        self.assertLessEqual(len(answer["token_ids"]), 8)

    def test_a_conversation_keeps_its_history(self):
        result = millrace("run", "--chat", "-n", "8", "--ignore-eos", input="Hello there\nAnd then?\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        prompts = [int(line.split()[0][1:]) for line in result.stderr.splitlines() if "prompt tokens" in line]
        self.assertEqual(len(prompts), 2)
        self.assertGreater(prompts[1], prompts[0] + 8)

    def test_interrupt_stops_the_answer_and_not_the_program(self):
        parent, child = pty.openpty()
        process = subprocess.Popen([BINARY, "run", "--chat", "-n", "1900", "--ignore-eos"], stdin=child, stdout=child,
                                   stderr=child, start_new_session=True, close_fds=True)
        os.close(child)
        try:
            self.read_until(parent, b"> ")
            os.write(parent, b"Tell me a long story\n")
            self.read_until(parent, b"Tell me a long story")
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            self.assertIn(b"cancelled", self.read_until(parent, b"> "))
            self.assertIsNone(process.poll(), "the program goes on")
            os.write(parent, b"\x04")  # Ctrl-D ends it
            self.assertEqual(process.wait(timeout=20), 0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(parent)

    def read_until(self, terminal, wanted, limit_s=60):
        seen, end = b"", time.monotonic() + limit_s
        while wanted not in seen:
            self.assertLess(time.monotonic(), end, seen)
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                self.fail(f"the program ended: {seen!r}")
        return seen


if __name__ == "__main__":
    unittest.main()
