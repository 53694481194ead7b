"""tools/bootstrap with stand-ins for dpkg-query, apt-get, sudo, cargo, nvcc and pip: what it asks for, and when it asks."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

BOOTSTRAP = Path(__file__).resolve().parents[2] / "tools" / "bootstrap"
NOBODY = 65534
DEBIAN = "ID=debian\nVERSION_ID=\"12\"\n"

DPKG_QUERY = """#!/bin/bash
# Every package that is asked for and stands in installed.txt; as the real one: exit code 1 when one is unknown.
for name in "${@:4}"; do
  if grep -qx "$name" "$FAKE/installed.txt"; then echo "installed $name"; else code=1; fi
done
exit "${code:-0}"
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >>"$FAKE/calls.txt"
if [[ -e $FAKE/offline ]]; then echo "E: cannot reach the archive" >&2; exit 100; fi
[[ $1 != install ]] || printf '#!/bin/bash\\necho "cargo 1.96.0"\\n' >"$FAKE/bin/cargo"
chmod -f +x "$FAKE/bin/cargo" || true
"""
NVCC = """#!/bin/bash
if [[ $1 == --version ]]; then echo "Cuda compilation tools, release VERSION, V1.2.3"; exit; fi
echo "nvcc $*" >>"$FAKE/calls.txt"
"""
# python3 -m venv FOLDER, and pip in there: parts of a toolkit, in the folders of the wheels.
PYTHON = """#!/bin/bash
echo "python3 ${*:1:3}" >>"$FAKE/calls.txt"
if [[ $2 == venv ]]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  exit
fi
if [[ -e $FAKE/offline ]]; then echo "ERROR: No matching distribution found" >&2; exit 1; fi
while [[ $1 != --target ]]; do shift; done
echo "pip ${*:3}" >>"$FAKE/calls.txt"
mkdir -p "$2/nvidia/cu13/bin" "$2/nvidia/cu13/lib" "$2/nvidia_cuda_nvcc.dist-info"
cp "$FAKE/nvcc" "$2/nvidia/cu13/bin"
"""
SUDO = """#!/bin/bash
[[ -e $FAKE/no-sudo ]] && exit 1
[[ $1 == -n ]] && shift
echo "sudo $1" >>"$FAKE/calls.txt"
exec "$@"
"""


class Bootstrap(unittest.TestCase):
    def setUp(self):
        self.fake = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.fake)
        (self.fake / "bin").mkdir()
        for name in "bash chmod cp dirname env grep head ln mkdir mv rm sed sort tr true".split():
            (self.fake / "bin" / name).symlink_to(shutil.which(name))
        self.script("dpkg-query", DPKG_QUERY)
        self.script("apt-get", APT_GET)
        self.script("cargo", '#!/bin/bash\necho "cargo 1.96.0 (abc)"\n')
        (self.fake / "os-release").write_text(DEBIAN)
        (self.fake / "calls.txt").touch()
        names = "g++ make cmake ninja-build git ccache pkg-config python3 ca-certificates nlohmann-json3-dev libcli11-dev"
        names += " libspdlog-dev libfmt-dev libgtest-dev libbenchmark-dev libboost1.81-dev libssl-dev prometheus-cpp-dev"
        names += " zlib1g-dev libnats-dev nats-server"
        self.base = names.split()
        self.installed(self.base)

    def script(self, name, text):
        path = self.fake / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def installed(self, names):
        (self.fake / "installed.txt").write_text("".join(f"{name}\n" for name in names))

    def run_it(self, *flags, user=None, **more):
        if user is not None or os.geteuid() != 0:
            for path in [self.fake, *self.fake.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o777)
        environment = {
            "PATH": str(self.fake / "bin"),
            "HOME": str(self.fake / "home"),
            "FAKE": str(self.fake),
            "MILLRACE_OS_RELEASE": str(self.fake / "os-release"),
            **more,
        }
        # The text of the script, since another user may not be able to read the folder that it is in.
        script = str(self.fake / "tree" / "tools" / "bootstrap")
        command = [self.fake / "bin" / "bash", "-c", BOOTSTRAP.read_text(encoding="utf-8"), script, *flags]
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, user=user, cwd="/"
        )
        return run, (self.fake / "calls.txt").read_text().splitlines()

    def test_nothing_to_install(self):
        run, calls = self.run_it()
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "bootstrap: nothing to install\n", ""))
        self.assertEqual(calls, [])

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_only_what_is_missing(self):
        self.installed(set(self.base) - {"cmake", "libfmt-dev"})
        run, calls = self.run_it()
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("bootstrap: installing cmake libfmt-dev\n", run.stdout)
        self.assertEqual(calls, ["apt-get update -q", "apt-get install -y --no-install-recommends cmake libfmt-dev -q"])

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_groups(self):
        run, calls = self.run_it("--lint", "--long", "--conformance")
        self.assertEqual(run.returncode, 0, run.stderr)
        for name in ("clang-format", "clang-tidy", "clang", "libclang-rt-14-dev", "python3-venv"):
            self.assertIn(f" {name} ", calls[-1])

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_rust_where_there_is_none(self):
        (self.fake / "bin" / "cargo").unlink()
        run, calls = self.run_it()
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("cargo-web rustc-web", calls[-1])

    def test_a_cargo_of_ones_own_that_is_too_old(self):
        self.script("cargo", '#!/bin/bash\necho "cargo 1.63.0"\n')
        run, calls = self.run_it()
        self.assertEqual((run.returncode, calls), (1, []))
        self.assertIn("is version 1.63, and Millrace needs 1.87", run.stderr)

    def test_rustup_before_the_path(self):
        self.script("cargo", '#!/bin/bash\necho "cargo 1.63.0"\n')
        own = self.fake / "home" / ".cargo" / "bin"
        own.mkdir(parents=True)
        (own / "cargo").write_text('#!/bin/bash\necho "cargo 1.100.1"\n')
        (own / "cargo").chmod(0o755)
        run, _ = self.run_it()
        self.assertEqual((run.returncode, run.stdout), (0, "bootstrap: nothing to install\n"), run.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_no_network(self):
        self.installed([])
        (self.fake / "offline").touch()
        run, _ = self.run_it()
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr.splitlines()[0], "E: cannot reach the archive")
        self.assertIn("is the network up", run.stderr.splitlines()[1])

    def test_another_system(self):
        (self.fake / "os-release").write_text("ID=fedora\nVERSION_ID=40\n")
        run, calls = self.run_it()
        self.assertEqual((run.returncode, calls), (1, []))
        self.assertIn("this is fedora 40", run.stderr)
        self.assertIn("libgtest-dev", run.stderr)

    def test_unknown_flag(self):
        self.assertEqual(self.run_it("--everything")[0].returncode, 2)

    def cuda(self, path_version=None):
        """Stand-ins for --cuda; a version: that of an nvcc on the PATH. Returns where a toolkit of PyPI comes to stand."""
        (self.fake / "tree" / "tools").mkdir(parents=True)
        self.installed([*self.base, "python3-venv"])
        self.script("python3", PYTHON)
        self.script("../nvcc", NVCC.replace("VERSION", "13.0"))
        if path_version:
            self.script("nvcc", NVCC.replace("VERSION", path_version))
        return self.fake / "tree" / "build" / "cuda"

    @unittest.skipIf(os.path.exists("/usr/local/cuda/bin/nvcc"), "an nvcc where the script looks by itself")
    def test_cuda_from_pypi(self):
        folder = self.cuda()
        run, calls = self.run_it("--cuda")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("taking nvcc and its parts from PyPI into build/cuda\nbootstrap: CUDA is in build/cuda\n", run.stdout)
        self.assertTrue(calls[2].startswith("pip nvidia-cuda-nvcc==13."), calls)
        self.assertIn("nvcc -std=c++20 ", calls[3])
        self.assertTrue((folder / "bin" / "nvcc").is_file())
        self.assertEqual(os.readlink(folder / "lib64"), "lib")
        self.assertEqual([path.name for path in folder.parent.iterdir()], ["cuda"])  # nothing left beside it

        run, again = self.run_it("--cuda")
        self.assertEqual((run.returncode, again), (0, calls))
        (folder / "wheels.txt").write_text("nvidia-cuda-nvcc==12.9.0\n")  # of an earlier version of the script
        run, again = self.run_it("--cuda")
        self.assertEqual((run.returncode, again), (0, 2 * calls))

    @unittest.skipIf(os.path.exists("/usr/local/cuda/bin/nvcc"), "an nvcc where the script looks by itself")
    def test_cuda_without_network(self):
        folder = self.cuda()
        (self.fake / "offline").touch()
        run, _ = self.run_it("--cuda")
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr.splitlines()[0], "ERROR: No matching distribution found")
        self.assertIn("pip could not get the parts of CUDA from PyPI; is the network up?", run.stderr)
        self.assertIn("A CUDA toolkit of your own", run.stderr)
        self.assertEqual(list(folder.parent.iterdir()), [])

    def test_cuda_that_is_there(self):
        folder = self.cuda("12.8")
        run, calls = self.run_it("--cuda")
        self.assertEqual((run.returncode, len(calls)), (0, 1), run.stderr)
        self.assertIn("/bin/nvcc, version 12.8\n", run.stdout)
        self.assertIn("nvcc -std=c++20 ", calls[0])
        self.assertFalse(folder.exists())

    def test_cuda_that_is_too_old(self):
        folder = self.cuda("11.8")
        run, _ = self.run_it("--cuda")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("/bin/nvcc is version 11.8, and Millrace needs 12.0", run.stderr)
        self.assertTrue((folder / "bin" / "nvcc").is_file())

    def test_cuda_that_was_named(self):
        folder = self.cuda("11.8")
        for name, version in ((self.fake / "bin" / "nvcc", "11.8"), ("/nonesuch", "unknown")):
            run, calls = self.run_it("--cuda", CUDACXX=str(name))
            self.assertEqual((run.returncode, calls), (1, []))
            self.assertIn(f"{name} is version {version}, and Millrace needs 12.0\nSet CUDACXX to another", run.stderr)
        self.assertFalse(folder.exists())

    def test_cuda_on_another_system(self):
        folder = self.cuda("11.8")
        (self.fake / "os-release").write_text("ID=fedora\nVERSION_ID=40\n")
        run, _ = self.run_it("--cuda")
        self.assertEqual(run.returncode, 1)
        self.assertIn("this is fedora 40", run.stderr)
        self.assertTrue((folder / "bin" / "nvcc").is_file())

    @unittest.skipUnless(os.geteuid() == 0, "needs root to become somebody else")
    def test_through_sudo(self):
        self.installed(set(self.base) - {"ccache"})
        self.script("sudo", SUDO)
        run, calls = self.run_it(user=NOBODY)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual([call for call in calls if call.startswith("sudo")], ["sudo true", "sudo env", "sudo env"])
        self.assertIn("apt-get install -y --no-install-recommends ccache -q", calls)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to become somebody else")
    def test_neither_root_nor_sudo(self):
        self.installed(set(self.base) - {"ccache"})
        for present in (False, True):  # no sudo, then one that refuses
            if present:
                self.script("sudo", SUDO)
                (self.fake / "no-sudo").touch()
            run, calls = self.run_it(user=NOBODY)
            self.assertEqual((run.returncode, calls), (1, []))
            self.assertIn("  apt-get update && apt-get install -y --no-install-recommends ccache\n", run.stderr)


if __name__ == "__main__":
    unittest.main()
