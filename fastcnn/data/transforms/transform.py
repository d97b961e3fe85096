"""The transform of a phase: size, crop, augmentation, normalization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastcnn.data.transforms.augment import Augment


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Transform of images to square samples, identical for all loaders."""

    size: int
    """Side of the samples in pixels."""
    channels: int = 3
    train_crop: Literal["random-resized", "random", "pad"] = "random-resized"
    """"random": a random window of the image, resized as in evaluation (Krizhevsky et al. 2012, section
    4.1)."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int | None = None
    """Padding of pad-crop in pixels per side; None: an eighth of the size."""
    pad_mode: Literal["black", "reflect"] = "black"
    """Padding of pad-crop; "reflect" mirrors at the border, which itself is not repeated."""
    hflip: float = 0.5
    hflip_mode: Literal["random", "alternating"] = "random"
    """"alternating": random in the first epoch, then inverted from epoch to epoch (Jordan 2024, section 3.6
    of "94% on CIFAR-10 in 3.29 seconds"); with `hflip` 0 never."""
    crop_pct: float = 0.875
    """Evaluation resizes the short side to size / crop_pct, with pad-crop to the size itself, and crops the
    center."""
    crop_mode: Literal["center", "border"] = "center"
    """"border" keeps the whole image: evaluation (and pad-crop, before its shift) resizes the long side to
    the size and adds black borders."""
    augment: Augment = field(default_factory=Augment)
    """Augmentation of pixels in training, after crop and flip."""
    dct_scaling: bool = True
    """Large JPEGs may be decoded at a reduced scale (`fastcnn.data.jpeg`)."""
    progressive: bool = False
    """The size changes during the training, by `Loader.resize`."""

    @property
    def fill(self) -> tuple[int, ...]:
        """Value of erased pixels per channel."""
        fill = self.augment.fill
        return fill if len(fill) == self.channels else (round(sum(fill) / len(fill)),) * self.channels

    @property
    def padding(self) -> int:
        """Padding of pad-crop in pixels per side; by default 4 for size 32 (He et al. 2016, section 4.2)."""
        return self.size // 8 if self.crop_padding is None else self.crop_padding

    @property
    def resize(self) -> int:
        """Short side in pixels before the evaluation's center crop; with borders the long side."""
        whole = self.train_crop == "pad" or self.crop_mode == "border"
        return self.size if whole else int(self.size / self.crop_pct)
