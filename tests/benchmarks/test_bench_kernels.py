"""benchmarks/bench_kernels.py: its plan, arithmetic and files, with timers in the place of a GPU's."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from fastcnn_kernels import dispatch
from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm
from fastcnn_kernels.support import warn_once
from runs import run_pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bench_kernels, files, sides, tables, times = map(
    importlib.import_module,
    ("bench_kernels", "kernel_report", "kernel_sides", "kernel_tables", "kernel_times"),
)

CPU = torch.device("cpu")
SMALL: dict[str, tuple[Depthwise | Norm, ...]] = {
    "net": (Norm(5, 8, 6), Depthwise(3, 2, 16, 9, count=2), Depthwise(5, 1, 8, 6)),
    "other": (Depthwise(3, 2, 16, 9),),
}
PASSES = ("forward", "input_grad", "weight_grad", "backward", "layer forward", "layer training")
ROW = {"kind", "networks", "layer", "batch", "dtype", "pass", "microseconds", "ratios"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small layers and ceilings, and a compiler that costs nothing."""
    for module in (bench_kernels, tables):
        monkeypatch.setattr(module, "NETWORKS", SMALL)
    monkeypatch.setattr(times, "COPY_BYTES", 2**12)
    monkeypatch.setattr(times, "MATRIX", 16)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def settings(tmp_path: Path, **changes):
    changes = {"networks": ("net", "other"), "batch_size": (4, 2), "dtype": "fp32", "rounds": 3, **changes}
    return bench_kernels.Settings(output=str(tmp_path / "out" / "report.json"), **changes)


def timer(sides, rounds, device):
    """Ours takes a microsecond, eager two, compiled three. Every call is made once."""
    for calls in sides.values():
        for call in calls:
            call()
    return {name: [float(i)] * rounds for i, name in enumerate(sides, 1)}


def rehearse(tmp_path: Path, clock=time.monotonic, measure=timer, **changes) -> tuple[int, dict]:
    chosen = settings(tmp_path, **changes)
    status = bench_kernels.run(chosen, CPU, measure, timer, clock)
    return status, json.loads(Path(chosen.output).read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "out" / "report.json"
    assert bench_kernels.main(settings(tmp_path)) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing was measured\n"
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 2}, "--rounds 2"),
        ({"batch_size": (256, 0)}, "--batch-size 256 0"),
        ({"minutes": 0.0}, "--minutes 0"),
        ({"networks": ("vgg",)}, "--networks vgg"),
        ({"markdown": "/nowhere.json"}, "--markdown /nowhere.json"),
    ],
    ids=["rounds", "batch size", "minutes", "networks", "markdown"],
)
def test_a_wrong_setting_is_said_in_one_line(tmp_path, changes, named, wording):
    with pytest.raises(SystemExit, match=f"^{named}: .*$") as caught:
        bench_kernels.main(settings(tmp_path, **changes))
    wording(caught.value)


@pytest.mark.parametrize(
    ("layer", "step", "megabytes"),
    [
        # Input 256 x 96 x 112 x 112, output a quarter, of two bytes each.
        (Depthwise(3, 2, 96, 112), "forward", 616.6 * 1.25),
        (Depthwise(3, 2, 96, 112), "input_grad", 616.6 * 1.25),
        (Depthwise(3, 2, 96, 112), "weight_grad", 616.6 * 1.25),
        (Depthwise(3, 2, 96, 112), "layer training", 616.6 * 1.25 * 3),
        (Norm(5, 64, 56), "forward", 102.8 * 2),
        (Norm(5, 64, 56), "backward", 102.8 * 3),
        (Norm(5, 64, 56), "layer forward", 102.8 * 2),
        (Norm(5, 64, 56), "layer training", 102.8 * 5),
    ],
)
def test_a_pass_must_move_each_of_its_tensors_once(layer, step, megabytes):
    assert sides.floor_bytes(layer, step, 256, 2) / 1e6 == pytest.approx(megabytes, rel=1e-3)


