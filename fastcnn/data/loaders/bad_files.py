"""Undecodable images: reported once, counted, replaced in training and masked in evaluation."""

from __future__ import annotations

import sys

import numpy as np

from fastcnn.data.sources.dataset import Split
from fastcnn.errors import NAMED_AT_MOST, BadImageError, UserError


class BadFiles:
    """Undecodable images of a split that are known to this process.

    Args:
        split: its `problems`, found in the headers, are included from the start.
        phase: "training" or "validation", for messages.
        max_fraction: tolerated fraction of the split.
        alone: single process. Otherwise the limit is checked jointly with the other ranks
            (`fastcnn.engine.checkpointer.Checkpointer.share_bad_files`).
        quiet: print no warnings.
    """

    def __init__(
        self, split: Split, phase: str, max_fraction: float, *, alone: bool = True, quiet: bool = False
    ) -> None:
        self.split = split
        self.phase = phase
        self.max_fraction = max_fraction
        self.alone = alone
        self.quiet = quiet
        self.reasons: dict[int, str] = {}
        self.same_class: dict[int, np.ndarray] = {}
        self.named = 0
        self.unreported: list[int] = []
        """Found by this process and not yet known to the other ranks."""
        self.merge(split.problems)

    def __len__(self) -> int:
        return len(self.reasons)

    def __contains__(self, sample: int) -> bool:
        return sample in self.reasons

    def merge(self, reasons: dict[int, str]) -> None:
        """Add known undecodable images and their reasons."""
        self.reasons.update(reasons)

    def find(self, sample: int, reason: str) -> None:
        """Record an undecodable image and print a warning.

        Raises:
            BadImageError: above the limit in a single process.
        """
        if sample in self.reasons:
            return
        self.reasons[sample] = reason
        self.unreported.append(sample)
        self.named += 1
        if self.named <= NAMED_AT_MOST and not self.quiet:
            print(
                f"warning: undecodable {self.phase} image: {self.line(sample)}", file=sys.stderr, flush=True
            )
        too_many_error = self.too_many_error() if self.alone else ""
        if too_many_error:
            raise BadImageError(too_many_error)

    def check_all(self) -> None:
        """Raise UserError above the limit; for images that all ranks know of."""
        too_many_error = self.too_many_error()
        if too_many_error:
            raise UserError(too_many_error)

    def too_many_error(self) -> str:
        """Return the error message if the limit is exceeded, else ""."""
        count, total = len(self), len(self.split)
        if count <= self.max_fraction * total + 1e-6:  # decimal fractions are not exact
            return ""
        known = sorted(self.reasons)
        listed = "; ".join(self.line(sample) for sample in known[:NAMED_AT_MOST])
        enough = np.ceil(1000 * count / total) / 1000
        return (
            f"--max-bad-fraction {self.max_fraction:g}: {count:,} of {total:,} {self.phase} images cannot be "
            f"decoded; fix or remove them, or use --max-bad-fraction {enough:g}: "
            f"{listed}{'; ...' if count > NAMED_AT_MOST else ''}"
        )

    def line(self, sample: int) -> str:
        line = f"{self.split.name(sample)}: {self.reasons[sample]}"
        return line.encode("utf-8", "backslashreplace").decode()  # a file name may hold any bytes

    def lines(self) -> list[str]:
        """Return one line for each undecodable image."""
        return [self.line(sample) for sample in sorted(self.reasons)]

    def replacement(self, sample: int) -> int:
        """Return the sample, or if undecodable the next good one of its class, else of any class.

        Raises:
            BadImageError: no image can be decoded.
        """
        if sample not in self.reasons:
            return sample
        label = int(self.split.labels[sample])
        if label not in self.same_class:
            self.same_class[label] = np.flatnonzero(self.split.labels == label)
        same_class, everything = self.same_class[label], range(len(self.split))
        for candidates, place in (
            (same_class, int(np.searchsorted(same_class, sample))),
            (everything, sample),
        ):
            for k in range(len(candidates)):
                other = int(candidates[(place + k) % len(candidates)])
                if other not in self.reasons:
                    return other
        raise BadImageError(f"--data: no {self.phase} image can be decoded ({self.line(sample)})")

    def replacements(self, samples: np.ndarray) -> np.ndarray:
        """Return the images to decode for samples [N], int64 [N]."""
        if not self.reasons:
            return samples.copy()
        return np.fromiter((self.replacement(s) for s in samples.tolist()), np.int64, len(samples))
