"""Muon's steps are those of the formula, and leave everything as it is where it is told to."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcnn.config import OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.engine.state import build_state
from fastcnn.engine.step import train_step
from fastcnn.models import build
from fastcnn.optim.build import build_optimizer, set_learning_rate
from fastcnn.optim.muon import BIAS_RATE, CLASSIFIER_RATE, Muon, muon_groups, orthogonal
from fastcnn.optim.schedules import Schedule
from small_tasks import small_batch, task_for

SHAPES = ((4, 3, 3, 3), (4, 3, 3, 3), (20, 2, 3, 3), (7,), (5, 6))
"""Two banks of one shape, one that is higher than wide, and what SGD updates."""
FILTERS = 3
LR, SHARE, DECAY = 0.05, 0.5, 0.1


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return [p.requires_grad_() for p in made]


def set_gradients(params: Sequence[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def groups_of(params: list[Tensor], lr: float = LR) -> list[dict[str, Any]]:
    """As `fastcnn.optim.build.build_optimizer` makes them: rates as tensors."""
    few = {"momentum": 0.85, "weight_decay": DECAY, "orthogonal": False}
    return [
        {"params": params[:FILTERS], "lr": torch.tensor(lr)},
        {"params": params[FILTERS:], "lr": torch.tensor(lr * SHARE), **few},
    ]


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def everything(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    state = [value for p in params for value in optimizer.state[p].values()]
    return [tensor.detach().clone() for tensor in (*params, *state)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


# The iteration


@pytest.mark.parametrize("shape", [(2, 8, 20), (2, 20, 8), (1, 12, 12)])
def test_the_iteration_brings_singular_values_near_1_and_keeps_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices, steps=6)
    inside = left.mT @ found @ right.mT
    diagonal = inside.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(diagonal), atol=1e-4, rtol=0)
    large = values > 0.05 * values.amax(1, keepdim=True)
    assert large.sum() >= values.numel() - 1
    assert 0.6 < diagonal[large].min()
    assert diagonal.max() < 1.25


def test_a_value_goes_through_the_polynomial_of_jordan_et_al():
    x = torch.diag(torch.tensor([0.6, 0.8]))  # of norm 1
    expected = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(orthogonal(x[None], steps=1)[0], expected)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_iteration_is_that_of_torch_s_muon_which_is_in_bf16(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = gradient.clone()
    theirs = torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, ns_steps=5)
    theirs.step()
    moved = -parameter.detach() / max(1, shape[0] / shape[1]) ** 0.5  # torch's rate for tall matrices
    torch.testing.assert_close(orthogonal(gradient[None], steps=5)[0], moved, rtol=0, atol=0.02)


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonal(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


# Steps


def plainly_orthogonal(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.square().sum().sqrt() + 1e-7)
    if len(x) > len(x.T):
        x = x.T
    for _ in range(3):
        xx = x @ x.T
        x = 3.4445 * x + (-4.7750 * xx + 2.0315 * xx @ xx) @ x
    return x if x.shape == matrix.shape else x.T


def test_steps_are_those_of_the_formula():
    params = parameters()
    optimizer = Muon(groups_of(params))
    train(optimizer, params, range(4))
    for i, start in enumerate(parameters()):
        p, m = start.detach().double(), torch.zeros(1, dtype=torch.float64)
        filters = i < FILTERS
        for step in range(4):
            others = parameters()
            set_gradients(others, step)
            gradient = others[i].grad
            assert gradient is not None
            g = gradient.double() + (0 if filters else DECAY * p)
            momentum = 0.6 if filters else 0.85
            m = momentum * m + g
            move = g + momentum * m
            if filters:
                p = p * len(p) ** 0.5 / p.square().sum().sqrt()
                move = plainly_orthogonal(move.flatten(1)).view(p.shape)
            p = p - LR * (1 if filters else SHARE) * move
        torch.testing.assert_close(params[i].detach(), p.float(), rtol=1e-4, atol=1e-5)


def test_what_is_not_orthogonal_is_updated_by_torch_s_sgd():
    ours, theirs = parameters()[FILTERS:], parameters()[FILTERS:]
    optimizer = Muon(groups_of([*parameters()[:FILTERS], *ours])[1:])
    reference = torch.optim.SGD(theirs, LR * SHARE, momentum=0.85, nesterov=True, weight_decay=DECAY)
    train(optimizer, ours, range(4))
    train(reference, theirs, range(4))
    torch.testing.assert_close(ours, theirs)


def test_filters_have_a_norm_of_1_in_the_quadratic_mean_before_they_move():
    params = parameters()
    train(Muon(groups_of(params, lr=0.0)), params, range(1))
    for p in params[:FILTERS]:
        assert p.detach().flatten(1).square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-5)


def test_parameters_keep_their_memory_format():
    params = parameters()
    optimizer = Muon(groups_of(params))
    train(optimizer, params, range(2))
    for value in (params[0], *optimizer.state[params[0]].values()):
        assert value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later"])
def test_a_step_with_found_inf_changes_nothing_whatever_the_gradients_are(bad, first):
    params = parameters()
    optimizer = Muon(groups_of(params))
    if not first:
        train(optimizer, params, range(2))
    before = everything(optimizer, params)
    set_gradients(params, 2)
    for p in params:
        assert p.grad is not None
        p.grad[1] = bad
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    if first:
        before += [torch.zeros_like(p) for p in params]
    assert_equal(everything(optimizer, params), before)


def test_a_step_whose_gradients_are_finite_is_the_same_with_found_inf():
    plain, watched = parameters(), parameters()
    optimizer = Muon(groups_of(watched))
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    train(Muon(groups_of(plain)), plain, range(3))
    train(optimizer, watched, range(3))
    torch.testing.assert_close(watched, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled before", "unscaled by the step"])
def test_a_grad_scaler_leaves_its_scale_to_the_step_and_an_overflow_changes_nothing(unscale):
    plain, scaled = parameters(), parameters()
    train(Muon(groups_of(plain)), plain, range(2))
    optimizer = Muon(groups_of(scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes the scale
    for step, gradient in ((0, None), (7, math.inf), (1, None)):
        before = everything(optimizer, scaled)
        set_gradients(scaled, step)
        for p in scaled:
            assert p.grad is not None
            p.grad.mul_(scaler.get_scale())
        if gradient is not None:
            assert scaled[0].grad is not None
            scaled[0].grad[3] = gradient
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if gradient is not None:
            assert_equal(everything(optimizer, scaled), before)
    assert scaler.get_scale() == 512.0
    torch.testing.assert_close(scaled, plain)


def test_a_saved_optimizer_goes_on_in_the_same_bits():
    params = parameters()
    optimizer = Muon(groups_of(params))
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    others = [torch.empty_like(p).copy_(p.detach()).requires_grad_() for p in params]
    again = Muon(groups_of(others, lr=1.0))
    again.load_state_dict(saved)
    train(optimizer, params, range(3, 5))
    train(again, others, range(3, 5))
    assert_equal(everything(again, others), everything(optimizer, params))


def test_parameters_without_a_gradient_are_left_alone():
    params = parameters()
    optimizer = Muon(groups_of(params))
    before = params[1].detach().clone()
    set_gradients(params, 0)
    params[1].grad = None
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state
    assert not torch.equal(params[0], parameters()[0])


def test_the_loss_of_a_closure_is_returned():
    params = parameters()

    def loss() -> float:
        set_gradients(params, 0)
        return 2.5

    assert Muon(groups_of(params)).step(loss) == 2.5


# Groups


def test_filters_are_orthogonal_and_biases_norms_and_the_classifier_have_airbench_s_shares():
    network = build("airbench_small", 10)
    groups = muon_groups(network, 0.01)
    names = {id(p): name for name, p in network.named_parameters()}
    found = {
        name: group for group in groups for name in (names.pop(id(p)) for p in group["params"])
    }  # each of them once
    assert not names
    filters = {name for name, group in found.items() if group["orthogonal"]}
    assert filters == {"whiten.weight"} | {f"block{i}.conv{j}.weight" for i in (1, 2, 3) for j in (1, 2)}
    assert {found[name]["lr_scale"] for name in filters} == {1.0}
    assert BIAS_RATE == pytest.approx(0.053 / 0.24 * 2000)
    assert found["block1.norm1.bias"]["lr_scale"] == found["whiten.bias"]["lr_scale"] == BIAS_RATE
    assert found["head.weight"]["lr_scale"] == pytest.approx(CLASSIFIER_RATE / 128)
    assert found["head.bias"]["lr_scale"] == found["head.weight"]["lr_scale"]
    assert {group["momentum"] for group in groups if group["orthogonal"]} == {0.6}
    assert {group["momentum"] for group in groups if not group["orthogonal"]} == {0.85}


def test_with_256_inputs_the_classifier_moves_as_airbench_s():
    """There logits are divided by 256, and the loss is a sum over 2,000 images."""
    group = next(g for g in muon_groups(nn.Sequential(nn.Linear(256, 10)), 0.0) if not g["orthogonal"])
    assert 0.24 * group["lr_scale"] == pytest.approx(0.67 * 2000 / 256**2)


def test_weight_decay_takes_the_same_share_of_each_whatever_its_learning_rate():
    groups = [g for g in muon_groups(build("airbench_small", 10), 0.01) if not g["orthogonal"]]
    assert len(groups) == 2
    assert [g["lr_scale"] * g["weight_decay"] for g in groups] == pytest.approx([0.01, 0.01])
    filters = [g for g in muon_groups(build("airbench_small", 10), 0.01) if g["orthogonal"]]
    assert [g["weight_decay"] for g in filters] == [0.0]


def test_shares_of_the_learning_rate_come_on_top():
    network = build("airbench_small", 10)
    groups = muon_groups(network, 0.0, {"block1.conv1.weight": 0.5, "head.weight": 0.1})
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales[id(network.get_parameter("block1.conv1.weight"))] == 0.5
    assert scales[id(network.get_parameter("block1.conv2.weight"))] == 1.0
    head = scales[id(network.get_parameter("head.weight"))]
    assert head == pytest.approx(0.1 * CLASSIFIER_RATE / 128)


def test_a_1x1_convolution_that_makes_the_logits_is_no_bank_of_filters():
    network = build("unet_small", 3)
    head = network.get_parameter("head.weight")
    assert head.ndim == 4
    (group,) = (g for g in muon_groups(network, 0.0) if any(p is head for p in g["params"]))
    assert not group["orthogonal"]


class Positions(nn.Module):
    """A class token, and positions as a row (ViT) and as a map (VOLO)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.row = nn.Parameter(torch.zeros(1, 10, 16))
        self.map = nn.Parameter(torch.zeros(1, 3, 3, 16))
        self.head = nn.Linear(16, 10)