def test_the_most_important_rows_come_first(tmp_path):
    items = bench_kernels.plan(settings(tmp_path))
    steps = [(type(item.layer).__name__, item.batch, item.step) for item in items if item.what == "device"]
    first = [("Depthwise", 4, step) for step in PASSES[:3]] * 2 + [
        ("Norm", 4, s) for s in ("forward", "backward")
    ]
    assert items[0].what == "ceilings"
    assert steps[: len(first)] == first  # the layer that both networks have is there once
    norm, convolutions = [("Norm", 4, step) for step in PASSES[4:]], [("Depthwise", 4, s) for s in PASSES[4:]]
    others = [(name, 2, step) for name, _, step in first]
    assert steps[len(first) :] == [*norm, *others, *convolutions * 2]
    host = [item.step for item in items if item.what == "host"]
    assert len(host) == 9  # 3 + 2 + whole layers
    assert [item.what for item in items[1 + len(first) :]][:5] == ["host"] * 5


def test_by_default_the_depthwise_networks_come_before_those_with_norms(monkeypatch):
    monkeypatch.setattr(bench_kernels, "NETWORKS", NETWORKS)
    items = bench_kernels.plan(bench_kernels.Settings())
    assert items[1].layer == Depthwise(3, 1, 32, 112)
    assert {item.batch for item in items if item.what == "device"} == {256}


@pytest.mark.slow
def test_a_whole_run_with_timers(tmp_path, capsys):
    status, report = rehearse(tmp_path)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert set(report) == {"what", "environment", "settings", "ceilings", "rows", "host", "geometric_means"}
    assert {"torch", "triton", "commit"} <= set(report["environment"])
    # A microsecond for 2 x 4 KiB, and for 2 x 16 ** 3 operations.
    assert report["ceilings"]["copy"]["per_second"] == pytest.approx(2 * 2**12 * 1e6)
    assert report["ceilings"]["bf16 product"]["per_second"] == pytest.approx(2 * 16**3 * 1e6)
    assert len(report["rows"]) == 8 + 6 + 8
    row = report["rows"][0]
    assert set(row) == ROW | {"bytes", "share_of_copy"}
    assert row["layer"] == {"kernel": 3, "stride": 2, "channels": 16, "size": 9}
    assert (row["networks"], row["batch"], row["pass"]) == ({"net": 2, "other": 1}, 4, "forward")
    assert row["microseconds"]["eager"] == {"median": 2, "quartile_1": 2, "quartile_3": 2, "repeats": 3}
    assert row["bytes"] == 4 * 16 * (81 + 25) * 4
    assert row["share_of_copy"]["ours"] == pytest.approx(row["bytes"] / 2**13)
    assert row["share_of_copy"]["eager"] == pytest.approx(row["bytes"] / 2**14)
    training = report["rows"][9]
    assert training["pass"] == "layer training"
    assert {side: ratio["median"] for side, ratio in training["ratios"].items()} == {
        "eager": 2,
        "compiled": 3,
    }
    assert all(set(row) == ROW for row in report["host"])
    mean = {"group": "all depthwise", "pass": "forward", "batch": 4, "against": "eager", "layers": 2}
    assert {**mean, "ratio": pytest.approx(2)} in report["geometric_means"]
    assert max(map(len, printed.splitlines()[:-1])) <= 110
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "report.json")
    assert not list((tmp_path / "out").glob("*.part"))


def test_when_the_time_is_over_what_was_measured_is_there(tmp_path, capsys):
    minutes = iter(range(100))  # each look at the clock finds a minute gone
    status, report = rehearse(tmp_path, clock=lambda: 60 * next(minutes), minutes=4)
    assert status == 0
    assert report["ceilings"]
    assert [row["pass"] for row in report["rows"]] == ["forward"]
    assert "30 of 32 rows did not fit" in capsys.readouterr().out


