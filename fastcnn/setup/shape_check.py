"""Run a network on shapes alone, without data or arithmetic, so that what cannot work is an error at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastcnn.config import Config
from fastcnn.errors import UserError

BatchNorm = nn.modules.batchnorm._BatchNorm
TRIED = 2
"""Images of the trial that confirms a failure on shapes."""


def check_shapes(network: nn.Module, config: Config, world_size: int = 1) -> None:
    """Run the forward passes of training and validation on tensors without data.

    Args:
        config: settings without "auto".
        world_size: ranks over which synchronized batch norm takes its statistics.

    Raises:
        UserError: a layer fails on images of this size, or batch norm would see one value per channel.
    """
    batch_size, channels = int(config.batch_size), int(config.in_chans)
    if not config.test_only:
        together = batch_size * world_size if config.sync_bn else batch_size
        for size in config.progressive or (int(config.img_size),):
            _check(network, (together, channels, size, size), train=True)
    size = int(config.val_img_size)
    _check(network, (batch_size, channels, size, size), train=False)


def _check(network: nn.Module, shape: tuple[int, int, int, int], *, train: bool) -> None:
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    with _mode(network, train=train), _located(network, shape) as path, torch.no_grad():
        try:
            torch.func.functional_call(network, empty, torch.empty(shape, device="meta"))
            return
        except UserError:
            raise
        except Exception:  # also of code that needs data: confirmed below
            path.clear()
        try:
            copy.deepcopy(network)(torch.zeros(min(shape[0], TRIED), *shape[1:]))
        except UserError:
            raise
        except Exception as error:  # a network may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            where = f"layer {path[-1]}" if path and path[-1] else "the network"
            raise UserError(
                f"--img-size {shape[2]}: {where} fails on {shape[0]} images of {shape[1]} x {shape[2]} x "
                f"{shape[3]}: {reason}; use a larger --img-size"
            ) from error


@contextmanager
def _mode(network: nn.Module, *, train: bool) -> Iterator[None]:
    """Set training or evaluation mode, and restore the mode of each module."""
    before = [(module, module.training) for module in network.modules()]
    network.train(train)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def _located(network: nn.Module, shape: tuple[int, int, int, int]) -> Iterator[list[str]]:
    """Yield the paths of the modules that run, the innermost last; check the input of batch norm layers."""
    running: list[str] = []
    handles = []

    def enter(name: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
        running.append(name)
        if isinstance(module, BatchNorm) and module.training:
            _check_batch_norm(name, inputs[0], shape)

    for name, module in network.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda module, inputs, name=name: enter(name, module, inputs)),
            module.register_forward_hook(lambda module, inputs, outputs: running.pop() and None),
        ]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _check_batch_norm(name: str, pixels: object, shape: tuple[int, int, int, int]) -> None:
    if isinstance(pixels, Tensor) and pixels.numel() == pixels.shape[1]:
        raise UserError(
            f"--batch-size {shape[0]}: batch norm needs more than one value per channel, and layer {name} "
            f"sees one image of one pixel at --img-size {shape[2]}; use --batch-size 2 or more, or a larger "
            "--img-size"
        )
