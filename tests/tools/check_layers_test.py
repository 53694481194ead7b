"""tools/check_layers on small trees, each with one thing wrong."""

import subprocess
import tempfile
import unittest
from pathlib import Path

CHECK_LAYERS = Path(__file__).resolve().parents[2] / "tools" / "check_layers"

# A tree without a violation.
CLEAN = {
    "src/CMakeLists.txt": "add_subdirectory(core)\n",
    "src/core/CMakeLists.txt": "millrace_room(core SOURCES check.cc LIBS fmt::fmt)\n",
    "src/core/check.h": "#include <thread>\n",
    "src/core/check.cc": '#include "core/check.h"\n',
    "src/quant/CMakeLists.txt": "millrace_room(quant SOURCES codec.cc DEPS core)\n",
    "src/quant/codec.cc": '#include "core/check.h"\n',
    "src/quant/codec.h": "",
    "src/kv/CMakeLists.txt": "# the cache\nmillrace_room(kv SOURCES pool.cc\n              DEPS core\n              LIBS fmt::fmt)\n",
    "src/kv/pool.h": '#include "core/check.h"\n',
    "src/kv/pool.cc": '#include "kv/pool.h"\n',
    "src/backend/CMakeLists.txt": "millrace_room(backend SOURCES backend.cc DEPS core quant)\nadd_subdirectory(cpu)\n",
    "src/backend/backend.h": '#include "core/check.h"\n',
    "src/backend/backend.cc": '#include "backend/backend.h"\n#include "quant/codec.h"\n',
    "src/backend/cpu/CMakeLists.txt": "millrace_room(backend_cpu SOURCES cpu.cc DEPS backend core)\n",
    "src/backend/cpu/cpu.h": '#include "backend/backend.h"\n',
    "src/backend/cpu/cpu.cc": '#include "backend/cpu/cpu.h"\n',
    "src/backend/reference/CMakeLists.txt": "millrace_room(backend_reference SOURCES ref.cc DEPS backend)\n",
    "src/backend/reference/ref.h": "",
    "src/backend/reference/ref.cc": '#include "backend/backend.h"\n',
    "src/text/CMakeLists.txt": "millrace_room(text SOURCES text.cc DEPS core)\n",
    "src/text/text.h": "",
    "src/text/text.cc": '#include "text/text.h"\n',
    "src/attention/CMakeLists.txt": "millrace_room(attention SOURCES a.cc DEPS core)\n",
    "src/attention/a.cc": "#include <vector>\n",
    "src/sched/CMakeLists.txt": "millrace_room(sched SOURCES sched.cc DEPS core kv)\n",
    "src/sched/plan.h": '#include "kv/pool.h"\n',
    "src/sched/sched.cc": '#include "sched/plan.h"\n',
    "src/model/CMakeLists.txt": "millrace_room(model SOURCES m.cc families/llama.cc DEPS backend checkpoint)\n",
    "src/model/config.h": '#include "backend/backend.h"\n',
    "src/model/m.cc": '#include "model/config.h"\n#include "model/checkpoint/file.h"\n',
    "src/model/families/llama.cc": '#include "model/config.h"\n#include "model/checkpoint/file.h"\n',
    "src/model/checkpoint/CMakeLists.txt": "millrace_room(checkpoint SOURCES file.cc DEPS core quant)\n",
    "src/model/checkpoint/file.h": '#include "quant/codec.h"\n',
    "src/model/checkpoint/file.cc": '#include "core/check.h"\n',
    "src/runtime/CMakeLists.txt": "millrace_room(runtime SOURCES r.cc DEPS model sched backend backend_cpu text core)\n",
    "src/runtime/r.h": "",
    "src/runtime/r.cc": '#include "backend/cpu/cpu.h"\n#include "model/config.h"\n#include "text/text.h"\n',
    "src/server/CMakeLists.txt": "millrace_room(server SOURCES s.cc DEPS runtime)\n",
    "src/server/s.h": "",
    "src/server/s.cc": '#include "runtime/r.h"\n',
    "src/tune/CMakeLists.txt": "millrace_room(tune SOURCES t.cc DEPS runtime)\n",
    "src/tune/t.cc": '#include "runtime/r.h"\n',
    "src/cli/CMakeLists.txt": "millrace_room(cli SOURCES main.cc DEPS runtime)\n",
    "src/cli/main.cc": '#include "runtime/r.h"\nconst char* home = std::getenv("HOME");\n',
}