def test_embeddings_of_positions_are_no_banks_of_filters_and_move_as_the_class_token():
    network = Positions()
    of = {id(p): group for group in muon_groups(network, 0.0) for p in group["params"]}
    assert of[id(network.patches.weight)]["orthogonal"]
    for embedding in (network.class_token, network.row, network.map):
        assert not of[id(embedding)]["orthogonal"]
        assert of[id(embedding)]["lr_scale"] == pytest.approx(CLASSIFIER_RATE / 16)


def test_weights_of_attention_and_of_linear_layers_have_rates_by_their_inputs():
    network = build("vit_s_16", 10)
    of = {name: group for group in muon_groups(network, 0.0) for name in names_in(network, group)}
    layer = "encoder.layers.encoder_layer_0"
    inputs = {
        f"{layer}.self_attention.in_proj_weight": 384,
        f"{layer}.mlp.3.weight": 4 * 384,
        "heads.head.weight": 384,
        "heads.head.bias": 384,
        "class_token": 384,
        "encoder.pos_embedding": 384,
    }
    for name, count in inputs.items():
        assert of[name]["lr_scale"] == pytest.approx(CLASSIFIER_RATE / count), name
    assert of[f"{layer}.ln_1.weight"]["lr_scale"] == BIAS_RATE
    assert [name for name, group in of.items() if group["orthogonal"]] == ["conv_proj.weight"]


