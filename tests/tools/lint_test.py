"""The rules of tools/lint that are its own: file sizes."""

import importlib.machinery
import importlib.util
import tempfile
import unittest
from pathlib import Path

LINT = Path(__file__).resolve().parents[2] / "tools" / "lint"


def load_lint():
    loader = importlib.machinery.SourceFileLoader("lint", str(LINT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("lint", loader))
    loader.exec_module(module)
    return module


class Sizes(unittest.TestCase):
    def setUp(self):
        self.lint = load_lint()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.lint.ROOT = Path(folder.name)

    def problems(self, name, lines, top=""):
        path = self.lint.ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(top + "\n" * lines, encoding="utf-8")
        return self.lint.check_sizes([Path(name)], None)

    def test_limits(self):
        for name, limit in {
            "src/kv/a.cc": 500,
            "src/backend/backend.h": 500,
            "src/backend/cpu/a.cc": 500,
            "src/backend/cpu/kernels/a.h": 800,
            "src/backend/cuda/a.cc": 500,
            "src/backend/cuda/kernels/a.cu": 800,
            "src/backend/cuda/kernels/a.cuh": 800,
            "src/backend/reference/a.cc": 800,
            "tests/kv/a_test.cc": 500,
            "src/text/rust/src/lib.rs": 500,
        }.items():
            with self.subTest(name):
                self.assertEqual(self.problems(name, limit), [])
                (problem,) = self.problems(name, limit + 1)
                self.assertTrue(problem.startswith(f"{name}:1: {limit + 1} lines; above {limit}"), problem)

    def test_a_reason_near_the_top(self):
        reason = "// Over 500 lines because the table is one.\n"
        self.assertEqual(self.problems("src/kv/a.cc", 600, reason), [])
        self.assertEqual(len(self.problems("src/kv/a.cc", 600, "\n" * 30 + reason)), 1)
        self.assertEqual(len(self.problems("src/kv/a.cc", 600, "// Over 500 lines because\n")), 1)

    def test_other_files_have_no_limit(self):
        self.assertEqual(self.problems("tests/fixtures/a.json", 9000), [])


if __name__ == "__main__":
    unittest.main()
