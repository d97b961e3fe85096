"""fastcnn.bench: workers, rooflines, the ablation and its report."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

from fastcnn.bench import ablation, ablation_report, roofline, trace
from fastcnn.bench.ablation import BASELINE, OWN, VARIANTS, Settings
from fastcnn.bench.roofline import Ceilings, Operation, Probe
from fastcnn.bench.training_steps import Optimizations, Workload, build_step
from fastcnn.bench.worker import (
    Start,
    Worker,
    WorkerError,
    WorkerLimitError,
    calls_of_a_turn,
    cpu_contention,
    time_workers,
)
from fastcnn.cli import arguments, main
from fastcnn.errors import UserError
from fastcnn.runtime import environment, machine

CPU = torch.device("cpu")
LENET = Settings(arch="lenet5")


# Workers


def counting(limit: int | None = None):
    """A step that returns how often it was called, and fails after `limit`."""
    calls = [0]

    def step() -> torch.Tensor:
        calls[0] += 1
        if limit is not None and calls[0] > limit:
            raise ValueError(f"call {calls[0]}\nmore lines")
        return torch.tensor(float(calls[0]))

    return step


@pytest.mark.slow
def test_workers_build_a_step_time_it_and_answer():
    with Worker(counting, CPU) as one, Worker(counting, CPU, first_calls=2) as two:
        assert one.start.losses == [1, 2, 3]
        assert two.start.losses == [1, 2]
        seconds = time_workers({"one": one, "two": two}, rounds=3, warmup=1, calls=2)
        assert {name: len(values) for name, values in seconds.items()} == {"one": 3, "two": 3}
        assert all(value > 0 for value in seconds["one"])
        assert float(one.call(call)) == 3 + 4 * 2 + 1
        assert float(two.call(call)) == 2 + 4 * 2 + 1


def call(step):
    return step()


def spinning_on_one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def step() -> None:
        end = time.perf_counter() + 0.03
        while time.perf_counter() < end:
            pass

    return step


@pytest.mark.timing
@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="the system does not tell")
def test_a_worker_knows_whether_others_use_its_core():
    others = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", others]) for _ in range(3)]
    try:
        with Worker(spinning_on_one_core, CPU) as worker:
            worker.turn(15)
            assert 0.3 < worker.call(cpu_contention) < 1
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_one_line():
    with pytest.raises(WorkerError, match=r"^ValueError: call 1 \(test_ablation.py:\d+\)$"):
        Worker(partial(counting, 0), CPU)
    with Worker(partial(counting, 3), CPU) as worker, pytest.raises(WorkerError, match="call 4"):
        worker.turn()


@pytest.mark.slow
def test_a_worker_that_dies_is_told():
    with Worker(counting, CPU) as worker, pytest.raises(WorkerError, match="ended with status 7"):
        worker.call(die)


def die(step):
    import os

    os._exit(7)


def sleeping(seconds: float):
    """A step whose every call takes so long."""
    return partial(time.sleep, seconds)


@pytest.mark.slow
def test_a_start_or_an_answer_beyond_the_limit_ends_the_process():
    begin = time.monotonic()
    with pytest.raises(WorkerLimitError, match=r"^took longer than 0\.5 s$"):
        Worker(partial(sleeping, 60), CPU, limit=0.5)
    with Worker(partial(sleeping, 0.01), CPU, limit=5) as worker:
        worker._limit = 0.5
        for _ in range(2):  # and it is said again
            with pytest.raises(WorkerLimitError):
                worker.turn(1000)
        assert not worker.is_alive()
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_first_calls_that_take_long_are_fewer():
    with Worker(partial(sleeping, 1.1), CPU, first_calls=10) as worker:
        assert len(worker.start.first_seconds) == 3


# The roofline


def test_operations_are_counted_with_their_flops_and_bytes():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    (product,) = roofline.count(lambda: (a @ b).relu())
    assert product == Operation(2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4), "float32")


def test_a_step_s_operations_are_those_of_its_layers_forward_and_backward():
    step = build_step(Workload("lenet5_relu", 32, 2, "cpu"), Optimizations())
    operations = roofline.count(step)
    # Two convolutions and three linear layers; the first one's input needs no gradient.
    assert sum(o.flops for o in operations) == 2 * 2 * (3 * CONVOLUTIONS - FIRST + 3 * LINEAR)


def test_the_gradients_of_a_grouped_convolution_are_not_those_of_a_dense_one():
    x, w = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    forward, backward = roofline.count(lambda: torch.conv2d(x, w, padding=1, groups=8).sum().backward())
    assert forward.flops == 2 * 2 * 8 * 36 * 9
    assert backward.flops == 2 * forward.flops


FIRST = 28 * 28 * 6 * 25 * 3
CONVOLUTIONS = FIRST + 10 * 10 * 16 * 25 * 6
LINEAR = 400 * 120 + 120 * 84 + 84 * 1000


def test_the_bound_takes_the_longer_of_computing_and_moving_for_each_operation():
    ceilings = Ceilings(100.0, {"float32": 1000.0, "bfloat16": 4000.0})
    operations = [Operation(5000, 100, "float32"), Operation(4000, 300, "bfloat16")]
    assert roofline.lower_bound(operations, 0, ceilings) == 5 + 3
    assert roofline.lower_bound([], 10, ceilings) == 10 * 20 / 100


@pytest.mark.parametrize(
    ("cubic", "side"),
    [
        (1e-12, 2048),  # seconds of a product for side ** 3: as of a fast processor
        (1e-9, 512),
        (1e-6, 64),  # emulated
    ],
)
def test_a_product_grows_until_it_takes_long_enough(monkeypatch, cubic, side):
    now, made = [0.0], []

    def make(size: int) -> Probe:
        def call() -> torch.Tensor:
            now[0] += cubic * size**3
            return torch.empty(())

        made.append(size)
        return Probe(call, 2 * size**3)

    found = roofline.grow(make, roofline.PRODUCT_SIDES["cpu"], clock=lambda: now[0])
    assert found.work == 2 * side**3
    assert made == [size for size in roofline.PRODUCT_SIDES["cpu"] if size <= side]


def test_probes_know_their_work(monkeypatch):
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 500)
    monkeypatch.setattr(roofline, "LONG_ENOUGH", 0)
    copied, product = roofline.copy("cpu"), roofline.product("cpu", "float32")
    assert (copied.work, product.work) == (1000, 2 * 64**3)
    assert copied().shape == (125,)
    assert product().shape == (64, 64)


# The ladder


class FakeWorker:
    """Takes as long as its switches say, without a process."""

    closed: list[str] = []
    built: list[str] = []
    cpu_contention = 0.0
    alive = True

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds, self.name = seconds, name
        FakeWorker.built.append(name)
        self.start = Start(0.5, [(2.0 if name == "compile" else 1.0) + seconds], [2.0, 1.0], 100)

    def turn(self, calls: int = 1) -> float:
        return self.seconds

    def call(self, question):
        if question is trace.measure:
            return [
                trace.Cost(
                    name="mm",
                    shapes="2x2 float32",
                    calls=1,
                    seconds=self.seconds,
                    flops=0,
                    bytes=10**9,
                    dtype="float32",
                )
            ]
        if question is cpu_contention:
            return FakeWorker.cpu_contention
        if question is roofline.work_of:
            return 10**9
        return [Operation(10, 10**9, "float32")]

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        FakeWorker.closed.append(self.name)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Climb:
    """Ablation in which the named variants take the given seconds, and all others as long as the best."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.built: list[Optimizations] = []
        self.contents: list[dict] = []

    def __call__(
        self, settings: Settings = LENET, fails: str = "", slow: str = "", clock=lambda: 0.0, **seconds: float
    ):
        seconds = {name.replace("_", " "): value for name, value in seconds.items()}

        def worker(problem, switches, device, limit, name=BASELINE):
            self.built.append(switches)
            if name == fails:
                raise WorkerError("out of memory")
            if name == slow:
                raise WorkerLimitError(f"took longer than {limit:g} s")
            return FakeWorker(seconds.get(name, 1.0), name)

        self.monkeypatch.setattr(ablation, "_worker", worker)
        self.monkeypatch.setattr(ablation, "Worker", lambda *args, **kwargs: FakeWorker(0.1, "ceiling"))
        self.monkeypatch.setattr(FakeWorker, "closed", [])
        self.monkeypatch.setattr(FakeWorker, "built", [])
        self.contents = list(map(copy.deepcopy, ablation.run_ablation(settings, clock)))
        return {rung["name"]: rung for rung in self.contents[-1]["rungs"]}


