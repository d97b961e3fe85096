"""Feature maps of a layer, and Grad-CAM: the places of an image that speak for a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastcnn.data.decode import DecodeError
from fastcnn.engine.state import Normalized
from fastcnn.errors import BadImageError
from fastcnn.explain.colors import colored, mosaic, stretched, tile
from fastcnn.explain.layers import as_map, choose_layer, recorded
from fastcnn.explain.opened import opened
from fastcnn.explain.scores import class_number, class_score
from fastcnn.inference.samples import Preprocessing, prepare, read_pixels
from fastcnn.inference.trained import Trained
from fastcnn.tasks.gallery import rgb
from fastcnn.viz.pictures import grid

SHOWN = 64
"""Maximum number of feature maps in a picture: those that vary most."""
SIDE, LARGE = 96, 336
"""Sides of a feature map and of an image in pictures, in pixels."""
OPACITY = 0.5
"""Opacity of Grad-CAM over the image."""


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """The output of a layer for an image."""

    layer: str
    maps: np.ndarray
    """float32 [channels, h, w]."""

    def picture(self) -> Image.Image:
        """Return the maps that vary most, each scaled by itself."""
        order = np.argsort(-self.maps.std(axis=(1, 2)), kind="stable")[:SHOWN]
        tiles = [tile(colored(stretched(self.maps[i]), "viridis"), SIDE) for i in order.tolist()]
        _, height, width = self.maps.shape
        shown = f"{len(tiles)} of {len(self.maps)} maps of {height} x {width}"
        return mosaic(tiles, f"{self.layer}: {shown}")


@dataclass(frozen=True, kw_only=True)
class Cam:
    """Grad-CAM of an image (Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2)."""

    layer: str
    class_id: int
    class_name: str
    image: np.ndarray
    """As the network sees it, uint8 [size, size, 3]."""
    heat: np.ndarray
    """float32 [size, size], 0 to 1; all 0 if no place speaks for the class."""

    def picture(self) -> Image.Image:
        """Return the image, and the image under its heat."""
        heated = colored(self.heat, "turbo")
        blended = ((1 - OPACITY) * self.image + OPACITY * heated).round().astype(np.uint8)
        cells = [tile(self.image, LARGE), tile(blended, LARGE)]
        return grid([cells], ["image", f"Grad-CAM: {self.class_name}"], self.layer)


def feature_maps(network: Trained | str | Path, image: Any, layer: str | None = None) -> FeatureMaps:
    """Return the output of a layer for an image.

    Args:
        network: checkpoint.
        image: as of `fastcnn.Predictor`.
        layer: attribute path, such as layer3.0.conv1; None: the last stage. Tokens of a transformer are shown
            as a map.

    Raises:
        UserError: no such checkpoint or layer; BadImageError: an undecodable image.
    """
    trained = opened(network)
    _, images = _prepared(trained, image)
    # Copies of all maps: a layer that works in place would change the output of the one before.
    with torch.no_grad(), recorded(trained.network, copy=True) as outputs:
        _normalized(trained)(images)
    name = choose_layer(trained.network, outputs, layer, cam=False)
    shown = as_map(outputs[name])
    assert shown is not None
    return FeatureMaps(layer=name, maps=shown[0].float().cpu().numpy())


def grad_cam(
    network: Trained | str | Path,
    image: Any,
    class_name: str | int | None = None,
    layer: str | None = None,
) -> Cam:
    """Return where an image speaks for a class: the maps of a layer, weighted by their mean gradients.

    Args:
        network: checkpoint.
        image: as of `fastcnn.Predictor`.
        class_name: name or number of the class; None: the predicted one.
        layer: attribute path; None: the last stage, or in a transformer the norm before the last attention.

    Raises:
        UserError: no such checkpoint, class or layer; BadImageError: an undecodable image.
    """
    trained = opened(network)
    wanted = class_number(trained, class_name)
    pixels, images = _prepared(trained, image)
    with torch.enable_grad(), recorded(trained.network) as outputs:
        result = _normalized(trained)(images.float().requires_grad_())
        name = choose_layer(trained.network, outputs, layer, cam=True)
        score, class_id = class_score(result, len(trained.class_names), wanted)
        activation = outputs[name]
        (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
    heat = _heat(activation, gradient, images.shape[2])
    names = trained.class_names
    return Cam(layer=name, class_id=class_id, class_name=names[class_id], image=pixels, heat=heat)


def _heat(activation: Tensor, gradient: Tensor | None, size: int) -> np.ndarray:
    """Return the weighted sum of maps without its negative part, enlarged to the image, 0 to 1."""
    maps = as_map(activation.detach())
    slopes = None if gradient is None else as_map(gradient)
    if maps is None or slopes is None:
        return np.zeros((size, size), dtype=np.float32)
    heat = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=(size, size), mode="bilinear", align_corners=False)[0, 0]
    return (heat / heat.max().clamp(min=1e-12)).float().cpu().numpy()


def _normalized(trained: Trained) -> Normalized:
    return Normalized(trained.network, trained.mean, trained.std).eval()


def _prepared(trained: Trained, image: Any) -> tuple[np.ndarray, Tensor]:
    """Return an image as the network sees it: as a picture, uint8 [size, size, 3], and as a batch."""
    preprocessing = Preprocessing.of(trained)
    name = "stdin" if isinstance(image, bytes) else str(image) if isinstance(image, str | Path) else "image"
    try:
        sample = prepare(read_pixels(image, preprocessing, name), preprocessing, name)
    except DecodeError as error:
        raise BadImageError(f"{name}: cannot be decoded: {error}; leave it out") from error
    images = torch.from_numpy(sample.pixels).permute(2, 0, 1)[None]
    return rgb(images[0]), images
