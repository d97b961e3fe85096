"""Checkpoints of a run: saves into its folder, and the resume from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.config import Config
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader
from fastcnn.data.sources.dataset import Source
from fastcnn.engine import checkpoint
from fastcnn.engine.state import TrainState, stop_if_not_finite
from fastcnn.engine.swa import Average
from fastcnn.errors import NAMED_AT_MOST, UserError
from fastcnn.runtime.distributed import (
    Ranks,
    from_main,
    gather_to_all,
    gather_to_main,
    on_main,
    sum_over_ranks,
)
from fastcnn.tasks.metrics import Metrics

AVERAGE = "average.pt"
LAST, BEST, BAD_FILES, PICTURE = "last.pt", "best.pt", "bad-files.txt", "validation.png"


@dataclass(kw_only=True)
class Checkpointer:
    """Save checkpoints of one run into `folder`, and track its best epoch."""

    folder: Path
    config: Config
    source: Source
    ranks: Ranks
    state: TrainState
    loader: Loader
    val_loader: Loader
    test_loader: Loader | None = None
    """Loader of the held-out images, while they are evaluated."""
    chosen: tuple[str, ...] = ()
    """Settings that were "auto"."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best epoch so far, and its number as "epoch"."""
    since_best: int = 0
    """Validations since the best one."""
    average: Average = field(default_factory=Average)
    """Mean of the weights of the last epochs."""
    averaged: int | None = None
    """Step at which that mean was validated and saved."""
    check_lock: Callable[[], None] = lambda: None
    """Raises UserError if another run took over the folder; called by rank 0 before each save."""

    def save(self, metrics: Metrics, *, is_best: bool = False, alone: bool = False) -> None:
        """Write `last.pt`, and `best.pt` if it is the best. All ranks call it; waits for the device.

        Args:
            metrics: sums of the current epoch.
            alone: another rank is lost; the other ranks' statistics, generators and sums are too.

        Raises:
            TrainingError: a loss was infinite or NaN; nothing is written.
            WriteError: rank 0 cannot write it; raised on every rank.
            UserError: another run took over the folder; raised on every rank.
        """
        self._save(LAST, metrics, is_best=is_best, alone=alone)

    def save_average(self, metrics: Metrics, *, is_best: bool) -> None:
        """Write `average.pt`, and `best.pt` if it is the best, with the average in the network."""
        self._save(AVERAGE, metrics, is_best=is_best)
        self.averaged = self.state.step

    def _save(self, name: str, metrics: Metrics, *, is_best: bool, alone: bool = False) -> None:
        stop_if_not_finite(self.state)
        # State that differs between ranks: batch norm statistics, random generators, sums of this epoch.
        own = {
            "buffers": checkpoint.buffers(self.state),
            "random": checkpoint.random_state(self.state.device),
            "metrics": metrics.state().cpu(),
        }
        if alone:
            if self.ranks.is_main:
                self._write(name, [own], is_best=is_best)
            return
        self.share_bad_files()
        ranks = gather_to_main(own)
        on_main(lambda: self._write(name, ranks, is_best=is_best), self.state.device)

    def _write(self, name: str, ranks: list[dict[str, Any]], *, is_best: bool) -> None:
        """Write a checkpoint on rank 0."""
        self.check_lock()
        self._list_bad_files()
        content = checkpoint.pack(
            self.config,
            self.source,
            self.state,
            ranks=ranks,
            progress={
                "chosen": list(self.chosen),
                "best": self.best,
                "since_best": self.since_best,
                "average": self.average.state_dict(),
                "loader": self.loader.state_dict(),
                "order": self._order(),
            },
        )
        checkpoint.save(self.folder / name, content, self.folder / BEST if is_best else None)

    def restore_weights(self, content: dict[str, Any]) -> None:
        """Load the weights, their moving average and the best metrics."""
        checkpoint.unpack_weights(self.state, content)
        self.best = content["best"]

    def restore(self, content: dict[str, Any], metrics: Metrics) -> None:
        """Resume from a checkpoint's content.

        The rest of an epoch has the same samples and crops under any backend, batch size and world size.
        Steps are counted as if the current ones had always applied.

        Args:
            metrics: receives the sums of the epoch so far.

        Raises:
            UserError: it was saved in the middle of an epoch with another order of samples.
        """
        self.restore_weights(content)
        checkpoint.unpack_progress(self.state, content)
        self.since_best = content["since_best"]
        self.average.load_state_dict(content["average"])
        before, now = content["order"], self._order()
        changed = [
            f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        ]
        accum, schedule = self.state.options.accum_steps, self.state.schedule
        epoch = int(content["epoch"])  # a run of 9.5 epochs resumes within the tenth
        self.state.step = epoch * schedule.steps_per_epoch
        at = content["loader"]
        if at["consumed"] > len(self.source.train):
            raise UserError("--resume: its position is beyond the end of an epoch; use another checkpoint")
        if at["epoch"] == epoch and at["consumed"] > 0:
            if changed:
                was = "; ".join(changed)
                raise UserError(f"--resume: saved in the middle of an epoch with {was}: use the same")
            self.loader.load_state_dict(at)
            self.state.step += schedule.steps_per_epoch - self.loader.steps_left // accum
        best = from_main(lambda: self._find_average(content["step"]))
        if best is not None:
            self.best, self.averaged = best, self.state.step
        if len(content["ranks"]) == self.ranks.world_size:
            own = content["ranks"][self.ranks.rank]
            metrics.add(own["metrics"])
            checkpoint.restore_buffers(self.state, own["buffers"])
            checkpoint.restore_random_state(own["random"], self.state.device)
        elif self.ranks.is_main:
            for rank in content["ranks"]:
                metrics.add(rank["metrics"])

    def _find_average(self, step: int) -> dict[str, float] | None:
        """Return the best metrics saved with the average at this step; None without such an average."""
        path = self.folder / AVERAGE
        content = self._load(path) if path.exists() else {"step": None}
        return content["best"] if content["step"] == step else None

    def _load(self, path: Path) -> dict[str, Any]:
        return checkpoint.load(path, arch=self.config.arch)

    def restore_best(self) -> bool:
        """Load the weights of the best epoch; `last.pt` stays. All ranks call it.

        Rank 0 reads them for all: other nodes may not see its folder.

        Returns:
            Whether the folder has them; otherwise the last weights stay.
        """
        path = self.folder / BEST
        weights = from_main(lambda: self._load(path)["weights"] if path.exists() and self.best else None)
        if weights is None:
            return False
        self.state.network.load_state_dict(weights)
        if self.state.ema is not None:
            self.state.ema.restart()
        return True

    def share_bad_files(self) -> None:
        """Exchange the undecodable images found by each rank since the last call. All ranks call it.

        Raises:
            UserError: their fraction exceeds --max-bad-fraction.
        """
        if sum_over_ranks([sum(len(bad.unreported) for bad in self._bad())], self.state.device) == [0]:
            return
        for bad in self._bad():
            for reasons in gather_to_all({sample: bad.reasons[sample] for sample in bad.unreported}):
                bad.merge(reasons)
            bad.unreported.clear()
            bad.check_all()

    def bad_lines(self) -> list[str]:
        """Return the lines about undecodable images for the start of a run."""
        lines = []
        for bad in self._bad():
            if bad:
                lines += [f"undecodable {bad.phase} image: {line}" for line in bad.lines()[:NAMED_AT_MOST]]
                action = "replaced by others of their class" if bad.phase == "training" else "skipped"
                lines.append(
                    f"{len(bad):,} of {len(bad.split):,} {bad.phase} images are undecodable and {action}"
                )
        return lines

    def write_bad_files(self) -> None:
        """List the undecodable images in the run's folder, if there are any. All ranks call it.

        Raises:
            WriteError: rank 0 cannot write the list; raised on every rank.
        """
        on_main(self._list_bad_files, self.state.device)

    def _list_bad_files(self) -> None:
        """Write the list on rank 0."""
        lines = [f"{bad.phase}\t{line}\n" for bad in self._bad() for line in bad.lines()]
        if lines:
            files.write_text(self.folder / BAD_FILES, "".join(lines), "the list of undecodable images")

    def _bad(self) -> list[BadFiles]:
        loaders = self.loader, self.val_loader, self.test_loader
        return [loader.bad for loader in loaders if loader is not None]

    def _order(self) -> dict[str, Any]:
        """Return everything that determines the order of the samples."""
        return {
            "--seed": self.config.seed,
            "--aug-repeats": self.config.aug_repeats,
            "--sampler": self.config.sampler,
            "training images": self.source.train.fingerprint,
        }