def names_in(network: nn.Module, group: dict[str, Any]) -> list[str]:
    members = {id(p) for p in group["params"]}
    return [name for name, p in network.named_parameters() if id(p) in members]


def test_the_optimizer_starts_with_momenta_and_its_rates_follow_the_schedule():
    network = build("airbench_small", 10)
    optimizer = build_optimizer(network, OptimizerSettings(opt="muon", weight_decay=0.0), lr=0.24)
    assert isinstance(optimizer, Muon)
    moving = [p for p in network.parameters() if p.requires_grad]
    assert all(not optimizer.state[p]["momentum_buffer"].any() for p in moving)
    assert not any(optimizer.state.get(p) for p in network.parameters() if not p.requires_grad)
    set_learning_rate(optimizer, 0.12)
    expected = [0.12 * group["lr_scale"] for group in optimizer.param_groups]
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx(expected)


def test_a_step_of_training_asks_nothing_of_the_device_and_moves_the_loss_down(monkeypatch):
    torch.manual_seed(0)
    network = build("airbench_small", 10)
    optimizer = build_optimizer(network, OptimizerSettings(opt="muon", weight_decay=0.01), lr=0.02)
    schedule, cpu = Schedule(peak=0.02, steps_per_epoch=10, epochs=1, kind="constant"), torch.device("cpu")
    state = build_state(network, optimizer, schedule, mean=(0.5,) * 3, std=(0.25,) * 3)
    task = task_for("resnet20")
    metrics = task.metrics(cpu)
    batch = Batch(*small_batch("resnet20", 16, torch.Generator().manual_seed(0))[:3])
    state.train_model.train()
    train_step(state, task, [batch], metrics)
    first = metrics.compute()["loss"]
    metrics.reset()
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "numpy", "cpu", "nonzero"):
            patch.setattr(Tensor, name, lambda *_: pytest.fail("the host waited for the device"))
        for _ in range(4):
            train_step(state, task, [batch], metrics)
    assert metrics.compute()["loss"] < first