def test_a_row_that_would_not_be_done_in_time_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(SMALL, "convolutions", SMALL["net"][1:])
    now = 0.0

    def slow(chosen, rounds, device):
        nonlocal now
        now += 50 if "compiled" in chosen else 4 if "ours" in chosen else 0
        return timer(chosen, rounds, device)

    _, report = rehearse(tmp_path, lambda: now, slow, minutes=2.5, networks=("convolutions",))
    # After the passes and the whole first layer 148 of 150 seconds are gone: the second one does not fit.
    assert [(row["pass"], row["batch"]) for row in report["rows"]] == [
        *((step, 4) for step in PASSES[:3] * 2),
        *((step, 2) for step in PASSES[:3] * 2),
        *((step, 4) for step in PASSES[4:]),
    ]


@pytest.fixture
def committed(monkeypatch):
    monkeypatch.setattr("fastcnn.runtime.environment.commit_of_code", lambda: "abc")


def test_a_run_that_was_cut_goes_on_after_what_is_there(tmp_path, committed, capsys):
    minutes = iter(range(100))
    _, first = rehearse(tmp_path, clock=lambda: 60 * next(minutes), minutes=4)
    measured: list[str] = []

    def fail_once(chosen, rounds, device):
        measured.extend(chosen)
        if len(measured) == 2:
            raise RuntimeError("out of memory")
        return timer(chosen, rounds, device)

    status, second = rehearse(tmp_path, measure=fail_once)
    assert status == 1
    assert "copy" not in measured
    assert second["ceilings"] == first["ceilings"]
    assert second["rows"][0] == first["rows"][0]
    assert "failed" in second["rows"][1]
    assert "1 rows are there" in capsys.readouterr().out
    status, third = rehearse(tmp_path)  # what failed is tried again
    assert status == 0
    assert (len(third["rows"]), len(third["host"])) == (22, 9)
    assert third["rows"][-1]["pass"] == second["rows"][1]["pass"]
    assert not list((tmp_path / "out").glob("*.old.json"))


@pytest.mark.parametrize(
    ("changes", "commit", "why"),
    [
        ({"rounds": 4}, "abc", "another rounds"),
        ({}, "abd", "another commit, abc, whose kernels differ"),
        ({}, "abc+", "no commit has"),
    ],
)
def test_a_file_of_something_else_is_kept_beside_the_new_one(
    tmp_path, committed, monkeypatch, capsys, changes, commit, why
):
    rehearse(tmp_path, networks=("other",), batch_size=(2,))
    old = (tmp_path / "out" / "report.json").read_text()
    monkeypatch.setattr("fastcnn.runtime.environment.commit_of_code", lambda: commit)
    _, report = rehearse(tmp_path, networks=("other",), batch_size=(2,), **changes)
    assert report["environment"]["commit"] == commit
    assert len(report["rows"]) == 5
    assert (tmp_path / "out" / "report.old.json").read_text() == old
    assert why in capsys.readouterr().out


def test_under_pytest_each_row_is_a_comparison_of_its_sides(tmp_path):
    chosen = settings(tmp_path, networks=("other",), batch_size=(4,))
    pairs = list(bench_kernels.rows_and_sides(bench_kernels.plan(chosen), quick=False))
    assert [(row.step, side) for row, side in pairs[5:]] == [
        ("weight_grad", "eager"),
        *(("layer forward", side) for side in ("ours", "eager", "compiled")),
        *(("layer training", side) for side in ("ours", "eager", "compiled")),
    ]
    (training, _) = pairs[-1]
    assert bench_kernels.row_name(training) == "3x3-s2-16x9x9-layer-training-batch4"
    quick = list(bench_kernels.rows_and_sides(bench_kernels.plan(settings(tmp_path)), quick=True))
    assert {row.batch for row, _ in quick} == {32}
    assert len(quick) == 2 * 12 + 10  # of 3x3, 5x5 and a norm, once each


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_under_pytest_without_a_gpu_one_test_says_so():
    output = run_pytest("bench_kernels.py", cwd=BENCHMARKS)
    assert output.count("no CUDA device here: nothing was measured") == 1
    assert "1 skipped" in output


