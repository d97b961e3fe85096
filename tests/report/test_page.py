"""Pages of a run and of a comparison: what they hold, what foreign content cannot do, a real browser."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fastcnn
from browser import CHROMIUM, Page, browser
from fastcnn.cli.main import main
from fastcnn.report.comparison import as_page, compare
from fastcnn.report.page import MAX_BYTES
from fastcnn.report.run import open_run
from fastcnn.report.single import report, throughput_of
from networks import each
from runs import QUICK_SETTINGS
from small_runs import write_run

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"arch": "lenet5"},
    "segmentation": {"arch": "unet/lenet5"},
    "detection": {"arch": "yolo/lenet5", "img_size": 32, "strides": (4,)},
}
METRICS = {"classification": "acc1", "segmentation": "miou", "detection": "map"}


class Text(HTMLParser):
    """The text of a page outside of scripts and styles, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def chart_data(page: str) -> dict[str, dict]:
    (content,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', page)
    return {chart["key"]: chart for chart in json.loads(content)}


# Runs of the three tasks


@pytest.fixture(scope="module")
def run_of(demo: Path, annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a short run of a task, trained at the first call."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def train(task: str) -> Path:
        data = demo if task == "classification" else annotated
        plain = {**QUICK_SETTINGS, "data_backend": "torch", "lr": 0.01, "epochs": 2, "log_interval": 2}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastcnn.engine.logger.Logger._draw", lambda self: None)
            patch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)
            fastcnn.fit(**plain, **TASKS[task], data=str(data), output_dir=str(folder / task))
        return folder / task

    return train


@pytest.mark.parametrize("task", each(TASKS, ["classification"]))
def test_the_report_of_a_run(run_of, task, capsys):
    folder = run_of(task)
    capsys.readouterr()  # the training's
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {folder}/report.html (")
    page = (folder / "report.html").read_text()
    assert len(page) < MAX_BYTES
    found, text = Text(page), Text(page).text
    assert f"best {METRICS[task]} " in text
    assert "2 of 2 finished" in text
    for flag, reason in (("--num-classes", "of the data"), ("--device", "no GPU found")):
        assert re.search(rf"{flag} \S+ {reason}", text), flag
    assert "--batch-size 16" in text  # the user's
    verdict = json.loads((folder / "run.json").read_text())["sessions"][-1]["verdict"]
    assert verdict.startswith("Bottleneck: ")
    assert verdict in text
    for fact in ("processor", "python 3.", "torch 2.", f"fastcnn {fastcnn.__version__}"):
        assert fact in text
    assert "peak of the machine not measured" in text
    charts = chart_data(page)
    assert {"loss", METRICS[task], "lr", "rate", "data_wait", "shares"} <= charts.keys()
    assert charts["loss"]["series"][1]["x"] == [1, 2]
    pictures = [attributes["src"] for tag, attributes in found.elements if tag == "img"]
    assert len(pictures) == (0 if task == "classification" else 1)
    assert all(source is not None and source.startswith("data:image/webp;base64,") for source in pictures)


@pytest.mark.parametrize("task", each(TASKS, ["classification"]))
def test_a_report_with_predictions(run_of, tmp_path, task):
    assert main(["report", str(run_of(task)), "--samples", "--output", str(tmp_path / "a.html")]) == 0
    found = Text((tmp_path / "a.html").read_text())
    sizes = [int(attributes["width"] or 0) for tag, attributes in found.elements if tag == "img"]
    (width,) = sizes  # in place of validation.png
    assert 6 * 224 < width <= 1600  # three pairs


def test_predictions_need_a_checkpoint(tmp_path, capsys):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    assert main(["report", str(folder), "--samples"]) == 2
    assert capsys.readouterr().err.startswith(f"fastcnn: error: fastcnn report --samples {folder}/best.pt: ")


@pytest.mark.slow
def test_runs_of_different_tasks_are_compared(run_of, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    files = "--png", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html")
    assert main(["compare", *(str(run_of(task)) for task in TASKS), *files]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^results +classification +segmentation +detection$", out, re.M)
    assert re.search(r"^best acc1 +\d+\.\d\d% +- +-$", out, re.M)
    assert re.search(r"^best miou +- +\d+\.\d\d% +-$", out, re.M)
    assert re.search(r"^arch +lenet5 +unet/lenet5 +yolo/lenet5$", out, re.M)
    assert not re.search(r"^(epochs +2 |output-dir|batch-size)", out, re.M)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800
    charts = chart_data((tmp_path / "a.html").read_text())
    assert [line["label"] for line in charts["loss"]["series"]] == list(TASKS)
    assert [line["label"] for line in charts["miou"]["series"]] == ["segmentation"]


@pytest.mark.slow
def test_runs_are_listed(run_of, capsys):
    folders = [run_of(task) for task in TASKS]
    capsys.readouterr()  # the training's
    assert main(["runs", str(folders[0].parent), "--json"]) == 0
    listed = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert {name: run["metric"] for name, run in listed.items()} == METRICS
    assert {run["status"] for run in listed.values()} == {"finished"}


# Content


def test_limits_of_the_throughput_follow_from_the_shares(tmp_path):
    run = open_run(write_run(tmp_path / "a", accuracies=(10.0,)))
    # 900 img/s in the 90% without log lines, of which 30% wait for data and 60% compute
    assert throughput_of(run)[:3] == [
        ("training", "900 img/s", ""),
        ("without data wait", "1,350 img/s", "reached: 67%"),
        ("compute alone", "1,350 img/s", "reached: 67%"),
    ]


def test_what_a_run_did_not_record_is_not_measured(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=())
    (folder / "run.json").unlink()
    text = Text(report(open_run(folder))).text
    assert "best metric not measured" in text
    assert "Diagnosis: not measured." in text
    assert "without data wait not measured" in text
    assert "No curves: the run has logged no steps yet." in text
    assert text.count("Not recorded") == 2  # reasons, environment


def test_results_of_evaluate_are_in_the_report(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / "evaluation").mkdir()
    content = {
        "kind": "evaluation",
        "metrics": {"acc1": 12.5, "loss": 1.25, "ece": None},
        "per_class": [{"name": f"class {i}", "count": 1000 + i, "f1": 50.0} for i in range(150)],
        "settings": {"val_img_size": 32},
        "undecodable": [],
        "strange": [[1], 2],
    }
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(content))
    Image.effect_noise((3000, 200), 50).save(folder / "evaluation" / "confusion.png")
    (folder / "evaluation" / "broken.png").write_bytes(b"\x89PNG\r\n")
    page = report(open_run(folder))
    text = Text(page).text
    assert "acc1 12.50% loss 1.25 ece none" in text
    assert "name count f1 class 0 1,000 50" in text
    assert "class 99 1,099" in text
    assert "class 100 " not in text
    assert "50 more rows in metrics.json" in text
    assert "Skipped broken.png: " in text
    assert page.count("data:image/webp") == 1


@pytest.mark.parametrize("content", ["{", "[]", "[" * 50_000, '{"metrics": 7, "per_class": [{}, {}]}'])
def test_a_damaged_evaluation_leaves_the_report_whole(tmp_path, content):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(content)
    assert "best acc1 10.00%" in Text(report(open_run(folder))).text


def test_pictures_stay_within_the_size_of_a_page(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / "evaluation").mkdir()
    noise = Image.merge("RGB", [Image.effect_noise((700, 700), 100) for _ in range(3)])
    noise.save(folder / "validation.png", compress_level=1)
    for name in "abc":
        (folder / "evaluation" / f"{name}.png").hardlink_to(folder / "validation.png")
    assert len(report(open_run(folder))) < MAX_BYTES


def test_a_long_run_has_a_bounded_number_of_points(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,) * 3, intervals=3000)
    page = report(open_run(folder))
    assert len(page) < MAX_BYTES
    (line,) = chart_data(page)["lr"]["series"]
    assert 500 < len(line["x"]) == len(line["y"]) <= 1000


@pytest.mark.slow
def test_many_long_runs_are_compared_within_the_size_of_a_page(tmp_path):
    runs = [open_run(write_run(tmp_path / f"run{i}", accuracies=(i,) * 3, intervals=200)) for i in range(30)]
    assert len(as_page(compare(runs))) < MAX_BYTES


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'


def hostile_run(folder: Path) -> Path:
    """Return a run all of whose texts are markup."""
    write_run(folder, accuracies=(10.0, 20.0), metric=HOSTILE, arch=HOSTILE, data=HOSTILE)
    content = json.loads((folder / "run.json").read_text())
    content["sessions"][0] |= {
        "reasons": {"batch_size": HOSTILE, HOSTILE: HOSTILE},
        "verdict": HOSTILE,
        "environment": {HOSTILE: HOSTILE, "torch": [HOSTILE]},
        "fastcnn": {"a": HOSTILE},
    }
    (folder / "run.json").write_text(json.dumps(content))
    with (folder / "config.yaml").open("a") as file:
        file.write(f"{json.dumps(HOSTILE)}: {json.dumps(HOSTILE)}\n")
    (folder / "evaluation").mkdir()
    evaluation = {"metrics": {HOSTILE: HOSTILE}, HOSTILE: [{HOSTILE: HOSTILE}], "a": {"b": {HOSTILE: 1}}}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(evaluation))
    Image.new("RGB", (9, 9)).save(folder / "evaluation" / '<b>&".png')
    return folder


def check_no_foreign_markup(page: str) -> None:
    found = Text(page)
    assert not [tag for tag, attributes in found.elements if tag == "img" and attributes.get("src") == "x"]
    assert len([tag for tag, _ in found.elements if tag == "script"]) == 3
    assert not [
        attributes for _, attributes in found.elements if any(name.startswith("on") for name in attributes)
    ]
    assert "<script>alert" not in page
    assert HOSTILE in found.text


def test_texts_of_a_run_are_no_markup(tmp_path):
    check_no_foreign_markup(report(open_run(hostile_run(tmp_path / "a<script>"))))


def test_texts_of_compared_runs_are_no_markup(tmp_path, capsys):
    folders = hostile_run(tmp_path / "a<script>"), write_run(tmp_path / "b", accuracies=(1.0,))
    assert main(["compare", *map(str, folders), "--html", str(tmp_path / "c.html")]) == 0
    check_no_foreign_markup((tmp_path / "c.html").read_text())


def test_the_page_may_run_its_own_scripts_alone(tmp_path):
    page = report(open_run(write_run(tmp_path / "a", accuracies=(10.0,))))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


@pytest.mark.parametrize("argv", [["{}"], ["{}", "{}"]])
def test_one_run_is_no_comparison(tmp_path, capsys, argv):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    assert main(["compare", *(word.format(folder) for word in argv)]) == 2
    assert "name two runs or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [("--png", "a.nonsense"), ("--png", "no/folder/a.png"), ("--html", "no/folder/a.html")]
)
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    folders = [str(write_run(tmp_path / name, accuracies=(10.0,))) for name in "ab"]
    assert main(["compare", *folders, *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fastcnn: error: {flags[0]}")
    assert err.count("\n") == 1


# A browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def opened(chromium: Page) -> Callable[..., Page]:
    """Return a function that opens a page and forgets the errors and requests of earlier ones."""

    def open_page(path: Path, **options: bool | int) -> Page:
        chromium.errors.clear()
        chromium.requests.clear()
        chromium.open(path, **options)  # type: ignore[arg-type]
        return chromium

    return open_page


INK = """(() => {
  const canvas = document.querySelector('figure[data-chart="KEY"] canvas');
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const colors = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) colors.add(data.slice(i, i + 3).join());
  return [...colors];
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_in_a_browser(run_of, opened, tmp_path, dark):
    path = tmp_path / "report.html"
    assert main(["report", str(run_of("segmentation")), "--output", str(path)]) == 0
    page = opened(path, dark=dark)
    lines = {False: ("43,121,189", "200,69,59"), True: ("90,167,232", "240,124,112")}[dark]
    for key in ("miou", "loss"):
        assert lines[1] in page.run(INK.replace("KEY", key))  # the validation's curve
    assert lines[0] in page.run(INK.replace("KEY", "lr"))
    assert page.run("document.querySelectorAll('img').length") == 1
    assert page.run("document.querySelector('img').naturalWidth") > 500
    assert not page.errors
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]


def legend(page: Page, key: str) -> dict[str, str]:
    """Return the values that a chart shows."""
    return page.run(
        f"Object.fromEntries([...document.querySelectorAll('figure[data-chart={key}] .u-series')].map("
        "row => ['.u-label', '.u-value'].map(part => row.querySelector(part).textContent)))"
    )


def test_a_chart_shows_values_under_the_cursor_and_zooms(tmp_path, opened):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 50.0, 30.0, 40.0))
    assert main(["report", str(folder)]) == 0
    page = opened(folder / "report.html")
    box = page.run(
        "document.querySelector('figure[data-chart=acc1]').scrollIntoView({block: 'center'}),"
        "document.querySelector('figure[data-chart=acc1] .u-over').getBoundingClientRect().toJSON()"
    )
    middle = box["top"] + box["height"] / 2
    assert legend(page, "acc1")["validation"] == "40.00%"  # the last one
    page.mouse("mouseMoved", box["left"] + box["width"] / 2, middle)
    assert legend(page, "acc1") == {"epoch": "2", "training": "20.00%", "validation": "50.00%"}
    assert legend(page, "loss") == {
        "epoch": "2",
        "training": "0.6667",
        "validation": "1",
    }  # one cursor for all

    scale = "(({min, max}) => [min, max])(document.querySelector('figure[data-chart=lr]').plot.scales.x)"
    assert page.run(scale) == [0, 4]
    button = {"button": "left", "buttons": 1, "clickCount": 1}
    page.mouse("mousePressed", box["left"] + box["width"] / 4, middle, **button)
    page.mouse("mouseMoved", box["left"] + box["width"] * 3 / 4, middle, **button)
    page.mouse("mouseReleased", box["left"] + box["width"] * 3 / 4, middle, **button)
    low, high = page.run(scale)
    assert (round(low, 1), round(high, 1)) == (1, 3)
    page.run("document.getElementById('reset').click()")
    page.wait_for_frames()
    assert page.run(scale) == [0, 4]

    page.run("document.querySelector('figure[data-chart=acc1]').focus()")
    page.press("Home")
    assert legend(page, "acc1")["epoch"] == "0.5"
    page.press("End")
    assert "validation: 40.00%" in page.run("document.querySelector('[data-chart=acc1] .spoken').textContent")
    assert not page.errors


@pytest.mark.parametrize("width", [360, 1200])
def test_pages_fit_the_window(tmp_path, opened, capsys, width):
    folders = [str(write_run(tmp_path / name, accuracies=(10.0, 20.0))) for name in ("a" * 60, "b")]
    html = tmp_path / "c.html"
    assert main(["compare", *folders, "--html", str(html)]) == 0
    assert main(["report", folders[0]]) == 0
    for path in (html, Path(folders[0]) / "report.html"):
        page = opened(path, width=width)
        assert page.run("document.documentElement.scrollWidth") == width
        assert not page.errors


def test_foreign_content_runs_nothing_in_a_browser(tmp_path, opened):
    folder = hostile_run(tmp_path / "a")
    assert main(["report", str(folder)]) == 0
    page = opened(folder / "report.html")
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert page.run("document.querySelectorAll('figure.chart canvas').length") >= 5
    assert not page.errors
