"""The package as a whole: how fast it answers, the `fastcnn` command, the version, what a wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import fastcnn
from fastcnn.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


# Speed


@pytest.mark.timing
def test_the_package_is_imported_in_a_tenth_of_a_second():
    # Timed inside, since the interpreter's own start is not the package's; the best, since others may run.
    code = "import time; start = time.perf_counter(); import fastcnn; print(time.perf_counter() - start)"
    assert min(float(python("-c", code).stdout) for _ in range(3)) < 0.1


@pytest.mark.timing
def test_help_answers_in_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = python("-m", "fastcnn.train", "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "--batch-size" in done.stdout
    assert min(seconds) < 1


# The command


def test_ctrl_c_ends_any_command_quietly(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastcnn.cli.commands.models.run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_the_command_alone_prints_its_usage(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: fastcnn COMMAND")
    assert all(re.search(rf"^  {name} +\S", out, re.M) for name in COMMANDS)
    assert err == ""


def test_the_command_prints_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastcnn {fastcnn.__version__}\n"


@pytest.mark.parametrize("command", ["trian", "Train", "zzz"])
def test_an_unknown_command_is_status_2_and_one_line_with_the_nearest(command, capsys, wording):
    assert main([command, "--epochs", "3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastcnn: error: {command}: ")
    wording(err)
    assert err.count("\n") == 1


def test_a_command_gets_the_words_after_it_and_gives_its_status(monkeypatch):
    given: list[str] = []

    def run(argv):
        given.extend(argv)
        return 7

    monkeypatch.setattr("fastcnn.cli.commands.train.run", run)
    assert main(["train", "--arch", "lenet5"]) == 7
    assert given == ["--arch", "lenet5"]


def test_a_mistake_in_the_settings_is_one_line_and_status_2(capsys, tmp_path, wording):
    assert main(["train", "--config", str(tmp_path / "nowhere.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--config" in err
    wording(err)
    assert err.count("\n") == 1


def test_the_package_runs_as_a_module():
    done = python("-m", "fastcnn", "--version")
    assert (done.returncode, done.stdout) == (0, f"fastcnn {fastcnn.__version__}\n")


# The version and the wheel


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", fastcnn.__version__)
    written = [ROOT / "pyproject.toml", *(ROOT / "fastcnn").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    quoted = re.compile(rf"""['"]{re.escape(fastcnn.__version__)}['"]""")
    holders = [path.relative_to(ROOT).as_posix() for path in written if quoted.search(path.read_text())]
    assert holders == ["fastcnn/version.py"]
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in the wheel."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    info = f"fastcnn-{fastcnn.__version__}.dist-info"
    # A top-level `kernels` would overwrite the distribution of that name.
    assert {name.split("/")[0] for name in wheel} == {"fastcnn", "fastcnn_kernels", info}
    sources = [*(ROOT / "fastcnn").rglob("*.py"), *(ROOT / "kernels" / "fastcnn_kernels").rglob("*.py")]
    expected = {path.relative_to(ROOT).as_posix().removeprefix("kernels/") for path in sources}
    assert expected <= set(wheel)
    assert {"fastcnn/py.typed", "fastcnn_kernels/py.typed", "fastcnn/analysis/networks.txt"} <= set(wheel)


def test_the_wheel_holds_the_license(wheel):
    assert f"fastcnn-{fastcnn.__version__}.dist-info/licenses/LICENSE" in wheel
