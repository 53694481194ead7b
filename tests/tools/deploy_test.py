"""The units of deploy/systemd as systemd reads them, and what deploy/issue_credentials refuses."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


@unittest.skipIf(shutil.which("systemd-analyze") is None, "this machine has no systemd-analyze")
class Units(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.units = []
        for unit in UNITS:  # programs that this machine need not have
            text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
            self.units.append(pathlib.Path(self.folder.name, unit.name))
            self.units[-1].write_text(text)

    def test_systemd_understands_them(self):
        self.assertEqual(len(self.units), 3)
        for unit in self.units:
            run = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
                                 capture_output=True, text=True)
            self.assertEqual((run.returncode, run.stderr), (0, ""), unit.name)

    def test_they_are_hardened(self):
        """By systemd's own measure, of which 10 (here: 100) is a unit without any option."""
        for unit in self.units:
            run = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", unit],
                                 capture_output=True, text=True)
            if "unrecognized option" in run.stderr:
                self.skipTest("this systemd-analyze is too old to look at files")
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_flags_in_them_exist(self):
        for unit in UNITS:
            for line in re.findall(r"(?m)^ExecStart=\S*millrace (\w+) (.*)$", unit.read_text()):
                flags = (ROOT / "src" / "cli" / "cluster_flags.cc").read_text()
                for flag in re.findall(r"(--[a-z-]+) ", line[1]):
                    self.assertIn(f'"{flag}"', flags, unit.name)


class Credentials(unittest.TestCase):
    def run_it(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run([ROOT / "deploy" / "issue_credentials", pathlib.Path(folder, "keys"), *arguments],
                                 capture_output=True, text=True)
        return run.returncode, run.stderr.strip().splitlines()[-1:]

    def test_what_is_wrong_is_said(self):
        for arguments, expected in {
            ("--node", "One"): "One: expected 1 to 32 of a-z, 0-9 and -",
            ("--node", "a", "--gateway", "a"): "a name stands there twice",
            ("--node", "a", "--site", "b=a"): "a name stands there twice",
            ("--site", "desk"): "desk: a site needs nodes, as in desk=one,two",
            ("--site", "desk=one,"): ": expected 1 to 32 of a-z, 0-9 and -",
            ("--tls-cert", "x"): "--tls-cert and --tls-key belong together",
        }.items():
            with self.subTest(arguments=arguments):
                code, last = self.run_it(*arguments)
                self.assertEqual(code, 2)
                self.assertTrue(last[0].endswith(expected), last)


if __name__ == "__main__":
    unittest.main()