class CheckLayers(unittest.TestCase):
    def run_on(self, changes):
        """Exit code and output lines for the clean tree with `changes` (path -> text; None: no such file)."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**CLEAN, **changes}.items():
                if text is not None:
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
            run = subprocess.run([CHECK_LAYERS, folder], capture_output=True, text=True, check=False)
        self.assertEqual(run.stderr, "")
        return run.returncode, run.stdout.splitlines()

    def assert_violation(self, changes, *lines):
        code, output = self.run_on(changes)
        self.assertEqual(output, list(lines))
        self.assertEqual(code, 1)

    def assert_clean(self, changes):
        code, output = self.run_on(changes)
        self.assertEqual(code, 0, output)
        self.assertRegex(output[0], r"^check_layers: \d+ rooms, \d+ files, no violation$")

    def test_a_clean_tree_passes(self):
        self.assert_clean({})

    def test_wrong_usage(self):
        run = subprocess.run([CHECK_LAYERS, "--frobnicate"], capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, 2)
        self.assertIn("ROOT", run.stderr)

    def test_an_include_upwards(self):
        self.assert_violation(
            {"src/kv/pool.cc": '#include "kv/pool.h"\n\n#include "sched/plan.h"\n'},
            "src/kv/pool.cc:3: includes sched/plan.h: sched is above kv",
        )

    def test_every_violation_is_reported(self):
        self.assert_violation(
            {
                "src/core/check.cc": '#include "quant/codec.h"\n#include "kv/pool.h"\n',
                "src/quant/codec.h": '#include "kv/pool.h"\n',
            },
            "src/core/check.cc:1: includes quant/codec.h: quant is above core",
            "src/core/check.cc:2: includes kv/pool.h: kv is above core",
            "src/quant/codec.h:1: includes kv/pool.h: kv is above quant",
        )

    def test_rooms_on_one_line(self):
        side_by_side = {
            "src/sched/sched.cc": ("model/config.h", "sched and model"),
            "src/model/m.cc": ("sched/plan.h", "model and sched"),
            "src/attention/a.cc": ("text/text.h", "attention and text"),
            "src/tune/t.cc": ("server/s.h", "tune and server"),
        }
        for path, (target, names) in side_by_side.items():
            with self.subTest(path):
                self.assert_violation(
                    {path: f'#include "{target}"\n'},
                    f"{path}:1: includes {target}: {names} stand side by side and do not know each other",
                )

    def test_a_backend_whose_kernels_are_not_cpp(self):
        cuda = {
            "src/backend/cuda/CMakeLists.txt": "if(HAVE)\n  millrace_room(backend_cuda SOURCES b.cc kernels/k.cu DEPS backend)\n"
            "else()\n  millrace_room(backend_cuda SOURCES absent.cc DEPS backend)\nendif()\n",
            "src/backend/cuda/b.cc": '#include <cuda_runtime_api.h>\n\n#include "backend/backend.h"\n',
            "src/backend/cuda/kernels/k.cuh": '#include "backend/cuda/kernels/launch.h"\n',
            "src/backend/cuda/kernels/k.cu": '#include <cuda_bf16.h>\n\n#include "backend/cuda/kernels/k.cuh"\n',
        }
        self.assert_clean(cuda)
        for name in ("kernels/k.cu", "kernels/k.cuh", "b.cc"):
            path = f"src/backend/cuda/{name}"
            self.assert_violation(
                {**cuda, path: '#include "backend/cpu/cpu.h"\n#include "kv/pool.h"\n#include "model/config.h"\n'},
                f"{path}:1: includes backend/cpu/cpu.h: backend/cuda and backend/cpu stand side by side and do not know each "
                "other",
                f"{path}:3: includes model/config.h: model is above backend/cuda",
                f"src/backend/cuda/CMakeLists.txt:2: DEPS lacks kv, which {path}:2 includes",
            )

    def test_a_room_inside_a_room_is_as_far_from_the_neighbour_as_its_parent(self):
        self.assert_violation(
            {"src/sched/sched.cc": '#include "model/checkpoint/file.h"\n'},
            "src/sched/sched.cc:1: includes model/checkpoint/file.h: sched and model/checkpoint stand side by side and do "
            "not know each other",
        )

    def test_the_order_inside_a_room(self):
        self.assert_violation(
            {"src/model/checkpoint/file.cc": '#include "model/config.h"\n'},
            "src/model/checkpoint/file.cc:1: includes model/config.h: model is above model/checkpoint",
        )
        self.assert_violation(
            {"src/backend/backend.cc": '#include "backend/cpu/cpu.h"\n'},
            "src/backend/backend.cc:1: includes backend/cpu/cpu.h: backend/cpu is above backend",
        )
        self.assert_violation(
            {"src/backend/cpu/cpu.cc": '#include "backend/reference/ref.h"\n'},
            "src/backend/cpu/cpu.cc:1: includes backend/reference/ref.h: backend/cpu and backend/reference stand side by "
            "side and do not know each other",
        )

    def test_a_concrete_backend_is_known_from_the_runtime_up(self):
        self.assert_violation(
            {"src/model/m.cc": '#include "backend/cpu/cpu.h"\n'},
            "src/model/m.cc:1: includes backend/cpu/cpu.h: a backend is chosen in runtime or above; here only "
            "backend/backend.h is known",
        )

    def test_pure_rooms(self):
        self.assert_violation(
            {"src/sched/plan.h": '#include "backend/backend.h"\n#include <chrono>\n#include <vector>\n'},
            "src/sched/plan.h:1: includes backend/backend.h: sched is pure and may know only core, kv, quant, recipe",
            "src/sched/plan.h:2: sched is pure and may not include <chrono>",
        )
        self.assert_violation(
            {"src/kv/pool.h": "#include <sys/socket.h>\n"},
            "src/kv/pool.h:1: kv is pure and may not include <sys/socket.h>",
        )

    def test_the_environment_below_cli(self):
        self.assert_violation(
            {"src/runtime/r.h": '// getenv(1)\nconst char* a = getenv("A");\n'},
            "src/runtime/r.h:2: runtime reads the environment: only cli may, and passes down what it found",
        )

    def test_an_include_in_angle_brackets_counts(self):
        self.assert_violation(
            {"src/kv/pool.h": "#include <sched/plan.h>\n"},
            "src/kv/pool.h:1: includes sched/plan.h: sched is above kv",
        )
        self.assert_clean({"src/text/text.h": "#include <model/of_a_library.h>\n"})

    def test_a_commented_include_does_not_count(self):
        self.assert_clean({"src/kv/pool.h": '/* of old:\n#include "sched/plan.h"\n*/\n// #include "sched/plan.h"\n'})
        self.assert_violation(
            {"src/kv/pool.h": '/* two\nlines */\n#include "sched/plan.h"\n'},
            "src/kv/pool.h:3: includes sched/plan.h: sched is above kv",
        )

    def test_an_include_that_starts_elsewhere(self):
        self.assert_violation(
            {"src/kv/pool.cc": '#include "pool.h"\n'},
            'src/kv/pool.cc:1: "pool.h" is in no room: includes start at src/, and libraries stand in <>',
        )

    def test_an_unknown_room(self):
        self.assert_violation(
            {"src/attic/a.h": ""},
            'src/attic/a.h:1: "attic" is no room: give it a place in tools/check_layers and docs/architecture.md',
        )

    def test_a_room_that_is_not_built(self):
        self.assert_violation(
            {"src/recipe/recipe.cc": ""}, "src/recipe/recipe.cc:1: room recipe has no millrace_room() in a CMakeLists.txt"
        )
        self.assert_clean({"src/recipe/recipe.h": ""})

    def test_an_undeclared_dependency(self):
        self.assert_violation(
            {"src/kv/pool.h": '#include "core/check.h"\n#include "quant/codec.h"\n'},
            "src/kv/CMakeLists.txt:2: DEPS lacks quant, which src/kv/pool.h:2 includes",
        )
        self.assert_violation(
            {"src/runtime/CMakeLists.txt": "millrace_room(runtime SOURCES r.cc DEPS model sched text core)\n"},
            "src/runtime/CMakeLists.txt:1: DEPS lacks backend_cpu, which src/runtime/r.cc:1 includes",
        )

    def test_files_of_a_folder_without_a_target_belong_to_the_one_above(self):
        self.assert_violation(
            {"src/model/families/llama.cc": '#include "core/check.h"\n'},
            "src/model/CMakeLists.txt:1: DEPS lacks core, which src/model/families/llama.cc:1 includes",
        )

    def test_a_dependency_added_later_counts(self):
        self.assert_clean(
            {
                "src/kv/CMakeLists.txt": "millrace_room(kv SOURCES pool.cc DEPS core)\n"
                "target_link_libraries(millrace_kv PRIVATE millrace_quant)\n",
                "src/kv/pool.cc": '#include "quant/codec.h"\n',
            }
        )

    def test_a_dependency_that_may_not_be(self):
        self.assert_violation(
            {"src/kv/CMakeLists.txt": "millrace_room(kv SOURCES pool.cc DEPS core\n  sched)\n"},
            "src/kv/CMakeLists.txt:2: DEPS names sched: sched is above kv",
        )

    def test_a_dependency_on_nothing(self):
        self.assert_violation(
            {"src/kv/CMakeLists.txt": "millrace_room(kv SOURCES pool.cc DEPS core attic)\n"},
            "src/kv/CMakeLists.txt:1: DEPS names attic, which no CMakeLists.txt declares with millrace_room()",
        )


if __name__ == "__main__":
    unittest.main()
