"""What several families share."""

from __future__ import annotations

from collections.abc import Callable
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
        kernel, stride: of both axes.
        activation: class of the activation; None: none.
        depthwise: one filter for each channel; `in_channels` and `out_channels` are the same.
        norm: makes the normalization of so many channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
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
    """A convolution of an image that is smoothed before, so that its stride folds less (Zhang, "Making
    Convolutional Networks Shift-Invariant Again", ICML 2019). Its parameters are a convolution's."""

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
    """Puts `BlurConv2d` in place of each convolution with a stride and 16 channels or more, as FFCV does."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(module, name, BlurConv2d(child))


class MBConv(nn.Module):
    """The block of MobileNetV3 (figure 4) and EfficientNet: 1x1 expansion, depthwise convolution, squeeze and
    excitation, 1x1 projection without activation.

    Args:
        expanded: channels inside.
        squeeze: channels of the squeeze; 0: no squeeze-and-excitation.
        gate, squeeze_activation: of the squeeze-and-excitation.
        drop_path: probability that a sample skips the block in training.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        norm: Norm,
        squeeze: int = 0,
        gate: type[nn.Module] = nn.Hardsigmoid,
        squeeze_activation: type[nn.Module] = nn.ReLU,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(ConvNormAct(in_channels, expanded, activation=activation, norm=norm))
        layers.append(ConvNormAct(expanded, expanded, kernel, stride, activation, depthwise=True, norm=norm))
        if squeeze:
            layers.append(SqueezeExcitation(expanded, squeeze, squeeze_activation, gate))
        layers.append(ConvNormAct(expanded, out_channels, activation=None, norm=norm))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop_path, "row")
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.block(x)) + x if self.shortcut else self.block(x)


def response_norm(relu: bool = False) -> LocalResponseNorm:
    """Local response normalization with AlexNet's constants (Krizhevsky et al. 2012, section 3.3).

    The paper does not divide alpha by the window's size, PyTorch does.

    Args:
        relu: of relu(input).
    """
    return LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0, relu=relu)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, up where that would take away more than a tenth (MobileNetV2)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def he_normal(network: nn.Module, linear_std: float | None = None) -> None:
    """Starts convolutions as He et al. 2015 (section 2.2, by outputs), with biases of 0.

    Args:
        linear_std: deviation of linear layers, with biases of 0; None leaves them as they are.
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
