"""Networks in PyTorch's own operators: files must not need `fastcnn_kernels`."""

from __future__ import annotations

import copy
import dataclasses

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.inference.trained import Trained
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm


class PlainResponseNorm(LocalResponseNorm):
    """`LocalResponseNorm` by PyTorch's function."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.relu() if self.relu else input
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv2d: nn.Conv2d,
    LocalResponseNorm: PlainResponseNorm,
}


def with_plain_layers(trained: Trained) -> Trained:
    """Return a copy of a trained network whose layers compute by PyTorch alone."""
    network = copy.deepcopy(trained.network)
    for module in network.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return dataclasses.replace(trained, network=network)