def test_the_file_is_written_after_each_row(tmp_path):
    seen = []

    def look(sides, rounds, device):
        path = tmp_path / "out" / "report.json"
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else None)
        return timer(sides, rounds, device)

    rehearse(tmp_path, measure=look, networks=("other",), batch_size=(2,))
    assert seen == [None, None, None, 0, 1, 2, 3, 4]  # three ceilings


def test_a_wrong_result_gets_no_time(tmp_path, monkeypatch, capsys):
    def wrong(layer, step, weight):
        found = right(layer, step, weight)
        ours = found["ours"]
        broken = lambda x, dy: lambda: ours(x, dy)().index_fill(0, torch.tensor([1]), float("nan"))  # noqa: E731
        return {**found, "ours": broken} if step == "input_grad" else found

    right = sides.sides_of
    monkeypatch.setattr(times, "sides_of", wrong)
    status, report = rehearse(tmp_path, networks=("other",), batch_size=(2,))
    assert status == 1
    assert set(report["rows"][1]) == ROW - {"microseconds", "ratios"} | {"wrong"}
    assert report["rows"][1]["wrong"].startswith("1,296 of 2,592 values are off")
    assert all("ratios" in row for row in report["rows"][2:])
    assert "wrong: 1,296 of 2,592" in capsys.readouterr().out
    assert report["rows"][1]["layer"] == {"kernel": 3, "stride": 2, "channels": 16, "size": 9}


@pytest.mark.parametrize("broken", [{"copy"}, {"fp32 product"}], ids=str)
def test_a_failed_ceiling_costs_no_row(tmp_path, capsys, broken):
    def fail(sides, rounds, device):
        if sides.keys() == broken:
            raise RuntimeError("out of memory\nand more")
        return timer(sides, rounds, device)

    status, report = rehearse(tmp_path, measure=fail, networks=("other",), batch_size=(2,))
    (name,) = broken
    assert status == 1
    assert report["ceilings"][name] == {"failed": "RuntimeError: out of memory"}
    assert len(report["ceilings"]) == 3
    assert all("ratios" in row for row in report["rows"] + report["host"])
    assert {"share_of_copy" in row for row in report["rows"]} == {name != "copy"}
    assert f"{name} failed" in capsys.readouterr().out
    report["environment"] |= {"torch": "2.11", "triton": "3.6", "commit": "abc"}
    assert f"{name} failed" in tables.markdown(report)


def test_a_failure_costs_one_row(tmp_path):
    def fail(sides, rounds, device):
        if sides.keys() == {"ours", "eager"} and len(sides["ours"]) == 2:
            raise RuntimeError("out of memory\nand more")
        return timer(sides, rounds, device)

    status, report = rehearse(tmp_path, measure=fail, networks=("other",), batch_size=(2,))
    assert status == 1
    assert [row.get("failed") for row in report["rows"]] == ["RuntimeError: out of memory"] * 3 + [None] * 2
    assert bench_kernels.tables.geometric_means(report["rows"]) == report["geometric_means"]


def test_pytorch_is_never_timed_as_ours(monkeypatch):
    with times.triton_only(compile_anew=True):
        assert dispatch.wins(
            "forward", CPU, torch.bfloat16, input_size=(1, 1, 1, 1), kernel=3, stride=1, padding=(1, 1)
        )
        with pytest.raises(UserWarning, match="by PyTorch"):
            warn_once("fastcnn_kernels: depthwise convolution by PyTorch: some reason")


def test_the_gpu_waits_for_the_host_and_the_sides_take_turns(monkeypatch):
    log: list[object] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("mark")

        def elapsed_time(self, end: object) -> float:
            return 0.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep" if cycles > 0 else cycles))
    calls = {name: [functools.partial(log.append, f"{name}{i}") for i in range(2)] for name in "ab"}
    found = times.device_times(calls, 2, CPU)
    a, b = (["sleep", "mark", f"{name}0", f"{name}1", "mark"] for name in "ab")
    assert log[-22:] == [*a, *b, "wait", *b, *a, "wait"]
    assert found == {"a": [250.0, 250.0], "b": [250.0, 250.0]}


