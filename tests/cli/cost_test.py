"""`millrace cost`: what it prints for what was measured, and what it says of numbers that cannot be."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

BINARY = os.environ["MILLRACE"]
TALK = ("--users", "1e9", "--tokens-per-day", "7000", "--api-price", "30")
TARIFFS = ("tariff,utc_offset_h," + ",".join(f"h{hour:02}" for hour in range(24)) + "\n"
           + "home,1," + ",".join(["0.1"] * 6 + ["0.3"] * 18) + "\n")


def run(*arguments):
    return subprocess.run([BINARY, "cost", *map(str, arguments)], capture_output=True, text=True, timeout=60)


class Cost(unittest.TestCase):
    def document(self, *arguments):
        done = run(*arguments, "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def file(self, text):
        handle, path = tempfile.mkstemp()
        self.addCleanup(os.remove, path)
        os.close(handle)
        pathlib.Path(path).write_text(text)
        return path

    def test_the_talks_estimate(self):
        population = self.document(*TALK)["population"]
        self.assertEqual(population["api"], {"usd_per_day": 210e6, "usd_per_year": 76.65e9})
        self.assertIsNone(population["own"])
        done = run(*TALK)
        self.assertEqual(done.stdout, "1e+09 users x 7000 tokens a day\n"
                                      "  the API        $210.0 M a day      $76.7 B a year\n")

    def test_what_bench_measures_is_priced(self):
        measured = subprocess.run([BINARY, "bench", "--prompt", "32", "--gen", "8", "--repeat", "1", "--batch", "1,2",
                                   "--no-mixed", "--threads", "1", "--json"], capture_output=True, text=True, check=True)
        tests = {(test["test"], test["batch"]): test["tokens_per_second"] for test in json.loads(measured.stdout)["tests"]}
        machine = ("--usd-per-hour", 0.36, "--watts", 100, "--idle-watts", 20, "--utilisation", 0.5, "--pue", 1.5)
        report = self.document("--from", self.file(measured.stdout), "--batch", 1, *machine, "--usd-per-kwh", 0.2)
        (costs,) = report["costs"]
        self.assertEqual(report["speed"]["answer_tokens_per_second"], tests["tg8", 1])
        dollars_a_second = (0.36 + 0.09 * 0.2) / 1800  # 60 W on average, 90 at the meter
        self.assertAlmostEqual(costs["prompt"]["usd_per_million"], 1e6 * dollars_a_second / tests["pp32", 1])
        self.assertAlmostEqual(costs["answer"]["usd_per_million"], 1e6 * dollars_a_second / tests["tg8", 1])
        self.assertAlmostEqual(costs["answer"]["joules_per_token"], 180 / tests["tg8", 1])
        self.assertIsNone(costs["mixed"])

    def test_a_load_by_the_hours_of_a_tariff(self):
        load = self.file(json.dumps({"total_tokens_per_second": 1000, "input_tokens": 900, "output_tokens": 100}))
        report = self.document("--from", load, "--usd-per-hour", 0.36, "--watts", 1000, "--tariffs", self.file(TARIFFS),
                               "--tariff", "home", "--users", 86400, "--tokens-per-day", 1000, "--api-price", "1,2")
        (all_day, cheapest) = report["costs"]
        self.assertEqual((all_day["hours"], cheapest["hours"]), ("all hours", "6 cheapest hours"))
        self.assertAlmostEqual(all_day["usd_per_kwh"], 0.25)
        self.assertAlmostEqual(cheapest["usd_per_kwh"], 0.1)
        self.assertAlmostEqual(all_day["mixed"]["usd_per_million"], (0.36 + 0.25) / 3.6)
        self.assertAlmostEqual(cheapest["mixed"]["usd_per_million"], (0.36 + 0.1) / 3.6)
        self.assertAlmostEqual(all_day["api_ratio"], 1.1 * 3.6 / 0.61)
        own = report["population"]["own"]
        self.assertEqual(own["machines"], 1)
        self.assertAlmostEqual(own["usd_per_day"], 24 * 0.61)
        self.assertAlmostEqual(own["gwh_per_year"], 8.76e-3)
        self.assertAlmostEqual(report["population"]["api"]["usd_per_day"], 86.4 * 1.1)

    def test_both_kinds_apart_for_a_population(self):
        speeds = ("--prompt-speed", 1000, "--answer-speed", 100, "--usd-per-hour", 3.6)
        done = run(*speeds, "--users", 10, "--tokens-per-day", 10)
        self.assertEqual(done.stderr, "millrace: a population's tokens are of prompts and answers: give both speeds, and "
                                      "--prompt-share\n")
        (costs,) = self.document(*speeds, "--prompt-share", 0.5)["costs"]
        self.assertAlmostEqual(costs["mixed"]["usd_per_million"], 5.5)

    def test_what_is_wrong_is_said(self):
        speed = ("--speed", 10)
        for arguments, message in (
                ((), "nothing to price: give --from, or --speed, or --prompt-speed and --answer-speed; or --users, "
                     "--tokens-per-day and --api-price"),
                (("--speed", 0), "the speed of the load, in tokens a second, is 0, expected 1e-06 to 1000000000000"),
                ((*speed, "--pue", 0.5), "the PUE is 0.5, expected 1 to 10"),
                ((*speed, "--utilisation", 0), "the utilisation is 0, expected 1e-06 to 1"),
                ((*speed, "--watts", "nan"), "the busy machine's power, in watts, is nan, expected 0 to 10000000"),
                ((*speed, "--usd-per-kwh", 101), "--usd-per-kwh is 101, expected up to 100"),
                ((*speed, "--api-price", "cheap"), "an API's price is cheap, expected $ per million tokens up to 1000000: "
                                                   "one, or of prompts and answers as in 3,15"),
                ((*speed, "--api-price", "3,15"), "--api-price 3,15 has two prices: give --prompt-share"),
                (("--from", "/nowhere"), "/nowhere: cannot be read")):
            with self.subTest(arguments=arguments):
                done = run(*arguments)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", f"millrace: {message}\n"))
        path = self.file("{}")
        self.assertEqual(run("--from", path).stderr,
                         f"millrace: {path}: no document of millrace bench --json or bench-serve --json\n")
        tariffs = self.file(TARIFFS)
        self.assertEqual(run(*speed, "--tariffs", tariffs, "--tariff", "work").stderr,
                         f"millrace: {tariffs} has no tariff work; it has home\n")
        for wrong in (("--speed", "fast"), ("--users", "5"), ("--tariff", "home"), ("--batch", "1")):
            self.assertEqual(run(*wrong).returncode, 2, wrong)


if __name__ == "__main__":
    unittest.main()