@pytest.fixture
def rungs(monkeypatch, with_bf16) -> Climb:
    return Climb(monkeypatch)


def test_what_is_faster_stays_on_and_what_is_not_goes(rungs):
    found = rungs(bf16=0.5, fused_optimizer=0.4)
    kept = [name for name, rung in found.items() if rung.get("kept")]
    assert kept == [BASELINE, "bf16", "fused optimizer"]
    assert found["bf16"]["switches"]["channels_last"] is False  # it was not faster
    assert found["fused optimizer"]["switches"]["bf16"] is True
    assert found["bf16"]["speedup"]["median"] == 2
    assert found["fused optimizer"]["speedup"]["median"] == 2.5
    assert list(found) == [*VARIANTS, OWN]


def test_the_largest_costs_are_those_of_the_best_step(rungs):
    rungs(bf16=0.5)
    *before, last = rungs.contents
    assert len(before) == len(VARIANTS) + 1
    assert all("costs" not in content for content in before)
    (cost,) = last["costs"]["largest"]
    assert (last["costs"]["of"], last["costs"]["seconds"], cost["seconds"]) == ("bf16", 0.5, 0.5)
    assert cost["floor_seconds"] == pytest.approx(1e9 / last["roofline"]["copy_bytes_per_second"])
    _, line = ablation_report.cost_lines(last)
    assert line.split()[:2] == ["500.00", "100%"]
    assert line.endswith("mm 2x2 float32")


