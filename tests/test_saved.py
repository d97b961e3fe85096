"""A checkpoint and a config.yaml of version 0.1.0, before the modules were moved, work as they did then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import fastcnn
from fastcnn.config import Config, to_plain
from fastcnn.config.parse import parse
from fastcnn.runtime.environment import machine_name

SAVED = Path(__file__).parent / "saved"
ARCH = "small_network:small"
MADE_ON = ("2.14.1", "amd-epyc-avx512-1-threads")
"""torch and the machine that made them: there the bits must be equal."""


@pytest.fixture
def expected() -> dict:
    """Weights after the rest of the run, and logits of the checkpoint, as computed then."""
    return torch.load(SAVED / "expected.pt", weights_only=True)


def assert_equal(values: torch.Tensor, expected: torch.Tensor) -> None:
    machine = machine_name(torch.device("cpu"))
    same = (torch.__version__.partition("+")[0], machine) == MADE_ON
    tolerance = {"rtol": 0, "atol": 0} if same else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(values, expected, **tolerance)


def test_a_run_of_before_resumes_in_the_middle_of_an_epoch(train, demo, one_core, expected):
    Path("run").mkdir()
    shutil.copy(SAVED / "last.pt", "run")
    assert train("--resume", "run/last.pt", "--data", demo, "--arch", ARCH) == 0
    content = torch.load("run/last.pt", weights_only=True)
    assert (content["step"], content["epoch"]) == (20, 2)
    assert content["weights"].keys() == expected["weights"].keys()
    for name, weights in content["weights"].items():
        assert_equal(weights, expected["weights"][name])


def test_a_checkpoint_of_before_predicts(expected):
    network = fastcnn.load(SAVED / "last.pt", arch=ARCH)
    images = torch.linspace(-1, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32)
    with torch.no_grad():
        assert_equal(network(images), expected["logits"])


def test_a_config_of_before_is_read_in_full():
    config = parse(["--config", str(SAVED / "config.yaml"), "--arch", ARCH])
    saved = torch.load(SAVED / "last.pt", weights_only=True)["config"]
    now = to_plain(config)
    assert saved.keys() <= now.keys()
    different = {name for name in saved if saved[name] != now[name]}
    assert different == {"config"}
    assert now["opt"] == "nesterov" != Config().opt
