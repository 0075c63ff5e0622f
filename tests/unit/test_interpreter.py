"""Our modules run in interpreters that import nothing from the current folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bert_serving.server import interpreter
from bert_serving.server.interpreter import module_command

MODULE = "bert_serving.server.cgroups"


@pytest.fixture(params=["its own option", "a launcher"])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command for a module, as it is here and as it is for Python 3.10."""
    if request.param == "a launcher":
        monkeypatch.setattr(interpreter, "_HAS_SAFE_PATH", False)
    elif not hasattr(sys.flags, "safe_path"):
        pytest.skip("this Python has no such option")
    return module_command(MODULE, "an argument")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_module_gets_its_arguments(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import sys\nif __name__ == '__main__': print(sys.argv[1:])")
    told = ["told" if part == MODULE else part for part in command]
    done = run(["env", f"PYTHONPATH={tmp_path}", *told], Path("/"))
    assert (done.stdout, done.stderr) == ("['an argument']\n", "")


def test_what_lies_in_the_current_folder_is_not_imported(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bert_serving").mkdir()
    (tmp_path / "bert_serving" / "__init__.py").write_text("raise SystemExit('planted')")
    assert "planted" in run([sys.executable, "-m", MODULE], tmp_path).stderr
    done = run(command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
