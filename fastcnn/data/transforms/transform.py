"""The transform of a phase: size, crop, augmentation, normalization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fastcnn.data.transforms.augment import Augment

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How images become square ones: the same meaning in every loader."""

    size: int
    """Pixels a side of the result."""
    channels: int = 3
    train_crop: Literal["random-resized", "random", "pad"] = "random-resized"
    """"random": anywhere in the image, which is resized as for evaluation (Krizhevsky et al. 2012, section
    4.1)."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int | None = None
    """Pixels that pad-crop adds on each side; None: an eighth of the size."""
    pad_mode: Literal["black", "reflect"] = "black"
    """What it adds; "reflect": mirrored at the border, which itself is not repeated."""
    hflip: float = 0.5
    hflip_mode: Literal["random", "alternating"] = "random"
    """"alternating": in the first epoch as drawn, then in every epoch the other way (Jordan 2024, section 3.6
    of "94% on CIFAR-10 in 3.29 seconds"); with `hflip` 0 never."""
    crop_pct: float = 0.875
    """Evaluation resizes the short side to size / crop_pct and crops the centre; with pad-crop it
    resizes to the size itself."""
    crop_mode: Literal["center", "border"] = "center"
    """"border" keeps all of the image: evaluation (and pad-crop, before it shifts) resizes the long side to
    the size and adds black borders."""
    augment: Augment = field(default_factory=Augment)
    """What becomes of the pixels in training, after that."""
    progressive: bool = False
    """Whether the size changes during the training, by `Loader.resize`."""

    @property
    def fill(self) -> tuple[int, ...]:
        """What erases, a value for each channel."""
        fill = self.augment.fill
        return fill if len(fill) == self.channels else (round(sum(fill) / len(fill)),) * self.channels

    @property
    def padding(self) -> int:
        """Pixels that pad-crop adds on each side: by default 4 for 32 (He et al. 2016, section 4.2)."""
        return self.size // 8 if self.crop_padding is None else self.crop_padding

    @property
    def resize(self) -> int:
        """Short side before the evaluation's centre crop, in pixels; its long side with borders."""
        whole = self.train_crop == "pad" or self.crop_mode == "border"
        return self.size if whole else int(self.size / self.crop_pct)