def test_figures_taken_beside_other_work_are_not_to_be_trusted(rungs, monkeypatch, wording):
    rungs()
    assert ablation_report.contention_lines(rungs.contents[-1]) == []
    monkeypatch.setattr(FakeWorker, "cpu_contention", 0.31)
    rungs()
    (line,) = ablation_report.contention_lines(rungs.contents[-1])
    assert " 31% " in line
    wording(line)


def test_a_recorded_step_is_traced_without_its_recording(rungs, monkeypatch):
    monkeypatch.setattr(ablation, "choose_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(environment, "environment", lambda device: {})
    rungs(Settings(arch="lenet5", batch_size=4), CUDA_graph=0.5)
    assert rungs.contents[-1]["costs"]["of"] == "CUDA graph"
    assert [switches.cuda_graph for switches in rungs.built[-2:]] == [True, False]
    assert FakeWorker.closed.index("CUDA graph") < FakeWorker.closed.index(BASELINE)


def test_a_step_that_cannot_be_traced_costs_nothing_else(rungs, monkeypatch, wording):
    usual = FakeWorker.call

    def call(worker, question):
        if question is trace.measure:
            raise WorkerError("no memory for the trace")
        return usual(worker, question)

    monkeypatch.setattr(FakeWorker, "call", call)
    assert rungs(bf16=0.5)["bf16"]["kept"]
    (line,) = ablation_report.cost_lines(rungs.contents[-1])
    wording(line)


def test_compilation_pays_off_after_as_many_steps_as_win_its_seconds_back(rungs):
    found = rungs(compile=0.9)
    # 0.5 s to build and a first call that takes longer than a usual one: by 1 s, and by 2 with compilation.
    # In each step 0.1 s are won.
    assert found["compile"]["start_seconds"] == pytest.approx(2.5)
    assert found["compile"]["payoff_steps"] == pytest.approx(10)
    assert found["channels-last"]["payoff_steps"] is None


def test_a_rung_that_fails_is_named_and_the_others_are_measured(rungs, wording):
    found = rungs(fails="bf16", fused_optimizer=0.5)
    wording(found["bf16"]["left_out"])
    assert found["fused optimizer"]["kept"]


def test_a_turn_on_a_gpu_takes_half_a_second_of_the_slowest_step():
    def calls(seconds: float, device: str) -> int:
        worker = FakeWorker(seconds, BASELINE)
        worker.start.first_seconds = [9.0, seconds]
        return calls_of_a_turn(cast(Worker, worker), torch.device(device))

    assert calls(0.2, "cpu") == 1
    assert [calls(seconds, "cuda") for seconds in (2.0, 0.2, 0.1, 0.001)] == [2, 2, 5, 10]


def test_what_has_nothing_to_swap_is_not_measured_with_accelerate(wording):
    def why_not(arch: str) -> str:
        problem = Workload(arch, 32, 2, "cuda")
        rung = ablation.Variant(name="accelerate", optimizations=Optimizations())
        return ablation.why_skipped(rung, Settings(arch=arch), torch.device("cuda"), problem)

    wording(why_not("resnet20"))
    assert why_not("alexnet") == why_not("mobilenet_v2") == why_not("timm/convnext_tiny") == ""


def test_what_needs_a_gpu_says_so_on_a_cpu(rungs, wording):
    found = rungs(Settings(arch="lenet5", device="cpu"))
    wording(found["CUDA graph"]["left_out"])
    wording(found["bf16 weights"]["left_out"])
    quick = rungs(Settings(arch="lenet5", device="cpu", quick=True))
    wording(quick["compile"]["left_out"])


@pytest.mark.parametrize(
    ("settings", "minutes"),
    [
        (Settings(arch="lenet5", device="cpu", minutes=2), 2),
        (Settings(arch="lenet5", device="cpu", quick=True), ablation.QUICK_MINUTES),
        (Settings(arch="lenet5", device="cpu", quick=True, minutes=2), 2),
    ],
)
def test_no_rung_begins_after_the_time_limit(rungs, settings, minutes):
    ticks = iter([0.0, *[60.0 * minutes] * 3, *[60.0 * minutes + 1] * 99])
    found = rungs(settings, clock=lambda: next(ticks))
    reason = f"time limit of {minutes:g} min reached (--minutes)"
    late = [name for name, rung in found.items() if rung.get("left_out") == reason]
    assert "bf16" in late
    assert BASELINE not in late
    assert "seconds" in found[OWN]


def test_the_first_and_the_last_rung_are_measured_however_late_it_is(rungs):
    ticks = iter([0.0, *[1e9] * 99])
    found = rungs(Settings(arch="lenet5", device="cpu", minutes=0.01), clock=lambda: next(ticks))
    assert [name for name, rung in found.items() if "seconds" in rung] == [BASELINE, OWN]


@pytest.mark.parametrize("dead", [BASELINE, "bf16"])
def test_a_ladder_ends_with_what_everything_is_compared_with(rungs, monkeypatch, dead):
    turn = FakeWorker.turn

    def fails(worker: FakeWorker, calls: int = 1) -> float:
        if worker.name == dead and "fused optimizer" in FakeWorker.built:
            worker.alive = False
            raise WorkerLimitError("took longer than 600 s")
        return turn(worker, calls)

    monkeypatch.setattr(FakeWorker, "turn", fails)
    with pytest.raises(UserError, match=f"^--arch lenet5: {dead} took longer than 600 s$"):
        rungs(bf16=0.5)


def test_what_has_no_ceiling_counts_as_float32():
    operations = [Operation(4000, 0, "bfloat16")]
    assert roofline.lower_bound(operations, 0, Ceilings(1.0, {"float32": 1000.0})) == 4
    cost = trace.Cost(name="mm", shapes="", calls=1, seconds=1.0, flops=4000, bytes=1, dtype="bfloat16")
    assert cost.floor(1e9, {"float32": 1000.0}) == 4


def test_without_bf16_nothing_is_measured_in_it_and_the_reason_is_printed(rungs, without_bf16):
    found = rungs(Settings(arch="mobilenet_v2", device="cpu"))
    assert "channels-last" in found
    for name in ("bf16", "bf16, our kernels", "bf16 weights"):
        assert found[name]["left_out"] == machine.NO_BF16
    assert not any(switches.bf16 for switches in rungs.built)
    bound = rungs.contents[-1]["roofline"]
    assert list(bound["least_seconds"]) == ["fp32"]
    assert list(bound["product_flops_per_second"]) == ["float32"]
    head = ablation_report.head(rungs.contents[-1])
    assert head.endswith(f"TFLOP/s in fp32; {machine.NO_BF16}")


def test_with_bf16_both_ceilings_are_printed(rungs):
    rungs()
    assert re.search(
        r" at [\d.]+ TFLOP/s in fp32, [\d.]+ TFLOP/s in bf16$", ablation_report.head(rungs.contents[-1])
    )


def test_a_rung_beyond_its_limit_is_left_out_and_a_baseline_says_what_to_do(rungs):
    quick = Settings(arch="lenet5", device="cpu", quick=True)
    found = rungs(quick, slow="bf16", fused_optimizer=0.5)
    assert found["bf16"]["left_out"] == "failed: took longer than 20 s"
    assert found["fused optimizer"]["kept"]
    message = (
        "took longer than 20 s for 32 images of 32 px; lower --batch-size or --img-size, or omit --quick"
    )
    with pytest.raises(UserError, match=message):
        rungs(quick, slow=BASELINE)
    with pytest.raises(UserError, match="600 s for .* or --img-size$"):
        rungs(Settings(arch="lenet5", device="cpu"), slow=BASELINE)


def test_the_share_of_the_roofline_is_the_bound_over_the_time(rungs):
    found = rungs(bf16=0.5)
    assert found[BASELINE]["share_of_roofline"] > 0
    # Half the bytes in half the time.
    assert found["bf16"]["share_of_roofline"] == pytest.approx(found[BASELINE]["share_of_roofline"], rel=0.01)


@pytest.mark.parametrize(
    ("arch", "cuda", "expected"), [("resnet50", True, 224), ("resnet50", False, 64), ("lenet5", False, 32)]
)
def test_sizes_are_the_published_ones_on_a_gpu_and_small_on_a_cpu(arch, cuda, expected):
    device = torch.device("cuda" if cuda else "cpu")
    problem = ablation.describe_workload(Settings(arch=arch), device)
    assert (problem.img_size, problem.batch_size) == (expected, 256 if cuda else 32)


@pytest.mark.slow  # it compiles every variant
@pytest.mark.parametrize("native", [None, "fp32"], ids=["as it is", "without bf16"])
def test_the_command_measures_prints_writes_and_draws(tmp_path, capsys, monkeypatch, native, wording):
    if native is not None:
        monkeypatch.setenv(machine.NATIVE_DTYPES, native)
    output = tmp_path / "ladder.json"
    flags = ["--arch", "lenet5", "-b", "4", "--rounds", "3", "--quick", "--device", "cpu", "--minutes", "10"]
    assert main.main(["bench", *flags, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(output.read_text())
    assert [rung["name"] for rung in content["rungs"]] == [*VARIANTS, OWN]
    assert any(rung.get("left_out") == machine.NO_BF16 for rung in content["rungs"]) != machine.is_native(
        "bf16"
    )
    for rung in content["rungs"]:
        assert rung["name"] in printed
        assert "time limit" not in rung.get("left_out", "")
        if "left_out" not in rung:
            assert rung["seconds"]["median"] > 0
            assert rung["loss_difference"] < 2e-2
            assert rung["peak_bytes"] is None or rung["peak_bytes"] > 0
    assert len(content["costs"]["largest"]) == ablation.MAX_COSTS
    assert content["costs"]["largest"][0]["name"] in printed
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert (
        main.main(["bench", *flags, "--output", str(tmp_path / "b.json"), "--baseline", "nothing.json"]) == 2
    )
    error = capsys.readouterr().err
    assert "--baseline nothing.json: " in error
    wording.line(error, "--baseline nothing.json: ")


# The gate


@pytest.fixture
def measured(rungs) -> dict:
    content = {"what": "ladder", "problem": {"arch": "lenet5"}, "environment": {"processor": "EPYC"}}
    return {**content, "rungs": list(rungs(bf16=0.5).values())}


def slower(content: dict, name: str, factor: float) -> dict:
    content = copy.deepcopy(content)
    (rung,) = (rung for rung in content["rungs"] if rung["name"] == name)
    rung["speedup"]["median"] /= factor
    return content


def test_a_rung_that_lost_more_than_allowed_is_named(measured):
    lines, compared = ablation_report.regressions(measured, measured, 0.05)
    assert lines == []
    assert compared >= 5
    now = slower(measured, "bf16", 1.2)
    lost = ["bf16: 1.67 times eager PyTorch, 2.00 before"]
    assert ablation_report.regressions(now, measured, 0.05) == (lost, compared)
    assert ablation_report.regressions(now, measured, 0.25) == ([], compared)


def test_a_rung_that_does_not_run_any_more_is_named(measured, rungs):
    now = {**measured, "rungs": list(rungs(fails="bf16").values())}
    lines, _ = ablation_report.regressions(now, measured, 0.05)
    assert lines == ["bf16: failed: out of memory"]


def test_rungs_with_other_switches_are_not_compared(measured):
    now = slower(measured, "bf16", 2)
    for rung in now["rungs"]:
        if rung["name"] == "bf16":
            rung["switches"]["channels_last"] = True
    assert ablation_report.regressions(now, measured, 0.05)[0] == []


def test_a_baseline_of_something_else_is_refused(measured, tmp_path, wording):
    with pytest.raises(UserError, match="arch resnet18") as caught:
        ablation_report.regressions(measured, {**measured, "problem": {"arch": "resnet18"}}, 0.05)
    wording(caught.value)
    of_avx2 = {**measured, "environment": {"processor": "EPYC", "cpu_capability": "AVX2"}}
    of_avx512 = {**measured, "environment": {"processor": "EPYC", "cpu_capability": "AVX512"}}
    with pytest.raises(UserError, match="cpu_capability AVX2") as caught:
        ablation_report.regressions(of_avx512, of_avx2, 0.05)
    wording(caught.value)
    assert ablation_report.regressions(of_avx512, measured, 0.05)[0] == []  # of a file from before
    with pytest.raises(UserError, match="processor M1") as caught:
        ablation_report.regressions(measured, {**measured, "environment": {"processor": "M1"}}, 0.05)
    wording(caught.value)
    with pytest.raises(UserError) as caught:
        ablation_report.regressions(measured, {**measured, "rungs": measured["rungs"][:1]}, 0.05)
    wording(caught.value)
    other = tmp_path / "other.json"
    for text in ("[", "[]", '{"what": "kernels"}'):
        other.write_text(text)
        with pytest.raises(UserError, match="other.json") as caught:
            ablation_report.read(str(other))
        wording(caught.value)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.25", 0.25), ("0", 0.0)])
def test_shares_are_percent_or_numbers(text, share):
    assert arguments.share(text) == share


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-regression", "five"],
        ["--rounds", "2"],
        ["--device", "tpu"],
        ["--minutes", "nan"],
        ["--minutes", "inf"],
        ["--minutes", "0"],
        ["--minutes", "long"],
    ],
)
def test_bad_flags_of_bench_are_one_line(flags, capsys):
    assert main.main(["bench", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
