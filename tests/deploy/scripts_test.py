"""Runs the scripts of deploy/, tests/ and .ci/ with stand-ins for apt, sudo, cmake and ctest.

Nothing is installed or built: each stand-in appends its name and arguments to a log, and the
scripts run from a copy in a folder with a space in its name. ROOT is the repository.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(sys.argv.pop(1))

# name: body of a bash script; $LOG, $STATE and the test's own variables are in its environment.
STANDINS = {
    # Nothing is installed until $STATE/installed is there.
    "dpkg-query": """test -e "$STATE/installed" || exit 1
        for package in "${@:4}"; do case $package in
          "$FOREIGN_ONLY") echo "$package:arm64 installed" ;;
          *:arm64) echo "$package installed" ;;
          lib*) echo "$package:amd64 installed" ;;
          *) echo "$package installed" ;;
        esac; done""",
    "dpkg": 'test "$1" != --print-architecture || echo amd64',
    "apt-get": """case " $* " in
        *" update "*) touch "$STATE/updated" ;;
        *) echo "dlstatus:1:50.0:Retrieving"
           test "${NETWORK:-1}" = 1 || { echo "E: Could not resolve 'mirror'"; exit 100; }
           test "${STALE:-0}" = 0 || test -e "$STATE/updated" || { echo "E: 404"; exit 100; }
           echo "pmstatus:g++:90.0:Installing"; touch "$STATE/installed" ;;
        esac""",
    "id": 'test "$1" = -u && echo "${USER_ID:-0}" || echo somebody',
    "setarch": "exit 1",
    "cmake": """test "$1" = --build && test "$2" = "${BROKEN_BUILD:-}" && exit 1
        test "$1" = --build || exit 0
        mkdir -p "$2/bin"; printf '#!/bin/sh\\nprintf "%%s|" "$PWD" "$@"\\n' >"$2/bin/sketchkv"
        chmod +x "$2/bin/sketchkv" """,
    "ctest": """case "$*" in
        *"${BROKEN_SUITE:-nothing}"*) echo "50% tests passed, 1 tests failed out of 2"; exit 8 ;;
        *) echo "1/2 Test #1: a"; echo "100% tests passed, 0 tests failed out of 2" ;;
        esac""",
}
PRIVILEGE = {"sudo": 'echo "$SUDO_SAYS" >&2; test -z "$SUDO_SAYS" || exit 1; '
                     'test "$1" != -n || shift; exec "$@"'}


class ScriptsTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.repo = os.path.join(self.dir, "a clone")
        self.log = os.path.join(self.dir, "log")
        self.state = os.path.join(self.dir, "state")
        self.bin = os.path.join(self.dir, "bin")
        for folder in (self.state, self.bin, os.path.join(self.repo, "tests")):
            os.makedirs(folder)
        for folder in ("deploy", ".ci"):
            shutil.copytree(os.path.join(ROOT, folder), os.path.join(self.repo, folder))
        shutil.copy(os.path.join(ROOT, "tests/run.sh"), os.path.join(self.repo, "tests"))
        # Only what the scripts use of the real system, so that a sudo or ccache here stays out.
        for tool in ("bash", "sh", "env", "awk", "grep", "tail", "tee", "cat", "mktemp", "mkdir",
                     "rm", "dirname", "nproc", "touch", "chmod", "true"):
            os.symlink(shutil.which(tool), os.path.join(self.bin, tool))
        for name, body in STANDINS.items():
            self.stand_in(name, body)
        self.os_release("debian", "12")

    def stand_in(self, name, body):
        path = os.path.join(self.bin, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/bash\necho "{name} $*" >>"$LOG"\n{body}\n')
        os.chmod(path, 0o755)

    def os_release(self, system, version):
        with open(os.path.join(self.state, "os-release"), "w", encoding="utf-8") as file:
            file.write(f"ID={system}\nVERSION_ID='{version}'\n")

    def run_script(self, script, *arguments, cwd=None, **variables):
        env = {"PATH": self.bin, "LOG": self.log, "STATE": self.state, "SUDO_SAYS": "",
               "OS_RELEASE": os.path.join(self.state, "os-release"), **variables}
        done = subprocess.run(["bash", script, *arguments], cwd=cwd or self.repo, env=env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
        return done.returncode, done.stdout

    def calls(self, name):
        with open(self.log, encoding="utf-8") as file:
            return [line.strip() for line in file if line.startswith(name + " ")]

    def install(self, **variables):
        return self.run_script("deploy/install_packages.sh", "tests", **variables)

    def mark_installed(self):
        with open(os.path.join(self.state, "installed"), "w", encoding="utf-8"):
            pass

    def test_install_shows_progress_and_names_every_package(self):
        code, output = self.install()
        self.assertEqual(code, 0, output)
        self.assertIn("installing 90 %", output)
        install = [call for call in self.calls("apt-get") if " install " in call]
        self.assertEqual(len(install), 1)
        for package in ("cmake", "libgrpc++-dev", "python3-grpcio"):
            self.assertIn(f" {package}", install[0])

    def test_build_group_leaves_test_packages_out(self):
        code, output = self.run_script("deploy/install_packages.sh", "build")
        self.assertEqual(code, 0, output)
        self.assertNotIn("python3", "".join(self.calls("apt-get")))

    def test_arm64_group_adds_the_architecture_and_its_libraries(self):
        code, output = self.run_script("deploy/install_packages.sh", "arm64", USER_ID="1000")
        self.assertEqual(code, 1, output)
        self.stand_in("sudo", PRIVILEGE["sudo"])
        code, output = self.run_script("deploy/install_packages.sh", "arm64", USER_ID="1000")
        self.assertEqual(code, 0, output)
        self.assertIn("sudo -n dpkg --add-architecture arm64", self.calls("sudo"))
        self.assertIn(" libabsl-dev:arm64 ", "".join(self.calls("apt-get")))
        self.assertIn(" cmake ", "".join(self.calls("apt-get")))

    def test_a_foreign_package_is_not_taken_for_the_machines_own(self):
        self.mark_installed()
        code, output = self.install(FOREIGN_ONLY="libabsl-dev")
        self.assertIn("to install: libabsl-dev\n", output)

    def test_everything_installed_asks_neither_apt_nor_sudo(self):
        self.mark_installed()
        self.stand_in("sudo", "exit 1")
        code, output = self.install(USER_ID="1000")
        self.assertEqual(code, 0, output)
        self.assertEqual(self.calls("apt-get") + self.calls("sudo"), [])

    def test_stale_package_lists_are_fetched_again(self):
        code, output = self.install(STALE="1")
        self.assertEqual(code, 0, output)
        self.assertTrue([call for call in self.calls("apt-get") if call.endswith(" update")])

    def test_no_network_is_named(self):
        code, output = self.install(NETWORK="0")
        self.assertEqual(code, 1)
        self.assertIn("is there a network", output)

    def test_other_system_is_refused_by_name(self):
        self.os_release("ubuntu", "24.04")
        code, output = self.install()
        self.assertEqual(code, 1)
        self.assertIn("ubuntu 24.04", output)
        self.os_release("debian", "13")
        self.assertIn("debian 13", self.install()[1])

    def test_user_without_sudo_or_refused_by_it(self):
        code, output = self.install(USER_ID="1000")
        self.assertEqual(code, 1)
        self.assertIn("root or sudo; user somebody has neither", output)
        self.stand_in("sudo", PRIVILEGE["sudo"])
        code, output = self.install(USER_ID="1000", SUDO_SAYS="a password is required")
        self.assertEqual(code, 1)
        self.assertIn("sudo refuses user somebody", output)
        code, output = self.install(USER_ID="1000")
        self.assertEqual(code, 0, output)

    def test_quickstart_passes_arguments_and_keeps_the_callers_folder(self):
        self.mark_installed()
        elsewhere = os.path.join(self.dir, "some where")
        os.makedirs(elsewhere)
        code, output = self.run_script("../a clone/deploy/quickstart.sh", "--text", "my file.txt",
                                       cwd=elsewhere)
        self.assertEqual(code, 0, output)
        self.assertTrue(output.endswith(f"{elsewhere}|demo|--text|my file.txt|"), output)
        builds = [call for call in self.calls("cmake") if "--build" in call]
        self.assertEqual(len(builds), 1)
        self.assertIn("a clone/build/release --target sketchkvd sketchkv_cli", builds[0])

    def test_quickstart_stops_where_the_build_fails(self):
        self.mark_installed()
        code, output = self.run_script("deploy/quickstart.sh",
                                       BROKEN_BUILD=os.path.join(self.repo, "build/release"))
        self.assertEqual(code, 1)
        self.assertIn("the build failed", output.splitlines()[-1])

    def test_ci_runs_every_suite_and_closes_with_ctests_summary(self):
        self.mark_installed()
        code, output = self.run_script(".ci/run", CI="true")
        self.assertEqual(code, 0, output)
        self.assertEqual(len(self.calls("ctest")), 4)
        self.assertEqual(output.splitlines()[-1], "100% tests passed, 0 tests failed out of 2")

    def test_a_failed_suite_stops_no_other_and_is_named_last(self):
        self.mark_installed()
        code, output = self.run_script("tests/run.sh", BROKEN_SUITE="build/asan")
        self.assertEqual(code, 1)
        self.assertEqual(len(self.calls("ctest")), 4)
        self.assertEqual(output.splitlines()[-1], "FAILED: asan")

    def test_a_failed_build_fails_its_suite_only(self):
        self.mark_installed()
        code, output = self.run_script("tests/run.sh",
                                       BROKEN_BUILD=os.path.join(self.repo, "build/release"))
        self.assertEqual(code, 1)
        self.assertEqual(len(self.calls("ctest")), 3)
        self.assertIn("release: the build failed", output)
        self.assertEqual(output.splitlines()[-1], "FAILED: release")

    def test_fast_runs_release_only_with_the_callers_filter(self):
        self.mark_installed()
        code, output = self.run_script("tests/run.sh", "--fast", "-R", "Pool")
        self.assertEqual(code, 0, output)
        self.assertEqual(len(self.calls("ctest")), 1)
        self.assertTrue(self.calls("ctest")[0].endswith("-R Pool"))


if __name__ == "__main__":
    unittest.main()
