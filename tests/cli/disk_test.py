"""A disk that fails to give neurons' weights while the program runs: commands end with one line and exit code 1, a
server answers with errors and serves again when the disk does.

The file has no name, but its process has it open: its end is cut off there, and put back."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

BINARY = os.environ["MILLRACE"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "models/millrace-tiny-relu2")
RECIPE = '{"millrace_recipe": 1, "activations": {"method": "hot_cold", "imposed": 0.2}}'
REASON = "weights could not be read from the file in {}: the file has become shorter; check that disk"


class Disk(unittest.TestCase):
    def setUp(self):
        # Beside the binary: a folder for temporary files may lie in memory, which cannot be read around.
        self.folder = tempfile.mkdtemp(dir=pathlib.Path(BINARY).parent)
        self.addCleanup(shutil.rmtree, self.folder)
        self.recipe = os.path.join(self.folder, "recipe.json")
        pathlib.Path(self.recipe).write_text(RECIPE)
        self.whole = b""

    def start(self, command, *arguments):
        process = subprocess.Popen(
            [BINARY, command, MODEL, "--dummy", "--recipe", self.recipe, "--threads", "1", "--weight-memory", "5M",
             "--weight-file", self.folder, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def end():
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def first(self, process):
        """What it prints first, once its weights are where they will be."""
        begin = os.read(process.stdout.fileno(), 1)
        if begin == b"":
            why = process.stderr.read().decode()
            if "this file system" in why:
                self.skipTest(why)
            self.fail(why)
        return begin

    def file(self, process):
        for descriptor in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith(self.folder) and target.endswith("(deleted)"):
                return descriptor
        self.fail("no file")

    def cut(self, process):
        file = self.file(process)
        self.whole = file.read_bytes()
        self.assertGreater(len(self.whole), 1 << 20)
        os.truncate(file, 0)

    def restore(self, process):
        with open(self.file(process), "r+b") as file:
            file.write(self.whole)

    def expect_failure(self, process):
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 1, err)
        lines = err.decode().strip().split("\n")
        self.assertEqual(lines[-1], "millrace: " + REASON.format(self.folder) +
                         ", or name a directory on another one with --weight-file")
        self.assertEqual(len(lines), 1, err)
        return out.decode(errors="replace")

    def test_commands_end_with_a_line(self):
        ids = ",".join(str(7 + 91 * i % 4000) for i in range(1500))
        for arguments in (["run", "-p", "Once upon a time", "-n", "1900", "--ignore-eos"],
                          ["logits", "--ids", ids, "--max-batch-tokens", "16"],
                          ["bench", "--prompt", "64", "--gen", "200", "--batch", "1,2,4", "--no-mixed", "--repeat", "2"]):
            with self.subTest(arguments[0]):
                process = self.start(*arguments)
                self.first(process)
                self.cut(process)
                self.expect_failure(process)

    def test_a_batch_goes_on_from_there(self):
        requests = os.path.join(self.folder, "in.jsonl")
        answers = os.path.join(self.folder, "out.jsonl")
        body = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True}
        pathlib.Path(requests).write_text("".join(
            json.dumps({"custom_id": f"{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n"
            for i in range(40)))
        process = self.start("run", "--batch", requests, "-o", answers, "--max-sequences", "1")
        end = time.monotonic() + 60
        while not (os.path.exists(answers) and os.path.getsize(answers) > 0):
            self.assertLess(time.monotonic(), end)
            if process.poll() is not None:
                self.first(process)
            time.sleep(0.005)
        self.cut(process)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 1)
        self.assertRegex(err.decode().strip().split("\n")[-1],
                         re.escape("millrace: " + REASON.format(self.folder)) +
                         r".*; [1-9]\d* of 40 requests are answered, and the same command goes on from there")
        for line in pathlib.Path(answers).read_text().splitlines():
            self.assertEqual(json.loads(line)["response"]["status_code"], 200, "what was lost is not answered")

    def test_a_server_lives_on(self):
        process = self.start("serve", "--port", "0", "--json", "--access-log", "off")
        begin = self.first(process)
        url = json.loads(begin + process.stdout.readline())["listening"]
        prompt = {"prompt": "Once upon a time there was a mill", "max_tokens": 12, "temperature": 0}

        def ask(path, body=None):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        status, right = ask("/v1/completions", prompt)
        self.assertEqual(status, 200, right)
        self.cut(process)
        reason = REASON.format(self.folder)
        status, text = ask("/v1/completions", prompt)
        self.assertEqual(status, 500)
        error = json.loads(text)["error"]
        self.assertEqual(error["type"], "server_error")
        self.assertTrue(error["message"].startswith(reason), error)
        status, text = ask("/v1/completions", {**prompt, "stream": True})
        self.assertEqual(status, 200, "a stream begins before its first token")
        events = [event[len("data: "):] for event in text.strip().split("\n\n")]
        self.assertEqual(events[-1], "[DONE]")
        self.assertTrue(json.loads(events[-2])["error"]["message"].startswith(reason), text)
        self.assertEqual(ask("/health")[0], 200)

        self.restore(process)
        status, again = ask("/v1/completions", prompt)
        self.assertEqual(status, 200, again)
        self.assertEqual(json.loads(again)["choices"], json.loads(right)["choices"])
        # A step is counted when all have been told of it: those that failed, before the next one began.
        counts = [line for line in ask("/metrics")[1].splitlines()
                  if line.startswith(("millrace:failed_steps_total", 'vllm:request_success_total{finished_reason="error"'))]
        self.assertEqual([line.split()[-1] for line in counts], ["2", "2"], counts)
        self.assertIsNone(process.poll())
        process.terminate()
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)
        logged = [line for line in err.decode().splitlines() if reason in line]
        self.assertEqual(len(logged), 2, err)
        self.assertIn(" error a step of 1 sequences failed: ", logged[0])


if __name__ == "__main__":
    unittest.main()
