"""RMSprop is TensorFlow's, step by step, and leaves everything as it is where it is told to."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from fastcnn.optim.rmsprop import RMSpropTF

SHAPES = ((4, 3, 3, 3), (7,), (5, 6))


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return [p.requires_grad_() for p in made]


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def groups_of(params: list[Tensor], lr: float = 0.05, weight_decay: float = 0.1) -> list[dict[str, object]]:
    """As `fastcnn.optim.build.build_optimizer` makes them: some decayed, rates as tensors."""
    return [
        {"params": params[:2], "weight_decay": weight_decay, "lr": torch.tensor(lr)},
        {"params": params[2:], "weight_decay": 0.0, "lr": torch.tensor(lr / 2)},
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


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_are_those_of_the_formula(momentum):
    params = parameters()
    optimizer = RMSpropTF(groups_of(params), alpha=0.8, momentum=momentum, eps=0.02)
    train(optimizer, params, range(4))
    for expected, found, (lr, decay) in zip(parameters(), params, [(0.05, 0.1), (0.05, 0.1), (0.025, 0.0)]):
        p, v, m = expected.detach().double(), torch.ones(1, dtype=torch.float64), torch.zeros(1)
        others, i = parameters(), SHAPES.index(tuple(found.shape))
        for step in range(4):
            set_gradients(others, step)
            gradient = others[i].grad
            assert gradient is not None
            g = gradient.double() + decay * p
            v = 0.8 * v + 0.2 * g * g
            m = momentum * m + lr * g / (v + 0.02).sqrt()
            p = p - m
        torch.testing.assert_close(found.detach(), p.float())


def test_steps_are_those_of_timm():
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = parameters(), parameters()
    optimizer = RMSpropTF(groups_of(ours))
    reference = timm_optim.RMSpropTF(groups_of(theirs), lr=0.05, alpha=0.9, momentum=0.9, eps=1e-3)
    for step in range(6):
        for each, params in ((optimizer, ours), (reference, theirs)):
            rate = 0.05 / (1 + step)
            for group, share in zip(each.param_groups, (1.0, 0.5)):
                group["lr"].fill_(rate * share)  # the momentum holds the rates of its time
            train(each, params, range(step, step + 1))
        torch.testing.assert_close(ours, theirs)


def test_a_rate_that_is_a_number_is_as_good_as_a_tensor():
    tensors, numbers = parameters(), parameters()
    train(RMSpropTF(groups_of(tensors, weight_decay=0.0)), tensors, range(3))
    groups = [{"params": numbers[:2], "lr": 0.05}, {"params": numbers[2:], "lr": 0.025}]
    train(RMSpropTF(groups), numbers, range(3))
    torch.testing.assert_close(numbers, tensors)


def test_parameters_keep_their_memory_format():
    params = parameters()
    optimizer = RMSpropTF(groups_of(params))
    train(optimizer, params, range(2))
    for value in (params[0], *optimizer.state[params[0]].values()):
        assert value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later"])
def test_a_step_with_found_inf_changes_nothing_whatever_the_gradients_are(bad, first):
    params = parameters()
    optimizer = RMSpropTF(groups_of(params))
    if not first:
        train(optimizer, params, range(2))
    before = everything(optimizer, params)
    set_gradients(params, 2)
    for p in params:
        assert p.grad is not None
        p.grad[1] = bad
    gradients = [p.grad.nan_to_num() for p in params if p.grad is not None]
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    if first:
        starts = [torch.full_like(p, start) for p in params for start in (1.0, 0.0)]
        before = [*before, *starts]
    assert_equal(everything(optimizer, params), before)
    assert_equal(
        [p.grad.nan_to_num() for p in params if p.grad is not None], [g.nan_to_num() for g in gradients]
    )


def test_a_step_whose_gradients_are_finite_is_the_same_with_found_inf():
    plain, watched = parameters(), parameters()
    optimizer = RMSpropTF(groups_of(watched))
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    train(RMSpropTF(groups_of(plain)), plain, range(3))
    train(optimizer, watched, range(3))
    torch.testing.assert_close(watched, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled before", "unscaled by the step"])
def test_a_grad_scaler_leaves_its_scale_to_the_step_and_an_overflow_changes_nothing(unscale):
    plain, scaled = parameters(), parameters()
    train(RMSpropTF(groups_of(plain)), plain, range(2))
    optimizer = RMSpropTF(groups_of(scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes the scale
    for step, gradient in ((0, None), (7, math.inf), (1, None)):
        before = everything(optimizer, scaled)
        set_gradients(scaled, step)
        for p in scaled:
            assert p.grad is not None
            p.grad.mul_(scaler.get_scale())
        if gradient is not None:
            assert scaled[1].grad is not None
            scaled[1].grad[3] = gradient
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
    optimizer = RMSpropTF(groups_of(params))
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    others = [p.detach().clone().requires_grad_() for p in params]
    again = RMSpropTF(groups_of(others, lr=1.0, weight_decay=0.0))
    again.load_state_dict(saved)
    train(optimizer, params, range(3, 5))
    train(again, others, range(3, 5))
    assert_equal(everything(again, others), everything(optimizer, params))


def test_parameters_without_a_gradient_are_left_alone():
    params = parameters()
    optimizer = RMSpropTF(groups_of(params))
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

    assert RMSpropTF(groups_of(params)).step(loss) == 2.5
