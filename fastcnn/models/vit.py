"""Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition
at Scale", ICLR 2021); ViT-S is of Touvron et al. 2021, "Training data-efficient image transformers".

State-dict keys are torchvision's. Position embeddings have the published size, and are interpolated for other
image sizes (section 3.2).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fastcnn.models.base import ConvNet, Stage


class Variant(NamedTuple):
    """Sizes of a Vision Transformer (table 1)."""

    patch: int
    """Side of a patch in pixels."""
    width: int
    depth: int
    """Number of encoder blocks."""
    heads: int


class SelfAttention(nn.Module):
    """Multi-head self-attention (appendix A): tokens [N, L, width] to tokens [N, L, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # [N, L, 3 * width] to three tensors [N, heads, L, width / heads].
        query, key, value = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each with a norm before it and a shortcut (figure 1, equations 2 and 3)."""

    def __init__(self, width: int, heads: int, drop_rate: float, drop_path: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelfAttention(width, heads)
        self.dropout = nn.Dropout(drop_rate)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(drop_rate),
            nn.Linear(4 * width, width),
            nn.Dropout(drop_rate),
        )
        self.stochastic_depth = StochasticDepth(drop_path, "row")
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.normal_(module.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.dropout(self.self_attention(self.ln_1(x))))
        return x + self.stochastic_depth(self.mlp(self.ln_2(x)))


class Encoder(nn.Module):
    """Position embedding, encoder blocks and a norm: tokens [N, L, width] to tokens [N, L, width]."""

    def __init__(self, length: int, variant: Variant, *, drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        _, width, depth, heads = variant
        self.pos_embedding = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.dropout = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / (depth - 1) for i in range(depth)]
        self.layers = nn.Sequential(
            OrderedDict(
                (f"encoder_layer_{i}", EncoderBlock(width, heads, drop_rate, rate))
                for i, rate in enumerate(rates)
            )
        )
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.ln(self.layers(self.dropout(x + resize_positions(self.pos_embedding, grid))))


def resize_positions(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings to another grid of patches, bicubically (section 3.2).

    Args:
        embedding: [1, 1 + s * s, width], for a class token and a square of patches.
        grid: rows and columns of patches.

    Returns:
        [1, 1 + rows * columns, width]; `embedding` itself if it has that size.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if grid == (side, side):
        return embedding
    token, patches = embedding[:, :1], embedding[:, 1:]
    square = patches.transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(square, grid, mode="bicubic", align_corners=False)
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], 1)


class VisionTransformer(ConvNet):
    """Images [N, in_chans, H, W], H and W multiples of the patch, to logits [N, num_classes].

    `forward_features` returns tokens [N, 1 + H / patch * W / patch, width], the class token first.
    `forward_stages` returns them as a map, without the class token.

    Args:
        drop_rate: dropout rate after each linear layer and embedding.
        drop_path_rate: stochastic depth rate of the last block, decreasing to 0 at the first.
    """

    classifier_name = "heads.head"

    def __init__(
        self,
        variant: Variant,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        patch, width, *_ = variant
        self.patch = self.minimum_image_size = self.image_size_multiple = patch
        self.stages = (Stage("encoder.ln", width, patch),)
        self.conv_proj = nn.Conv2d(in_chans, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        length = 1 + (self.default_image_size // patch) ** 2
        self.encoder = Encoder(length, variant, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        head = nn.Linear(width, num_classes)
        self.heads = nn.Sequential(OrderedDict(head=head))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (in_chans * patch**2)))
        assert self.conv_proj.bias is not None
        nn.init.zeros_(self.conv_proj.bias)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]}: use multiples of {self.patch}, the patch's size"
            )
        x = self.conv_proj(x)
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1), grid)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        tokens = self.forward_features(x)[:, 1:]
        return [tokens.transpose(1, 2).unflatten(2, (x.shape[2] // self.patch, x.shape[3] // self.patch))]

    def forward_head(self, features: Tensor) -> Tensor:
        return self.heads(features[:, 0])

    def layer_groups(self) -> list[list[str]]:
        blocks = [[f"encoder.layers.{name}"] for name, _ in self.encoder.layers.named_children()]
        blocks[-1].append("encoder.ln")
        return [["class_token", "conv_proj", "encoder.pos_embedding"], *blocks, ["heads.head"]]


def vit_s_16(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """ViT-S/16: 22,050,664 parameters."""
    variant = Variant(patch=16, width=384, depth=12, heads=6)
    return VisionTransformer(
        variant, num_classes, in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )


def vit_b_16(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """ViT-B/16: 86,567,656 parameters."""
    variant = Variant(patch=16, width=768, depth=12, heads=12)
    return VisionTransformer(
        variant, num_classes, in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )


def vit_b_32(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """ViT-B/32: 88,224,232 parameters."""
    variant = Variant(patch=32, width=768, depth=12, heads=12)
    return VisionTransformer(
        variant, num_classes, in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )


def vit_l_16(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """ViT-L/16: 304,326,632 parameters."""
    variant = Variant(patch=16, width=1024, depth=24, heads=16)
    return VisionTransformer(
        variant, num_classes, in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )
