"""Parameter groups, optimizers, the moving average of the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastcnn.config import OptimizerSettings, OptName
from fastcnn.models import build
from fastcnn.optim.build import (
    add_momentum_buffers,
    build_optimizer,
    load_optimizer,
    parameter_groups,
    set_learning_rate,
)
from fastcnn.optim.ema import EMA
from fastcnn.optim.muon import Muon
from fastcnn.optim.rmsprop import RMSpropTF

OPTS = ("sgd", "nesterov", "adamw", "rmsproptf", "muon")


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    # Tanh, since a bias right before batch norm has no gradient but rounding.
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def first(network: nn.Module) -> torch.Tensor:
    return network.get_parameter("0.weight").detach()


def backward(network: nn.Module, seed: int = 0) -> None:
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    network.zero_grad()
    network(x).square().mean().backward()


# Parameter groups


def test_biases_and_norms_are_not_decayed_and_every_parameter_is_in_one_group():
    network = build("resnet20", 10)
    decayed, undecayed = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    held = [[names.pop(id(p)) for p in group["params"]] for group in (decayed, undecayed)]
    assert not names
    assert all(".bn" not in f".{name}" and name.endswith("weight") for name in held[0])
    assert all(".bn" in f".{name}" or name.endswith("bias") for name in held[1])


def test_each_share_of_the_learning_rate_has_groups_of_its_own_and_the_largest_comes_first():
    network = small_network()
    scales = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.1}
    groups = parameter_groups(network, 0.5, scales)
    held = [(group["lr_scale"], group["weight_decay"], len(group["params"])) for group in groups]
    assert held == [(1.0, 0.5, 1), (1.0, 0.0, 2), (0.1, 0.5, 1), (0.1, 0.0, 2)]


@pytest.mark.parametrize("opt", OPTS)
def test_frozen_parameters_keep_their_bits_and_take_no_memory_of_the_optimizer(opt):
    network = small_network()
    network[0].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.5), lr=0.1)
    backward(network)
    optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert all(not optimizer.state.get(p) for p in network[0].parameters())


@pytest.mark.parametrize("opt", OPTS)
def test_unfrozen_parameters_move_beside_those_with_a_history_and_start_from_none(opt):
    network = small_network()
    network[0].requires_grad_(False)
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.0), lr=0.1)
    backward(network)
    optimizer.step()
    network[0].requires_grad_(True)
    add_momentum_buffers(optimizer)
    fresh = copy.deepcopy(network)
    backward(network, seed=1)
    optimizer.step()
    other = build_optimizer(fresh, OptimizerSettings(opt=opt, weight_decay=0.0), lr=0.1)
    backward(fresh, seed=1)
    other.step()
    assert torch.equal(first(network), first(fresh))
    assert not torch.equal(network.get_parameter("4.weight"), fresh.get_parameter("4.weight"))


def test_a_group_without_parameters_is_left_out():
    (group,) = parameter_groups(nn.Conv2d(1, 1, 3, bias=False), 0.1)
    assert group["weight_decay"] == 0.1


# Optimizers


@pytest.mark.parametrize("opt", OPTS)
def test_the_optimizer_is_fused_or_foreach_and_its_learning_rate_a_tensor(opt):
    optimizer = build_optimizer(small_network(), OptimizerSettings(opt=opt, weight_decay=0.01), lr=0.1)
    for group in optimizer.param_groups:
        assert group.get("fused") or isinstance(optimizer, RMSpropTF | Muon)
        assert isinstance(group["lr"], torch.Tensor)
        assert group["lr"].item() == pytest.approx(0.1 * group["lr_scale"])


def test_the_momentum_is_that_of_every_optimizer_that_has_one():
    for opt in ("sgd", "nesterov", "rmsproptf"):
        optimizer = build_optimizer(
            small_network(), OptimizerSettings(opt=opt, weight_decay=0.01, momentum=0.7), lr=0.1
        )
        assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_setting_the_learning_rate_fills_the_tensor_that_is_there():
    optimizer = build_optimizer(small_network(), OptimizerSettings(weight_decay=0.01), lr=0.1)
    before = [group["lr"] for group in optimizer.param_groups]
    set_learning_rate(optimizer, 0.25)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, before))
    assert [tensor.item() for tensor in before] == [0.25, 0.25]


def test_a_share_of_the_learning_rate_follows_the_schedule():
    optimizer = build_optimizer(
        small_network(), OptimizerSettings(weight_decay=0.01), lr=0.4, lr_scales={"0.weight": 0.5}
    )
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.4, 0.4, 0.2])
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.05])


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw"])
def test_three_steps_are_those_of_the_plain_optimizer(opt):
    network = small_network()
    reference = copy.deepcopy(network)
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.05, momentum=0.8), lr=0.1)
    many = [p for p in reference.parameters() if p.ndim > 1]
    few = [p for p in reference.parameters() if p.ndim <= 1]
    groups = [{"params": many, "weight_decay": 0.05}, {"params": few, "weight_decay": 0.0}]
    plain: torch.optim.Optimizer
    if opt == "adamw":
        plain = torch.optim.AdamW(groups, lr=0.1, fused=False, foreach=False)
    else:
        plain = torch.optim.SGD(
            groups, lr=0.1, momentum=0.8, nesterov=opt == "nesterov", fused=False, foreach=False
        )
    for step in range(3):
        rate = 0.1 / (1 + step)
        set_learning_rate(optimizer, rate)
        for group in plain.param_groups:
            group["lr"] = rate
        for model, each in ((network, optimizer), (reference, plain)):
            backward(model, seed=step)
            each.step()
    torch.testing.assert_close(dict(network.named_parameters()), dict(reference.named_parameters()))


@pytest.mark.parametrize("opt", OPTS)
def test_a_step_is_skipped_where_the_gradients_are_said_to_be_infinite(opt):
    network = small_network()
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.05), lr=0.1)
    start = copy.deepcopy(network.state_dict())
    backward(network)
    after_forward = copy.deepcopy(network.state_dict())  # batch norm has moved, the weights have not

    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    torch.testing.assert_close(network.state_dict(), after_forward, rtol=0, atol=0)

    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(not torch.equal(p, start[name]) for name, p in network.named_parameters())


# Loading


def trained(
    opt: OptName, layout: torch.memory_format, steps: int = 2
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    # Kernels of several sizes: for 1 x 1 and for depthwise ones the two formats differ in strides alone.
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6), nn.Tanh(), nn.Conv2d(6, 4, 1)
    ).to(memory_format=layout)
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.01), lr=0.02)
    for seed in range(steps):
        backward(network, seed)
        optimizer.step()
    return network, optimizer


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("opt", OPTS)
@pytest.mark.parametrize("before", LAYOUTS, ids=["contiguous", "channels-last"])
def test_a_loaded_state_takes_the_memory_format_of_its_parameter(opt, before):
    (after,) = set(LAYOUTS) - {before}
    network, optimizer = trained(opt, before)
    other, loaded = trained(opt, after, steps=0)
    other.load_state_dict(network.state_dict())
    load_optimizer(loaded, optimizer.state_dict())
    states = [(p, value) for p, state in loaded.state.items() for value in state.values() if value.ndim]
    assert len(states) >= len(list(other.parameters()))
    assert all(value.stride() == p.stride() for p, value in states)
    for model, each in ((network, optimizer), (other, loaded)):
        backward(model, seed=9)
        each.step()
    torch.testing.assert_close(dict(other.named_parameters()), dict(network.named_parameters()))


@pytest.mark.parametrize("opt", OPTS)
def test_a_loaded_state_takes_the_dtype_of_its_parameter_and_is_a_copy(opt):
    network, optimizer = trained(opt, torch.channels_last)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({name: value.double() for name, value in state.items()})
    for group in saved["param_groups"]:
        group["lr"] = 100.0
    load_optimizer(optimizer, saved)
    for p, state in optimizer.state.items():
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert {value.stride() for value in state.values() if value.ndim} == {p.stride()}
    assert all(group["lr"] < 10 for group in optimizer.param_groups)
    before = copy.deepcopy(saved)
    backward(network)
    optimizer.step()
    torch.testing.assert_close(saved["state"], before["state"], rtol=0, atol=0)


# Moving average


def values(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(network.state_dict()))


@torch.no_grad()
def shift(network: nn.Module, by: float) -> None:
    for value in network.state_dict().values():
        value += int(by) if not value.is_floating_point() else by


@pytest.mark.parametrize(
    ("decay", "decays"),
    [(0.9998, [2 / 11, 3 / 12, 4 / 13]), (0.2, [2 / 11, 0.2, 0.2])],
    ids=["warm-up", "capped"],
)
def test_the_average_is_a_lerp_whose_decay_grows_with_the_updates(decay, decays):
    network = small_network()
    ema = EMA(network, decay)
    expected = first(network).clone()
    for each in decays:
        shift(network, 1.0)
        ema.update()
        expected = each * expected + (1 - each) * first(network)
    torch.testing.assert_close(ema.average["0.weight"], expected)
    assert ema.updates == 3


def test_the_average_holds_floating_point_buffers_but_no_counters():
    ema = EMA(small_network(), 0.9)
    assert {"2.running_mean", "2.running_var", "2.weight", "4.bias"} <= set(ema.average)
    assert "2.num_batches_tracked" not in ema.average


@pytest.mark.parametrize("raises", [False, True], ids=["", "raises"])
def test_in_place_shows_the_average_and_puts_the_weights_back_bit_by_bit(raises):
    network = small_network()
    ema = EMA(network, 0.5)
    shift(network, math.pi)
    ema.update()
    live, average = values(network), copy.deepcopy(ema.average)
    storage = first(network).data_ptr()
    try:
        with ema.swapped_in():
            assert first(network).data_ptr() == storage  # a compiled network goes on with it
            inside = values(network)
            if raises:
                raise RuntimeError
    except RuntimeError:
        pass
    assert all(torch.equal(inside[name], value) for name, value in average.items())
    assert not torch.equal(inside["0.weight"], live["0.weight"])
    assert all(torch.equal(value, live[name]) for name, value in values(network).items())
    assert all(torch.equal(value, average[name]) for name, value in ema.average.items())


def test_a_loaded_average_goes_on_as_the_saved_one():
    network = small_network()
    ema = EMA(network, 0.9998)
    for _ in range(4):
        shift(network, 0.5)
        ema.update()
    state = copy.deepcopy(ema.state_dict())
    again = EMA(network, 0.9998)
    again.load_state_dict(state)
    for each in (ema, again):
        each.update()
    assert again.updates == ema.updates == 5
    torch.testing.assert_close(again.average, ema.average, rtol=0, atol=0)
    assert not torch.equal(again.average["0.weight"], first(network))


def test_an_average_of_every_third_step_takes_up_the_third_and_the_sixth():
    network = small_network()
    ema = EMA(network, 0.9998, every=3)
    sparse = EMA(network, 0.9998)
    for step in range(1, 8):
        shift(network, 1.0)
        ema.update()
        if step in (3, 6):
            sparse.update()
        assert ema.updates == step // 3
    torch.testing.assert_close(ema.average, sparse.average, rtol=0, atol=0)


def test_an_average_saved_between_its_updates_goes_on_in_the_same_step():
    network = small_network()
    ema = EMA(network, 0.9998, every=3)
    for _ in range(4):
        shift(network, 0.5)
        ema.update()
    again = EMA(network, 0.9998, every=3)
    again.load_state_dict(copy.deepcopy(ema.state_dict()))
    for updates in (1, 2, 2):
        shift(network, 0.5)
        for each in (ema, again):
            each.update()
        assert ema.updates == again.updates == updates
        torch.testing.assert_close(again.average, ema.average, rtol=0, atol=0)


def test_a_loaded_average_keeps_the_memory_format_of_its_network():
    network = nn.Conv2d(2, 4, 3)
    ema = EMA(network, 0.9998)
    shift(network, 0.5)
    ema.update()
    turned = EMA(copy.deepcopy(network).to(memory_format=torch.channels_last), 0.9998)
    turned.load_state_dict(ema.state_dict())
    assert turned.average["weight"].stride() == turned.live["weight"].stride() != (18, 9, 3, 1)
    for each in (ema, turned):
        each.update()
    torch.testing.assert_close(turned.average, ema.average)


def test_a_loaded_average_is_a_copy():
    network = small_network()
    ema = EMA(network, 0.5)
    state = copy.deepcopy(ema.state_dict())
    again = EMA(network, 0.5)
    again.load_state_dict(state)
    shift(network, 1.0)
    again.update()
    assert torch.equal(state["average"]["0.weight"], ema.average["0.weight"])
