"""A run's folder: where it is, what is saved there and when, and how a run goes on from it."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcnn import __version__, checkpoint
from fastcnn.averaging import Average
from fastcnn.config import FIELDS, Config, to_plain, to_yaml
from fastcnn.data.bad_files import NAMED_AT_MOST, BadFiles
from fastcnn.data.batch import Loader
from fastcnn.data.sources import NAMED, Source
from fastcnn.distributed import Ranks, from_main, gather_to_all, gather_to_main, sum_over_ranks
from fastcnn.errors import UserError
from fastcnn.guard import stop_if_not_finite
from fastcnn.metrics import Metrics
from fastcnn.state import TrainState

AVERAGE = "average.pt"
LAST, BEST, BAD_FILES, PICTURE = "last.pt", "best.pt", "bad-files.txt", "validation.png"


@dataclass
class Run:
    """Saves checkpoints of one run into `folder` and remembers its best epoch."""

    folder: Path
    config: Config
    source: Source
    ranks: Ranks
    state: TrainState
    loader: Loader
    val_loader: Loader
    chosen: tuple[str, ...] = ()
    """Settings that were "auto"."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best epoch so far, and its number as "epoch"."""
    since_best: int = 0
    """Validations since."""
    average: Average = field(default_factory=Average)
    """Of the last epochs."""
    averaged: int | None = None
    """The step at which it was validated and saved."""

    def save(self, metrics: Metrics, is_best: bool = False) -> None:
        """Writes `last.pt`, and `best.pt` if this is it. All ranks call it; waits for the device.

        Raises:
            fastcnn.errors.TrainingError: a loss was infinite or NaN; nothing is written.
        """
        self._save(LAST, metrics, is_best)

    def save_average(self, metrics: Metrics, is_best: bool) -> None:
        """Writes `average.pt`, and `best.pt` if this is it, when the average is in the network."""
        self._save(AVERAGE, metrics, is_best)
        self.averaged = self.state.step

    def _save(self, name: str, metrics: Metrics, is_best: bool) -> None:
        stop_if_not_finite(self.state)
        # What differs between ranks: batch-norm statistics, random generators, the sums of this epoch.
        own = {
            "buffers": checkpoint.buffers(self.state),
            "random": checkpoint.random_state(self.state.device),
            "metrics": metrics.state().cpu(),
        }
        self.share_bad_files()
        ranks = gather_to_main(own)
        if not self.ranks.is_main:
            return
        self.write_bad_files()
        content = {
            "format": checkpoint.FORMAT,
            "fastcnn": __version__,
            "arch": self.config.arch,
            "num_classes": self.config.num_classes,
            "in_chans": self.config.in_chans,
            "img_size": self.config.img_size,
            "val_img_size": self.config.val_img_size,
            "class_names": list(self.source.class_names),
            "mean": list(self.source.mean),
            "std": list(self.source.std),
            "config": to_plain(self.config),
            "chosen": list(self.chosen),
            "best": self.best,
            "since_best": self.since_best,
            "average": self.average.state_dict(),
            "ranks": ranks,
            "loader": self.loader.state_dict(),
            "order": self._order(),
            "steps_per_epoch": self.state.schedule.steps_per_epoch,
            **checkpoint.pack_state(self.state),
        }
        checkpoint.save(self.folder / name, content, self.folder / BEST if is_best else None)

    def restore_weights(self, content: dict[str, Any]) -> None:
        """The network's and its moving average's, and how good they were."""
        checkpoint.unpack_weights(self.state, content)
        self.best = content["best"]

    def restore(self, content: dict[str, Any], metrics: Metrics) -> None:
        """Goes on from a checkpoint's content.

        The rest of an epoch is the same samples with the same crops, whatever the backend, the batch size and
        the number of processes are now; steps are counted as if they always had been so.

        Raises:
            UserError: it is in the middle of an epoch, whose order was another.
        """
        self.restore_weights(content)
        checkpoint.unpack_progress(self.state, content)
        self.since_best = content.get("since_best", 0)
        if "average" in content:
            self.average.load_state_dict(content["average"])
        changed = [
            f"{name} {old}, now {self._order()[name]}"
            for name, old in content["order"].items()
            if old != self._order()[name]
        ]
        accum, schedule = self.state.accum_steps, self.state.schedule
        epoch = int(content["epoch"])  # 9 of a run that was 9.5 epochs long, and goes on with the tenth
        self.state.step = epoch * schedule.steps_per_epoch
        at = content["loader"]
        if at["epoch"] == epoch and at["consumed"] > 0:
            if changed:
                was = "; ".join(changed)
                raise UserError(f"--resume: saved in the middle of an epoch with {was}: go on with the same")
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
        """The best as it was saved with the average of a run that ended at this step, if it came to that."""
        path = self.folder / AVERAGE
        content = checkpoint.load(path) if path.exists() else {"step": None}
        return content["best"] if content["step"] == step else None

    def restore_best(self) -> None:
        """Puts the weights of the best epoch into the network; `last.pt` stays. All ranks call it."""
        path = self.folder / BEST
        if path.exists() and self.best:
            self.state.network.load_state_dict(checkpoint.load(path)["weights"])

    def share_bad_files(self) -> None:
        """Tells all ranks what any of them found bad since the last time. All ranks call it.

        Raises:
            UserError: together they are more than allowed.
        """
        if sum_over_ranks([sum(len(bad.news) for bad in self._bad())], self.state.device) == [0]:
            return
        for bad in self._bad():
            for reasons in gather_to_all({sample: bad.reasons[sample] for sample in bad.news}):
                bad.learn(reasons)
            bad.news.clear()
            bad.check_all()

    def bad_lines(self) -> list[str]:
        """What a person should know of them at the start."""
        lines = []
        for bad in self._bad():
            if bad:
                lines += [f"bad {bad.phase} image: {line}" for line in bad.lines()[:NAMED_AT_MOST]]
                fate = "replaced by others of their class" if bad.phase == "training" else "left out"
                lines.append(f"{len(bad):,} of {len(bad.split):,} {bad.phase} images are bad and {fate}")
        return lines

    def write_bad_files(self) -> None:
        """Lists them in the run's folder, if there are any."""
        lines = [f"{bad.phase}\t{line}\n" for bad in self._bad() for line in bad.lines()]
        if lines:
            (self.folder / BAD_FILES).write_text("".join(lines))

    def _bad(self) -> tuple[BadFiles, BadFiles]:
        return self.loader.bad, self.val_loader.bad

    def _order(self) -> dict[str, Any]:
        """What the samples' order depends on."""
        return {
            "--seed": self.config.seed,
            "--aug-repeats": self.config.aug_repeats,
            "training images": self.source.train.fingerprint,
        }


