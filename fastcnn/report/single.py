"""`fastcnn report`: a page about one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastcnn.config import FIELDS, flag
from fastcnn.report import words
from fastcnn.report.charts import Curves, charts_of
from fastcnn.report.evaluation import read_evaluations
from fastcnn.report.log import Log, is_number, numbers
from fastcnn.report.page import render
from fastcnn.report.pictures import Album, Picture
from fastcnn.report.run import ACTIVITIES, Run

PICTURES = {"validation.png": "Validation images: truth beside prediction", "preview.png": "Training images"}
"""Samples that a run's folder may hold."""
PICTURE_BYTES = 1_000_000
"""Max bytes of all pictures in the page."""
NOT_MEASURED = "not measured"
PLACES = {"output_dir", "resume", "config", "arch", "data"}
"""Settings that say where, and not how; arch and data are in the page's head."""


def report(run: Run, samples: Iterable[Any] = ()) -> str:
    """Return the page of a run.

    Args:
        samples: further pictures of Pillow, with the network's predictions.
    """
    album = Album(PICTURE_BYTES)
    pictures = [album.embed(picture, "Validation images: truth beside prediction") for picture in samples]
    for name, title in PICTURES.items():
        if (run.folder / name).is_file() and not (pictures and name == "validation.png"):
            pictures.append(album.add(run.folder / name, title))
    evaluations = [
        (found, _present([album.add(path, path.stem.replace("-", " ")) for path in found.pictures]))
        for found in read_evaluations(run.folder)
    ]
    chosen, given, others = settings_of(run)
    return render(
        "report.html.j2",
        charts_of(Curves(Log(run.folder), run.metric)),
        title=f"{words.plain(run.name)}: fastcnn report",
        run=run,
        cards=cards_of(run),
        shares=shares_of(run),
        throughput=throughput_of(run),
        times=times_of(run),
        evaluations=evaluations,
        samples=_present(pictures),
        skipped=album.skipped,
        chosen=chosen,
        given=given,
        others=others,
        environment=environment_of(run),
        epoch_header=epoch_header(run),
        epoch_rows=epoch_rows(run),
    )


def _present(pictures: Iterable[Picture | None]) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def cards_of(run: Run) -> list[tuple[str, str, str]]:
    """Return the main figures: name, value, remark."""
    at = run.best[1] if run.best is not None else None
    images = numbers(run.record.get("images"))
    parameters = run.record.get("parameters")
    cards = [
        (
            f"best {words.plain(run.metric or 'metric')}",
            NOT_MEASURED if run.best is None else f"{run.best[0]:.2f}%",
            "" if at is None else f"epoch {at:g}",
        ),
        ("epochs", words.epochs(run).replace("/", " of "), run.status),
        (
            "throughput",
            NOT_MEASURED if run.images_per_second is None else f"{run.images_per_second:,.0f} img/s",
            "training",
        ),
        ("time", NOT_MEASURED if run.seconds is None else words.duration(run.seconds), "in all"),
        ("bottleneck", run.bottleneck or NOT_MEASURED, ""),
    ]
    if run.metric in run.test:
        cards.insert(1, (f"test {run.metric}", f"{run.test[run.metric]:.2f}%", "held-out images"))
    if is_number(parameters):
        remark = f"{images['train']:,.0f} training images" if "train" in images else ""
        cards.append(("parameters", f"{parameters:,.0f}", remark))
    return cards


def shares_of(run: Run) -> list[tuple[str, float, int]]:
    """Return the activities with their percentage of the training time, and number in the palette."""
    return [
        (label, 100 * run.shares[name], number)
        for number, (name, label) in enumerate(ACTIVITIES.items())
        if run.shares.get(name, 0) >= 0.0005
    ]


def throughput_of(run: Run) -> list[tuple[str, str, str]]:
    """Return the throughput beside its limits, each computed from the run's own times."""
    rate, shares = run.images_per_second, run.shares
    reached = ("training", NOT_MEASURED if rate is None else f"{rate:,.0f} img/s", "")
    limits: dict[str, float | None] = {"without data wait": None, "compute alone": None}
    if rate is not None and shares:
        active = 1 - shares["synchronising"]  # throughput excludes log lines and saves
        limits["without data wait"] = _limit(rate * active, active - shares["data"])
        limits["compute alone"] = _limit(rate * active, shares["computing"])
    rows = [
        (name, NOT_MEASURED, "")
        if rate is None or limit is None
        else (name, f"{limit:,.0f} img/s", f"reached: {rate / limit:.0%}")
        for name, limit in limits.items()
    ]
    return [reached, *rows, ("peak of the machine", NOT_MEASURED, "fastcnn bench measures it")]


def _limit(rate: float, share: float) -> float | None:
    return rate / share if share > 0.001 else None


def times_of(run: Run) -> list[tuple[str, str]]:
    """Return the duration of the run and its parts."""
    setup = [s.get("setup_seconds") for s in run.sessions]
    known = setup and all(map(is_number, setup))
    parts = {
        "setup: data, trials, network": sum(setup) if known else None,  # type: ignore[arg-type]
        "epochs and validations": run.epoch_seconds,
        "in all": run.seconds if run.sessions else None,
    }
    return [(name, NOT_MEASURED if s is None else words.duration(s)) for name, s in parts.items()]


def settings_of(run: Run) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the settings: automatic ones with their reasons, others than the defaults, and the rest."""
    found: dict[str, Any] = next(
        (s["reasons"] for s in reversed(run.sessions) if isinstance(s.get("reasons"), dict)), {}
    )
    defaults = {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in FIELDS.items()
    }
    chosen, given, others = [], [], []
    for name, value in run.settings.items():
        if name in PLACES:
            continue
        if name in found:
            chosen.append((flag(name), words.value(value), words.plain(found[name], 400)))
        elif name in defaults and defaults[name] == value:
            others.append((flag(name), words.value(value)))
        else:
            given.append((flag(name), words.value(value)))
    return chosen, given, others


def environment_of(run: Run) -> list[tuple[str, str]]:
    """Return the machine and software of the latest session."""
    if not run.sessions:
        return []
    session = run.sessions[-1]
    facts = session.get("environment")
    stated = {
        "started": words.moment(run.started),
        "fastcnn": session.get("fastcnn", ""),
        "device": session.get("device", ""),
        "processes": session.get("processes", ""),
        **(facts if isinstance(facts, dict) else {}),
    }
    stated.pop("date", None)
    return [
        (words.plain(n).replace("_", " "), words.value(v)) for n, v in stated.items() if v not in ("", None)
    ]


def epoch_header(run: Run) -> list[str]:
    names = [run.metric] if run.metric is not None else []
    return [
        "epoch",
        "train loss",
        "val loss",
        *[f"val {words.plain(n)}" for n in names],
        "img/s",
        "data wait",
        "time",
    ]


def epoch_rows(run: Run) -> list[list[str]]:
    """Return the figures of each epoch: at most the latest 1,000."""

    def shown(values: object, name: str, form: str) -> str:
        found = numbers(values)
        return format(found[name], form) if name in found else words.UNKNOWN

    rows = []
    for record in run.epochs[-1000:]:
        val = record.get("val")
        rows.append(
            [
                f"{record['epoch']:g}",
                shown(record.get("train"), "loss", ".4f"),
                shown(val, "loss", ".4f"),
                *([shown(val, run.metric, ".2f")] if run.metric is not None else []),
                shown(record, "images_per_second", ",.0f"),
                shown(record, "data_wait", ".0%"),
                words.duration(numbers(record).get("seconds")),
            ]
        )
    return rows