def test_the_hosts_times_are_microseconds_of_a_call():
    found = times.host_times({"ours": [lambda: time.sleep(1e-4)]}, 3, CPU)
    assert len(found["ours"]) == 3
    assert 100 <= min(found["ours"]) < 10_000


def test_the_time_of_the_first_call_is_told_if_asked_for(tmp_path):
    _, report = rehearse(tmp_path, networks=("other",), batch_size=(2,), compile_times=True)
    assert all(row["first_call_seconds"] > 0 for row in report["rows"])


def test_markdown_says_what_was_wrong_or_not_measured(tmp_path, monkeypatch, capsys):
    _, report = rehearse(tmp_path, networks=("net",), batch_size=(4,))
    report["rows"] = [row for row in report["rows"] if row["pass"] in ("forward", "layer training")]
    del report["rows"][0]["ratios"], report["ceilings"]["fp32 product"]
    del report["rows"][1]["ratios"]
    report["rows"][1]["wrong"] = "all values are off"
    report["environment"] |= {"gpu": "GPU 9", "torch": "2.11", "triton": "3.6", "commit": "abc"}
    report["ceilings"]["copy"]["per_second"] = 4.3e12
    (tmp_path / "made-up.json").write_text(json.dumps(report))
    capsys.readouterr()
    chosen = settings(tmp_path, markdown=str(tmp_path / "made-up.json"))
    assert bench_kernels.main(chosen) == 0
    facts, convolutions, norms, means = capsys.readouterr().out.strip().split("\n\n")
    assert facts.startswith("GPU 9, torch 2.11, Triton 3.6, commit abc; fp32; copy 4.3 TB/s")
    assert facts.endswith("fp32 product not measured.")
    head, rule, first, second = convolutions.splitlines()
    assert head.startswith(
        "| networks | layer, batch 4 | forward | input_grad | weight_grad | layer training"
    )
    assert rule == "| " + " | ".join(["---"] * 7) + " |"
    cells = "not measured | not measured | not measured"
    assert first.startswith(f"| net | 3x3 s2 16x9x9 | {cells} | 2.00x, 1.0 us, ")
    assert second.startswith("| net | 5x5 s1 8x6x6 | wrong | not measured | not measured | 2.00x, 1.0 us, ")
    assert norms.splitlines()[2].startswith("| net | LRN 5 8x6x6 | 2.00x, 1.0 us, ")
    assert "| all depthwise | layer training | 4 | compiled | 2 | 3.00x |" in means


def test_the_table_of_a_gpu_is_what_dispatch_reads_and_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "SHIPPED", tmp_path)
    _, report = rehearse(tmp_path, batch_size=(4,))
    report["environment"]["gpu"] = "GPU 9"
    path = files.write_dispatch(report)
    layer = dispatch.Layer("forward", "float32", 3, 2, 16, 9, 9, 1, 1)
    assert path == tmp_path / "gpu-9.json"
    assert dispatch.read(path)[layer] == {4: (1.0, 2.0)}
    assert len(dispatch.read(path)) == 6  # three passes of two layers
    for row in report["rows"]:
        row["batch"] = 32
    files.write_dispatch(report)
    assert dispatch.read(path)[layer] == {4: (1.0, 2.0), 32: (1.0, 2.0)}


@pytest.mark.gpu
def test_on_a_gpu_every_row_is_measured(tmp_path):
    chosen = settings(tmp_path, networks=("net",), batch_size=(8,), dtype="bf16", compile_times=True)
    assert bench_kernels.main(chosen) == 0
    report = json.loads(Path(chosen.output).read_text())
    assert {"gpu", "cuda", "driver", "triton"} <= set(report["environment"])
    assert set(report["ceilings"]) == {"copy", "bf16 product", "fp32 product"}
    for row in report["rows"]:
        assert set(row) == ROW | {"bytes", "share_of_copy", "first_call_seconds"}
        assert all(times["median"] > 0 for times in row["microseconds"].values())
    assert {row["pass"] for row in report["rows"]} == set(PASSES)
    assert {row["pass"] for row in report["host"]} == set(PASSES)
