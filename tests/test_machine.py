"""Questions to the operating system, tested for systems other than this one."""

import ast
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dpo_kit import machine
from dpo_kit.profiles import ROOT
from dpo_kit.workbook.cells import describe_machine

# of the standard library, what Windows lacks
POSIX_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses"}
POSIX_OF_OS = {"sysconf", "pread", "pwrite", "fork", "getuid", "geteuid", "getloadavg", "uname", "nice", "statvfs",
               "killpg", "setsid", "mkfifo", "wait3", "wait4"}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "dpo_kit").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_needs_what_windows_lacks(path):
    """An import inside `try` is a choice; any other one ends the program there, and so does a function of `os`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {child for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in guarded:
            assert not {alias.name for alias in node.names} & POSIX_MODULES, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in POSIX_MODULES, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in POSIX_OF_OS, f"line {node.lineno}: os.{node.attr}"


def test_the_peak_of_memory_is_in_megabytes_whatever_the_system_counts_in(monkeypatch):
    def used(number):
        return SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=number))

    monkeypatch.setitem(sys.modules, "torch", None)  # without what a GPU adds
    monkeypatch.setattr(machine, "resource", used(300 * 2**10))
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_memory_mb() == 300
    monkeypatch.setattr(machine, "resource", used(300 * 2**20))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_memory_mb() == 300
    monkeypatch.setattr(machine, "resource", None)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=300 * 2**20))
    monkeypatch.setattr(machine.psutil, "Process", lambda: windows)
    assert machine.peak_memory_mb() == 300


def test_the_package_works_where_there_is_no_module_called_resource():
    code = "import sys, psutil; sys.modules['resource'] = None; "  # psutil needs it here, and not on Windows
    code += "import dpo_kit.workspace, dpo_kit.cli, dpo_kit.machine as m; print(m.resource)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_the_memory_of_the_machine_is_said():
    assert re.fullmatch(r"[1-9]\d* GB", describe_machine()["memory"])


def test_the_peak_of_this_process_is_plausible():
    assert 10 < machine.peak_memory_mb() < 100_000
