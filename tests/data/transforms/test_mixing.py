"""Mixup and CutMix are what was published, in the training graph, and the same after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import Mixing, mix_of, mixed, plain
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.step import train_step
from fastcnn.models import Outputs
from fastcnn.tasks.classification import Classification
from runs import QUICK, interrupt_after, records
from training import CPU, MEAN, STD, TASK, batches, forbid_waiting, loader_of, losses, state_of

MIXUP, CUTMIX, BOTH = Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)


def draws(settings: Mixing, count: int = 2000, size: int = 32) -> np.ndarray:
    return np.stack([mix_of(settings, seed=0, step=step, rank=0, part=0, size=size) for step in range(count)])


def pixels(count: int = 4, size: int = 9) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH, Mixing(mixup=0.8, prob=0.5)])
def test_pixels_are_mixed_one_by_one_as_the_box_and_the_weights_say(settings):
    x = pixels()
    for step in range(20):
        mix = mix_of(settings, seed=0, step=step, rank=0, part=0, size=9)
        top, bottom, left, right, inner, outer, weight = mix.tolist()
        expected, shares = torch.empty_like(x), []
        for row in range(9):
            for column in range(9):
                own = inner if top <= row < bottom and left <= column < right else outer
                shares.append(own)
                for i in range(4):
                    expected[i, :, row, column] = (
                        own * x[i, :, row, column] + (1 - own) * x[3 - i, :, row, column]
                    )
        torch.testing.assert_close(mixed(x, torch.from_numpy(mix)), expected)
        assert weight == pytest.approx(np.mean(shares), rel=1e-6)


def test_an_image_that_is_not_mixed_keeps_its_bits():
    x = pixels()
    assert torch.equal(mixed(x, torch.from_numpy(plain())), x)


def draw_by_hand(monkeypatch: pytest.MonkeyPatch, share: float, row: int, column: int) -> None:
    """What both we and torchvision draw from now on."""
    rng = SimpleNamespace(
        random=lambda count: np.zeros(count),
        beta=lambda a, b: share,
        integers=lambda high, size: np.array([row, column]),
    )
    centre = iter([column, row])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: rng)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(centre)]))


PLACES = [(0.3, 0, 0), (0.3, 4, 8), (0.9, 5, 2), (0.0, 8, 3), (1.0, 1, 1), (0.55, 7, 7)]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize(("share", "row", "column"), PLACES)
def test_torchvision_mixes_the_same_pixels_and_targets(kind, share, row, column, monkeypatch):
    x, targets = pixels(count=2), torch.tensor([1, 3])  # of two, the one before is the one at the other end
    theirs = v2.MixUp(num_classes=5) if kind == "mixup" else v2.CutMix(num_classes=5)
    theirs._dist = SimpleNamespace(sample=lambda _: torch.tensor(share))
    draw_by_hand(monkeypatch, share, row, column)
    mix = torch.from_numpy(
        mix_of(MIXUP if kind == "mixup" else CUTMIX, seed=0, step=0, rank=0, part=0, size=9)
    )
    expected, soft = theirs(x, targets)
    torch.testing.assert_close(mixed(x, mix), expected)
    logits = torch.randn(2, 5)
    batch = Batch(x, targets, torch.ones(2, dtype=torch.bool), mix)
    loss = Classification(5, label_smoothing=0.1).loss(logits, batch, train=True)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, soft, label_smoothing=0.1).item(), rel=1e-5)


def test_lambda_has_the_mean_and_the_deviation_of_its_beta_distribution():
    weights = draws(MIXUP)[:, -1]
    deviation = math.sqrt(1 / (4 * (2 * 0.8 + 1)))
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.std() == pytest.approx(deviation, rel=0.05)
    assert (draws(Mixing(mixup=0.1))[:, -1].clip(0.1, 0.9) != draws(Mixing(mixup=0.1))[:, -1]).mean() > 0.7


def test_boxes_have_their_area_where_the_border_does_not_cut_them_and_are_anywhere():
    drawn = draws(CUTMIX, size=64)
    height, width = drawn[:, 1] - drawn[:, 0], drawn[:, 3] - drawn[:, 2]
    whole = (drawn[:, 0] > 0) & (drawn[:, 1] < 64) & (drawn[:, 2] > 0) & (drawn[:, 3] < 64)
    assert (height[whole] == width[whole]).all()
    np.testing.assert_allclose(drawn[:, -1], 1 - height * width / 64**2, rtol=1e-6)
    middles = drawn[whole & (height < 16), 0] + height[whole & (height < 16)] / 2
    assert middles.min() < 12
    assert middles.max() > 52
    assert 0.5 < drawn[:, -1].mean() < 0.8  # a uniform share, and less where the border cuts


def test_with_both_a_batch_gets_either_and_only_the_share_of_batches_that_is_told():
    drawn = draws(BOTH)
    assert (drawn[:, 4] != drawn[:, 5]).mean() == pytest.approx(0.5, abs=0.04)
    drawn = draws(Mixing(mixup=0.8, cutmix=1.0, prob=0.25))
    assert (drawn == plain()).all(axis=1).mean() == pytest.approx(0.75, abs=0.04)


def test_what_is_drawn_depends_on_seed_step_rank_and_batch_alone():
    told = {"seed": 1, "step": 2, "rank": 3, "part": 4}
    first = mix_of(BOTH, **told, size=32)
    assert (mix_of(BOTH, **told, size=32) == first).all()
    for name in told:
        assert (mix_of(BOTH, **{**told, name: 9}, size=32) != first).any(), name


class Seen(Classification):
    """Keeps how each batch was mixed."""

    def __init__(self) -> None:
        super().__init__(10)
        self.mixes: list[np.ndarray] = []

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        assert batch.mix is not None
        self.mixes.append(batch.mix.numpy())
        return super().loss(outputs, batch, train=train)


def test_each_batch_of_a_step_is_mixed_anew_until_the_last_epoch_of_mixing():
    state, task = state_of(mixing=Mixing(mixup=1.0, off_epoch=2), seed=5), Seen()
    state.step = 8  # of 5 an epoch
    losses(state, batches(6), accumulate=2, task=task)
    expected = [
        mix_of(Mixing(mixup=1.0), seed=5, step=step, rank=0, part=part, size=32)
        for step in (8, 9)
        for part in (0, 1)
    ]
    np.testing.assert_array_equal(task.mixes, [*expected, plain(), plain()])
    assert len({mix.tobytes() for mix in expected}) == 4


def test_a_step_learns_the_mixed_images_and_their_soft_targets():
    batch = batches(1)[0]
    state, by_hand = state_of(lr=0.1, mixing=BOTH, seed=3), state_of(lr=0.1)
    mix = torch.from_numpy(mix_of(BOTH, seed=3, step=0, rank=0, part=0, size=32))
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    outputs = by_hand.network(mixed((batch.images / 255 - mean) / std, mix))
    one_hot = F.one_hot(batch.targets, 10).float()
    loss = F.cross_entropy(outputs, mix[-1] * one_hot + (1 - mix[-1]) * one_hot.flip(0))
    loss.backward()
    by_hand.optimizer.step()
    assert 0 < mix[-1] < 1
    assert losses(state, [batch]) == pytest.approx([loss.item()], rel=1e-4)
    for a, b in zip(state.network.parameters(), by_hand.network.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_auxiliary_classifiers_learn_the_soft_targets_too():
    batch = batches(1)[0]._replace(
        mix=torch.from_numpy(mix_of(MIXUP, seed=0, step=0, rank=0, part=0, size=32))
    )
    logits, aux = torch.randn(8, 10), torch.randn(8, 10)
    one_hot = F.one_hot(batch.targets, 10).float()
    assert batch.mix is not None
    soft = batch.mix[-1] * one_hot + (1 - batch.mix[-1]) * one_hot.flip(0)
    expected = F.cross_entropy(logits, soft) + 0.3 * F.cross_entropy(aux, soft)
    loss = TASK.loss(Outputs(logits, (aux,)), batch, train=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_accuracy_counts_either_class_by_its_weight():
    targets, mask = torch.tensor([0, 1, 2, 7]), torch.ones(4, dtype=torch.bool)
    mix = torch.tensor([0, 0, 0, 0, 0.75, 0.75, 0.75])
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    found = torch.tensor([0, 2, 5, 9])  # the first is its own, the second its partner's, the others neither
    logits = 10 * F.one_hot(found, 10).float() - torch.arange(10) / 10  # then by their numbers
    metrics = TASK.metrics(CPU)
    metrics.update(torch.zeros(()), logits, Batch(images, targets, mask, mix))
    got = metrics.compute()
    assert got["acc1"] == pytest.approx(100 * (0.75 + 0.25) / 4)
    # Five best: 0 1 2 3 4; 2 0 1 3 4; 5 0 1 2 3; 9 0 1 2 3. Of targets 0 and 7, 1 and 2, 2 and 1, 7 and 0.
    assert got["acc5"] == pytest.approx(100 * (0.75 + 1 + 1 + 0.25) / 4)


def test_a_step_that_mixes_asks_nothing_of_the_device(monkeypatch):
    state, metrics, data = state_of(mixing=BOTH), TASK.metrics(CPU), batches(2)
    train_step(state, TASK, data[:1], metrics)
    forbid_waiting(monkeypatch)
    train_step(state, TASK, data[1:], metrics)


def test_validation_mixes_nothing():
    data = batches(2)
    assert evaluate(state_of(mixing=BOTH), TASK, loader_of(data)) == evaluate(
        state_of(), TASK, loader_of(data)
    )


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_mixup_cutmix_and_none_are_one_graph(backend, monkeypatch):
    from torch._dynamo.utils import counters

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **told: compile(model, backend=backend, **told))
    state, task = state_of(mixing=Mixing(0.8, 1.0, prob=0.7), compile=True), Seen()
    eager = state_of(mixing=state.options.mixing)
    data = batches(12)
    counters.clear()
    assert losses(state, data, task=task) == pytest.approx(losses(eager, data), rel=1e-3)
    kinds = {
        ("none" if mix[5] == mix[-1] == 1 else "mixup" if mix[4] == mix[5] else "cutmix")
        for mix in task.mixes
    }
    assert kinds == {"none", "mixup", "cutmix"}
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_resumed_run_mixes_what_it_would_have(train, demo):
    flags = (*QUICK, "--data", demo, "--data-backend", "torch", "--epochs", "2", "--deterministic")
    flags += ("--mixup", "0.8", "--cutmix", "1", "--mixup-prob", "0.9")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(7, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", 7))
    assert train(*flags, "--output-dir", "parts", "--resume") == 0
    assert train(*flags, "--output-dir", "other", "--mixup-prob", "0") == 0
    whole, parts, other = (records(Path(name), "epoch") for name in ("whole", "parts", "other"))
    assert [(r["step"], r["train"], r["val"]) for r in whole] == [
        (r["step"], r["train"], r["val"]) for r in parts
    ]
    assert whole[0]["train"] != other[0]["train"]
