"""Layers and initialization that several families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm

Norm = Callable[[int], nn.Module]


class ConvNormAct(nn.Sequential):
    """Convolution without bias, padded to keep the size at stride 1; batch norm; activation.

    Args:
        kernel, stride: the same for both axes.
        activation: class of the activation; None: no activation.
        depthwise: one filter per channel; requires `in_channels == out_channels`.
        norm: factory of the normalization, called with the number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        *,
        depthwise: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        padding = (kernel - 1) // 2
        conv: nn.Module
        if depthwise:
            assert in_channels == out_channels
            conv = DepthwiseConv2d(in_channels, kernel, stride, padding, bias=False)
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        super().__init__(
            conv, norm(out_channels), *([] if activation is None else [activation(inplace=True)])
        )


class BlurConv2d(nn.Conv2d):
    """Convolution of a blurred input, against aliasing by its stride.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019. Its parameters are those of the
    convolution that it replaces.
    """

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        sizes: tuple[Any, Any, Any] = conv.kernel_size, conv.stride, conv.padding
        super().__init__(conv.in_channels, conv.out_channels, *sizes, 1, conv.groups, bias=False)
        assert conv.bias is None
        assert conv.dilation == (1, 1)
        kernel = torch.tensor([1.0, 2.0, 1.0])
        filters = (kernel[:, None] * kernel / 16).repeat(conv.in_channels, 1, 1, 1)
        self.register_buffer("blur", filters, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.conv2d(x, self.blur.to(x.dtype), padding=1, groups=self.in_channels))


def blur_strides(network: nn.Module) -> None:
    """Replace strided convolutions of 16 or more input channels by `BlurConv2d`, as FFCV does."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(module, name, BlurConv2d(child))


@dataclass(frozen=True, kw_only=True)
class MBConvOptions:
    """Activations, norm and squeeze-and-excitation of an `MBConv`."""

    activation: type[nn.Module]
    norm: Norm
    squeeze: int = 0
    """Channels of the squeeze; 0: no squeeze-and-excitation."""
    squeeze_activation: type[nn.Module] = nn.ReLU
    gate: type[nn.Module] = nn.Hardsigmoid
    """Activation of the excitation."""


class MBConv(nn.Module):
    """Block of MobileNetV3 (figure 4) and EfficientNet.

    1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection without activation.

    Args:
        expanded: channels after the expansion.
        kernel, stride: those of the depthwise convolution.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel: int,
        stride: int,
        *,
        options: MBConvOptions,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        activation, norm, squeeze = options.activation, options.norm, options.squeeze
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(ConvNormAct(in_channels, expanded, activation=activation, norm=norm))
        layers.append(ConvNormAct(expanded, expanded, kernel, stride, activation, depthwise=True, norm=norm))
        if squeeze:
            layers.append(SqueezeExcitation(expanded, squeeze, options.squeeze_activation, options.gate))
        layers.append(ConvNormAct(expanded, out_channels, activation=None, norm=norm))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop_path, "row")
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.block(x)) + x if self.shortcut else self.block(x)


def response_norm(*, relu: bool = False) -> LocalResponseNorm:
    """Local response normalization with AlexNet's constants (Krizhevsky et al. 2012, section 3.3).

    PyTorch divides alpha by the window size, the paper does not.

    Args:
        relu: apply ReLU to the input first.
    """
    return LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0, relu=relu)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, without a loss of more than 10% (MobileNetV2)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def he_normal(network: nn.Module, linear_std: float | None = None) -> None:
    """Initialize convolutions as in He et al. 2015 (section 2.2, by outputs), and their biases to 0.

    Args:
        linear_std: standard deviation of linear layers, with biases of 0; None: keep their initialization.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
