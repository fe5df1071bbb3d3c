"""Files of the working directory never run in place of the library's imports, in no process that a command starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anytime.cli import main
from anytime.studies.executors.subprocess import train_in_subprocess
from anytime.support.elsewhere import ImportsElsewhere

SHADOWS = ("anytime", "__future__", "difflib", "fnmatch", "inspect", "multiprocessing")
NET = """
from anytime import AnytimeModel

class Net(AnytimeModel):
    '''A user's network.'''

    num_steps = 1

    def __init__(self, num_classes: int = 10, in_channels: int = 3, breadth: int = 1) -> None:
        super().__init__(num_classes, in_channels)
"""


@pytest.fixture(autouse=True)
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory whose modules have the names of others; the environment is as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in SHADOWS:
        Path(f"{name}.py").write_text("from pathlib import Path\nPath('executed').touch()\nraise ImportError('payload')\n")
    for name in ("PYTHONSAFEPATH", "PYTHONPATH"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])


def run_python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_trainings_of_a_study_import_only_what_is_typed() -> None:
    Path("my_net.py").write_text(NET)
    log = Path("log")
    assert train_in_subprocess(["--model", "my_net.Net", "--help"], log) == 0, log.read_text()
    assert "--model.breadth" in log.read_text()
    assert not Path("executed").exists()


@pytest.mark.slow
def test_workers_of_a_cluster_import_nothing_of_the_working_directory() -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    Path("torch.py").write_text(Path("difflib.py").read_text())
    code = """if 1:
        import importlib, sys
        from anytime.support.cluster import connect
        ray = connect(num_cpus=1, include_dashboard=False, object_store_memory=2**27)
        found = ray.remote(lambda: (importlib.import_module("torch").__version__, sys.path))
        print(*ray.get(found.remote()), sep="\\n")
    """
    found = run_python("-P", "-W", "ignore", "-c", code)
    assert not Path("executed").exists()
    assert str(Path.cwd()) not in found


def test_as_a_module_only_the_library_itself_is_found_there() -> None:
    Path("anytime.py").unlink()
    assert run_python("-m", "anytime", "--version").startswith("anytime ")
    assert not Path("executed").exists()


def test_another_module_that_uses_the_library_keeps_its_path() -> None:
    for name in SHADOWS:
        Path(f"{name}.py").unlink()
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("import anytime\n")
    Path("mine/__main__.py").write_text("import sys, os\nprint(sys.path[0] == os.getcwd())\n")
    assert run_python("-m", "mine") == "True\n"


def test_processes_that_the_command_starts_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers under spawn start as the first of these, Lightning's other ranks as the second."""
    monkeypatch.setattr(sys, "argv", ["anytime", "--version"])
    assert main() == 0
    run_python("-c", "from multiprocessing.spawn import spawn_main")
    assert run_python("-m", "anytime", "--version").startswith("anytime ")
    assert not Path("executed").exists()
    assert "PYTHONPATH" not in os.environ


def test_a_script_that_calls_the_command_finds_its_own_modules_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scripts").mkdir()
    Path("scripts/mine.py").write_text("print('mine')\n")
    script = Path("scripts/cli.py").resolve()
    script.write_text("import mine\n")
    monkeypatch.setattr(sys, "argv", [str(script), "--version"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert main() == 0
    assert run_python(str(script)) == "mine\n"


@pytest.mark.parametrize("given", ["", "1"])
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", given)
    monkeypatch.setattr(sys, "argv", ["anytime", "--version"])
    assert main() == 0
    assert os.environ["PYTHONSAFEPATH"] == given
    assert "PYTHONPATH" not in os.environ


def test_a_call_from_python_changes_no_environment() -> None:
    assert main(["--version"]) == 0
    assert "PYTHONSAFEPATH" not in os.environ
    assert ImportsElsewhere not in sys.meta_path


def test_settings_of_figures_there_do_not_count(tmp_path: Path) -> None:
    Path("matplotlibrc").write_text("text.usetex: True\naxes.linewidth: 7\n")
    Path("scripts").mkdir()
    command = "import sys\nsys.argv = ['anytime', '--version']\nfrom anytime.cli import main\nmain()\n"
    Path("scripts/command.py").write_text(
        f"{command}assert 'matplotlib' not in sys.modules\nimport os, matplotlib\n"
        "print([matplotlib.rcParams[key] for key in ('text.usetex', 'axes.linewidth')], os.getcwd())\n"
    )
    assert run_python("scripts/command.py").splitlines()[-1] == f"[False, 0.8] {tmp_path}"


def test_libraries_that_look_there_are_imported_from_elsewhere_in_every_process(tmp_path: Path) -> None:
    Path("matplotlibrc").touch()
    Path("libraries").mkdir()
    for name in ("torch", "matplotlib", "numpy"):
        Path(f"libraries/{name}.py").write_text("import os\nprint(os.getcwd())\n")
    imports = "import sys\nsys.path.insert(0, 'libraries')\nimport anytime, torch, matplotlib, numpy\n"
    assert run_python("-P", "-c", imports).splitlines() == [sys.prefix, sys.prefix, str(tmp_path)]
    Path("matplotlibrc").unlink()
    assert run_python("-P", "-c", imports).splitlines() == [sys.prefix, str(tmp_path), str(tmp_path)]


def test_the_working_directory_is_back_when_such_an_import_fails(tmp_path: Path) -> None:
    Path("libraries").mkdir()
    Path("libraries/torch.py").write_text("raise ValueError('no torch')\n")
    script = "import sys, os\nsys.path.insert(0, 'libraries')\nimport anytime\ntry:\n    import torch\n"
    assert run_python("-P", "-c", f"{script}except ValueError:\n    print(os.getcwd())\n") == f"{tmp_path}\n"