def data_name(data: str) -> str:
    """A short name of `--data` for folders."""
    return data if data in NAMED else Path(data).expanduser().resolve().name


def choose_folder(config: Config) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to go on from, if any.

    Raises:
        UserError: the folder holds another run, or the checkpoint is not there.
    """
    told = Path(config.output_dir).expanduser() if config.output_dir != "auto" else None
    if config.resume == "auto":
        folder = told or _numbered(config, newest=True)
        return folder, folder / LAST if (folder / LAST).is_file() else None
    path: Path | None = None
    if config.resume is not None:
        path = Path(config.resume).expanduser()
        path = path / LAST if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"--resume {config.resume}: no such checkpoint; write the path of a {LAST}")
    folder = told or (path.parent if path is not None else _numbered(config, newest=False))
    if (folder / LAST).exists() and (path is None or folder.resolve() != path.parent.resolve()):
        raise UserError(
            f"--output-dir {folder}: holds a run already; add --resume to go on with it, or write another"
        )
    return folder, path


def check_resumable(content: dict[str, Any], config: Config, source: Source, path: Path) -> None:
    """UserError if a checkpoint belongs to another network, optimizer or other classes."""
    network = ("arch", "num_classes", "in_chans", "head", "head_hidden", "anchors", "strides")
    for name in (*network, "opt", "model_ema", "backbone_lr_scale", "layer_decay"):
        then, now = content["config"].get(name, FIELDS[name].default), to_plain(config)[name]
        if then != now:
            raise UserError(f"--resume {path}: its {name} is {then}, this run's is {now}; write the same")
    if content["class_names"] != list(source.class_names):
        raise UserError(f"--resume {path}: its classes are not those of --data {config.data}; write the same")


def claim_folder(folder: Path, config: Config) -> Path:
    """Makes the run's folder and saves the settings in it.

    Returns:
        The folder, or with an automatic name the next one that is free if another run has taken it since.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        if config.output_dir == "auto" and config.resume is None:
            while True:
                try:
                    folder.mkdir(parents=True)
                    break
                except FileExistsError:
                    folder = _numbered(config, newest=False)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)
    except OSError as error:
        raise UserError(
            f"--output-dir {folder}: {error.strerror}; write a folder that can be written to"
        ) from error
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Saves the settings, such that `--config` reads them back: with --lr in place of what it is from."""
    done = "resume", "lr_base", "lr_base_size", "lr_base_scale"
    usual: dict[str, Any] = {name: FIELDS[name].default for name in done}
    (folder / "config.yaml").write_text(to_yaml(dataclasses.replace(config, **usual)))


def _numbered(config: Config, newest: bool) -> Path:
    """runs/ARCH-DATA, then with -2, -3, ...: the first free one, or the last one that is taken."""
    arch = config.arch.replace("/", "-").replace(":", "-")
    base = Path("runs") / f"{arch}-{data_name(config.data)}"
    taken: Path | None = None
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not path.exists():
            return taken if newest and taken is not None else path
        taken = path
    raise AssertionError("count() is endless")
