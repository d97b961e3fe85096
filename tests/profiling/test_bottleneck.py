"""A run says what holds it back, and is right: bottlenecks are planted on the CPU, between processes, on a
simulated device that works a queue and, with `-m gpu`, on a real one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fastcnn
import worker_slow_ranks
from fastcnn.config import FIELDS, Config, OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import ImageLoader, Loader
from fastcnn.engine.epoch import Callbacks, LogInterval, train_epoch
from fastcnn.engine.nonfinite import FiniteGuard
from fastcnn.engine.state import Normalized, TrainState, build_state, unfreeze
from fastcnn.models import build
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.profiling.bottleneck import Diagnosis, Headroom, Timing, diagnose
from fastcnn.profiling.clock import CudaClock, HostClock
from fastcnn.profiling.kernel_trace import KernelTrace
from fastcnn.profiling.step_timer import StepTimer
from fastcnn.transfer.freeze import Frozen
from ranks import run_ranks
from training import TASK, batches

CONFIG = Config(
    device="cuda",
    batch_size=32,
    workers=4,
    data_backend="torch",
    compile="off",
    amp_dtype="bf16",
    log_interval=50,
)
ROOM = Headroom(
    cores=8, images=50_000, can_cache=False, threads_help=True, can_compile=True, can_record=False
)
CPU = torch.device("cpu")


class Network(nn.Module):
    """A small one that calls `during` in each forward pass."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)
        self.during = during

    def forward(self, x: Tensor) -> Tensor:
        self.during()
        return self.linear(x.mean((2, 3)))


def state_of(network: nn.Module, device: torch.device = CPU) -> TrainState:
    optimizer = build_optimizer(network.to(device), OptimizerSettings(weight_decay=1e-3), lr=0.05)
    schedule = Schedule(peak=0.05, steps_per_epoch=100, epochs=1, kind="constant")
    return build_state(network, optimizer, schedule, mean=[0.5] * 3, std=[0.25] * 3)


def loader_of(batch: Batch, steps: int, before: Callable[[], None] = lambda: None) -> Loader:
    def load() -> Iterator[Batch]:
        for _ in range(steps):
            before()
            yield batch

    return cast(Loader, load())


def measure(
    state: TrainState,
    loader: Loader,
    interval: int,
    on_step: Callable[[], None] = lambda: None,
    on_log: Callable[[], None] = lambda: None,
    epochs: int = 1,
) -> Timing:
    """Of all windows but the first."""
    seen: list[Timing] = []

    def log(interval: LogInterval) -> bool:
        seen.append(interval.timing)
        on_log()
        return False

    callbacks = Callbacks(on_log=log, on_step=on_step)

    for _ in range(epochs):
        train_epoch(
            state, TASK, loader, TASK.metrics(state.device), log_interval=interval, callbacks=callbacks
        )
    return sum(seen[1:], Timing())


def diagnosis_of(
    *timings: Timing, room: Headroom = ROOM, chosen: tuple[str, ...] = (), **settings: Any
) -> Diagnosis:
    return diagnose(timings, dataclasses.replace(CONFIG, **settings), chosen, room)


# On the CPU, where device and host are one.


def nap() -> None:
    time.sleep(0.03)  # many times what a step of the small network takes


PLANTS: dict[str, dict[str, Any]] = {
    "data": {"load": nap},
    "computing": {"during": nap},
    "synchronising": {"on_step": nap},
    "synchronising at log lines": {"on_log": lambda: time.sleep(0.12)},
}


@pytest.mark.timing
@pytest.mark.parametrize("plant", PLANTS)
def test_on_the_cpu_what_is_slow_is_named(plant):
    slow = dict(PLANTS[plant])
    state = state_of(Network(slow.pop("during", lambda: None)))
    (batch,) = batches(1)
    timing = measure(state, loader_of(batch, 16, slow.pop("load", lambda: None)), interval=4, **slow)
    found = diagnosis_of(timing, device="cpu")
    assert found.bound is not None
    assert found.bound == plant.split()[0], (timing, found)
    assert timing.shares()[found.bound] > 0.6
    assert timing.launching == timing.communication == 0
    assert timing.steps == 12


@pytest.mark.timing
def test_a_log_line_at_the_end_of_an_epoch_counts_too():
    (batch,) = batches(1)
    loader = cast(Loader, [batch] * 4)
    timing = measure(state_of(Network()), loader, 4, on_log=lambda: time.sleep(0.1), epochs=3)
    assert diagnosis_of(timing, device="cpu").bound == "synchronising"


@pytest.mark.timing
def test_a_window_of_any_length_is_measured_by_its_first_steps():
    state = state_of(Network())
    state.timer = StepTimer(HostClock(), at_most=3)
    (batch,) = batches(1)
    timing = measure(state, loader_of(batch, 20), interval=10, on_log=lambda: time.sleep(0.2))
    assert timing.steps == 3
    assert 0.05 < timing.synchronising < 0.1  # 3 of 10 steps bear 3 tenths of the log line


@pytest.mark.timing
@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="the system does not tell")
def test_a_core_that_others_use_too_is_noticed():
    def spin() -> None:
        end = time.perf_counter() + 0.03
        while time.perf_counter() < end:
            pass

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread, and of the processes that it starts
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        (batch,) = batches(1)
        timing = measure(state_of(Network(spin)), loader_of(batch, 20), interval=5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, cores)
    assert 0.3 < timing.cpu_contention / timing.seconds < 1
    assert " CPU contention: " in diagnosis_of(timing, device="cpu").sentence


@pytest.mark.timing
def test_measuring_costs_microseconds_a_step():
    timer = StepTimer(HostClock())

    def steps() -> float:
        start = time.perf_counter()
        for _ in range(500):
            timer.before_data()
            timer.before_step()
            timer.after_allreduce()
            timer.after_step()
        timer.read(500)
        return (time.perf_counter() - start) / 500

    cost = min(steps() for _ in range(5))
    print(f"{1e6 * cost:.1f} microseconds a step")
    assert cost < 200e-6


# On a device that works a queue.


class Device:
    """Simulated: kernels run in order, none before it was queued. Its time and the host's pass as told, so
    what is measured is exact."""

    def __init__(self, room: int = 10**9) -> None:
        self.now = self.free = 0.0
        self.room = room
        self.queue: deque[float] = deque()
        self.traced: float | None = None
        self.traces = self.stalls = 0

    def spend(self, seconds: float) -> None:
        """The host does something."""
        self.now += seconds

    def launch(self, seconds: float) -> None:
        if len(self.queue) == self.room:
            self.now = max(self.now, self.queue.popleft())  # the host waits for room
        self.free = max(self.free, self.now) + seconds
        self.queue.append(self.free)
        if self.traced is not None:
            self.traced += seconds

    def wait(self) -> None:
        self.now = max(self.now, self.free)

    def mark(self) -> float:
        return max(self.free, self.now)

    def seconds(self, first: float, second: float) -> float:
        return second - first

    def reuse(self) -> None:
        pass

    def host(self) -> float:
        return self.now

    def cpu_contention(self) -> float:
        return 0.0

    def stall_device(self, seconds: float) -> bool:
        self.stalls += 1
        self.launch(seconds)
        return True

    def passed(self, mark: float) -> bool:
        return mark <= self.now

    def start_trace(self) -> None:
        self.traces += 1
        self.traced = 0.0

    def stop_trace(self) -> float | None:
        seconds, self.traced = self.traced, None
        return seconds


MS = 1e-3


def simulate(*seconds: float, **settings: float) -> Timing:
    """`simulate_on` a device with room for all launches of steps of ten kernels."""
    return simulate_on(Device(), 10, *seconds, **settings)


def simulate_on(
    device: Device,
    launches: int,
    queueing: float,
    kernel: float,
    load: float = 0.0,
    copy: float = 0.0,
    save: float = 0.0,
    log: float = 0.0,
    throttled: float = 1.0,
    unfrozen: float = 1.0,
) -> Timing:
    """Steps of `launches` kernels, each queued in `queueing` and done in `kernel` seconds.

    Args:
        load: seconds that the host waits for a batch, copy: that the device then copies it.
        save: of the host after each step, log: after each window of ten.
        throttled: factor of the kernels' time from the sixth window on, unfrozen: the same, after unfreezing.
    """
    steps = 0

    def forward() -> None:
        nonlocal steps
        steps += 1
        for _ in range(launches):
            device.spend(queueing)
            device.launch(kernel * (throttled * unfrozen if steps > 50 else 1))

    def before() -> None:
        device.spend(load)
        device.launch(copy)

    class Guard(FiniteGuard):
        def wait(self) -> None:
            device.wait()

    network = Network(forward)
    state = state_of(network)
    state.guard = Guard(CPU)
    state.timer = StepTimer(device)

    def on_log() -> None:
        device.spend(log)
        if steps == 50 and unfrozen != 1:
            state.frozen = Frozen(network, [])
            unfreeze(state)

    (batch,) = batches(1)
    return measure(state, loader_of(batch, 200, before), 10, lambda: device.spend(save), on_log)


LONG: dict[str, float] = {"queueing": 0.1 * MS, "kernel": 1 * MS}
SHORT: dict[str, float] = {"queueing": 1 * MS, "kernel": 0.1 * MS}
SIMULATED: dict[str, tuple[dict[str, float], str, float]] = {
    "kernels are long": (LONG, "computing", 1),
    "kernels are short": (SHORT, "launching", 9.9 / 10.9 - 0.01),
    "half of a step is launching": ({"queueing": 1 * MS, "kernel": 0.5 * MS}, "launching", 0.49),
    "the queue hides the loader": ({**LONG, "load": 8 * MS}, "computing", 0.94),
    "the device runs dry": ({**LONG, "load": 50 * MS}, "data", 41 / 51),
    "launching hides no loader": ({**SHORT, "load": 20 * MS}, "data", 2 / 3),
    "copies take long": ({**LONG, "copy": 30 * MS}, "data", 3 / 4),
    "each step is saved": ({**LONG, "save": 50 * MS}, "synchronising", 41 / 51),
    "the queue hides the bar": ({**LONG, "save": 8 * MS}, "computing", 0.98),
    "log lines take long": ({**LONG, "log": 900 * MS}, "synchronising", 0.9),
    "the device gets slower": ({**LONG, "throttled": 1.3}, "computing", 0.95),
    "more layers train": ({**LONG, "unfrozen": 3}, "computing", 1),
    "more layers train, in short kernels": ({**SHORT, "unfrozen": 3}, "launching", 0.7),
}
"""What happens, what bounds it, and its share of the time."""


@pytest.mark.parametrize("case", SIMULATED)
def test_on_a_device_with_a_queue_what_starves_it_is_named(case):
    settings, bound, share = SIMULATED[case]
    timing = simulate(**settings)
    found = diagnosis_of(timing)
    assert found.bound is not None
    assert found.bound == bound, (timing.shares(), found)
    assert timing.shares()[found.bound] == pytest.approx(share, abs=0.03)
    assert timing.communication == 0


MANY: dict[str, tuple[float, float, str, float]] = {
    "kernels are long": (0.01 * MS, 0.02 * MS, "computing", 1),
    "kernels are short": (0.02 * MS, 0.002 * MS, "launching", 0.9),
    "kernels are a little shorter": (0.02 * MS, 0.015 * MS, "launching", 0.25),
}


@pytest.mark.parametrize("case", MANY)
def test_steps_of_more_launches_than_the_queue_takes_are_traced(case):
    queueing, kernel, bound, share = MANY[case]
    device = Device(room=1024)
    timing = simulate_on(device, 3000, queueing, kernel)
    found = diagnosis_of(timing)
    assert found.bound == bound, (timing.shares(), found)
    assert timing.shares()[bound] == pytest.approx(share, abs=0.03)
    assert device.stalls == 1  # no other is tried
    assert device.traces == 5  # of 20 log intervals: 1, 2, 4, 8 and 16


def test_steps_that_the_queue_takes_are_not_traced():
    device = Device(room=1024)
    simulate_on(device, 500, **SHORT)
    assert (device.stalls, device.traces) == (5, 0)


def test_a_trace_counts_the_kernels_of_the_trainings_stream(monkeypatch):
    def event(stream: int, microseconds: float, device: str = "CUDA", annotation: bool = False) -> Any:
        return SimpleNamespace(
            device_type=getattr(torch.autograd.DeviceType, device),
            device_resource_id=stream,
            is_user_annotation=annotation,
            time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        )

    class Profile:
        active = False

        def __init__(self, activities: list[Any]) -> None: ...

        def start(self) -> None:
            if Profile.active:
                raise RuntimeError("profiler is already enabled on this thread")
            Profile.active = True

        def stop(self) -> None:
            Profile.active = False

        def events(self) -> list[Any]:
            training, nccl = [event(7, 200.0), event(7, 300.0)], [event(20, 5000.0)]
            return [*training, *nccl, event(7, 9000.0, annotation=True), event(7, 400.0, "CPU")]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    trace = KernelTrace()
    assert trace.stop() is None
    trace.start()
    assert trace.stop() == pytest.approx(500e-6)
    assert trace.stop() is None
    Profile.active = True  # the user's own
    trace.start()
    assert trace.stop() is None


def test_figures_are_what_would_be_reached():
    slow, fast = (simulate(0.1 * MS, 1 * MS, load) for load in (50 * MS, 0))
    images = 32 * slow.steps / slow.seconds
    without = 32 * fast.steps / fast.seconds
    found = re.search(
        r"delivers ([\d,]+) img/s, the model could process ([\d,]+)\.", diagnosis_of(slow).sentence
    )
    assert found is not None
    given, taken = (float(figure.replace(",", "")) for figure in found.groups())
    assert given == pytest.approx(images, rel=0.01)
    assert taken == pytest.approx(without, rel=0.05)


# On a GPU.


def test_events_are_made_once_and_never_waited_for(monkeypatch):
    made = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            made.append(self)
            self.milliseconds = 0.0

        def record(self) -> None:
            self.milliseconds += 1500.0 * len(made)

        def query(self) -> bool:
            return False

        def elapsed_time(self, other: Event) -> float:
            return other.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = StepTimer(CudaClock())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    for _ in range(5):
        for _ in range(4):
            timer.before_data()
            timer.before_step()
            timer.after_step()
        timer.read(4)
    assert len(made) == 3 * 4
    clock = CudaClock()
    assert clock.seconds(clock.mark(), clock.mark()) == pytest.approx(1.5)


def on_the_gpu(
    arch: str | None = None,
    cycles: int = 0,
    queueing: float = 0.0,
    load: float = 0.0,
    save: float = 0.0,
    log: float = 0.0,
) -> Timing:
    """Steps of a network, or such whose forward pass keeps the device busy for `cycles` and queues ten small
    operations with `queueing` seconds before each; `load`, `save` and `log` are the host's seconds."""
    device = torch.device("cuda", 0)
    few = torch.zeros(8, device=device)

    def forward() -> None:
        if cycles:
            torch.cuda._sleep(cycles)
        for _ in range(10):
            time.sleep(queueing)
            few.add_(1)

    def look() -> None:
        torch.cuda.set_sync_debug_mode("default")
        time.sleep(log)
        torch.cuda.set_sync_debug_mode("error")

    (batch,) = batches(1)
    batch = Batch(*(tensor.to(device) for tensor in batch[:3]))
    state = state_of(Network(forward) if arch is None else build(arch, num_classes=10), device)
    state.guard = LooseGuard(device)
    loader = loader_of(batch, 40, lambda: time.sleep(load))
    try:
        return measure(state, loader, 10, lambda: time.sleep(save), look)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class LooseGuard(FiniteGuard):
    """Waits where waiting is an error elsewhere."""

    def wait(self) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().wait()
        torch.cuda.set_sync_debug_mode("error")


LONG_ON_GPU = {"cycles": 30_000_000}  # 15 ms at 2 GHz


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        (LONG_ON_GPU, "computing"),
        ({"queueing": 2e-3}, "launching"),
        ({"arch": "resnet20"}, "launching"),  # eager, of eight images of 32 px
        ({**LONG_ON_GPU, "load": 5e-3}, "computing"),
        ({**LONG_ON_GPU, "load": 0.15}, "data"),
        ({**LONG_ON_GPU, "save": 5e-3}, "computing"),
        ({**LONG_ON_GPU, "save": 0.15}, "synchronising"),
        ({**LONG_ON_GPU, "log": 1.5}, "synchronising"),
    ],
)
def test_on_a_gpu_what_starves_it_is_named_without_waiting_for_it(settings, bound):
    timing = on_the_gpu(**settings)
    assert diagnosis_of(timing).bound == bound, timing


# Between processes.


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[Timing]]:
    """Of two processes, by what is slow."""
    return run_ranks(worker_slow_ranks.results)[0]


@pytest.mark.slow
@pytest.mark.timing
def test_a_slow_exchange_of_gradients_is_named(ranks):
    assert diagnosis_of(*ranks["reduce"], device="cpu").bound == "communication"
    for timing in ranks["reduce"]:
        assert timing.communication > 0.1 * timing.steps
        assert timing.data < 0.2 * timing.communication


@pytest.mark.slow
@pytest.mark.timing
def test_the_rank_that_the_others_wait_for_is_named_with_what_holds_it_up(ranks):
    slow_loader = diagnosis_of(*ranks["loader of rank 1"], device="cpu")
    assert slow_loader.bound == "data"
    assert re.match(r"Bottleneck: rank 1, for which the others wait \d\d% of the time", slow_loader.sentence)
    slow_network = diagnosis_of(*ranks["network of rank 1"], device="cpu")
    assert slow_network.bound == "computing"
    assert "Bottleneck: rank 1" in slow_network.sentence
    assert "It computes longest" in slow_network.sentence


@pytest.mark.timing
def test_of_accumulated_batches_only_the_last_exchange_counts(ranks):
    for timing in ranks["accumulated"]:  # an exchange takes 0.1 s, a forward pass 0.2 s
        assert 0.1 < timing.communication / timing.steps < 0.2


@pytest.mark.timing
def test_after_unfreezing_it_is_another_gradient_that_comes_last(ranks):
    for timing in ranks["unfrozen"]:  # an exchange takes 0.1 s, the backward pass before the classifier 0.2 s
        assert 0.1 < timing.communication / timing.steps < 0.2
        assert timing.computing / timing.steps > 0.2


# What it says.


def of(**seconds: float) -> Timing:
    return Timing(steps=100, **seconds)


def test_the_sentences(wording):
    message = diagnosis_of(of(data=8.0, computing=2.0)).sentence
    assert "--data-backend" in message
    wording(message)
    message = diagnosis_of(of(launching=3.0, computing=1.0)).sentence
    assert "--compile" in message
    wording(message)
    message = diagnosis_of(of(synchronising=3.0, computing=7.0)).sentence
    assert "--log-interval" in message
    wording(message)
    message = diagnosis_of(of(communication=2.0, computing=2.0)).sentence
    assert "--batch-size" in message
    wording(message)
    wording(diagnosis_of(of(data=0.5, synchronising=0.3, computing=9.2), compile="on").sentence)
    waiting = of(communication=5.0, computing=5.0)
    message = diagnosis_of(waiting, waiting, of(data=5.0, computing=5.0), waiting).sentence
    assert "--data-backend" in message
    wording(message)


def test_a_loader_that_shares_the_cores_says_so(wording):
    slow = of(data=5.0, computing=5.0)
    room = dataclasses.replace(ROOM, cores=2, can_cache=True)
    message = diagnosis_of(slow, device="cpu", room=room).sentence
    assert "--data-backend" in message
    wording(message)
    room = dataclasses.replace(room, cores=1, can_cache=False)
    wording(diagnosis_of(slow, device="cpu", workers=1, room=room, chosen=("data_backend",)).sentence)


def test_a_crowded_processor_is_said_beside_the_bound():
    assert diagnosis_of(of(data=0.1, computing=9.9, cpu_contention=5.3), compile="on") == Diagnosis(
        "computing",
        "Bottleneck: compute: 99% of the time. "
        "CPU contention: the main thread waits for a core 53% of the time.",
        avoidable=True,
    )
    assert not diagnosis_of(of(data=0.1, computing=9.9, cpu_contention=0.3), compile="on").avoidable


def test_what_cannot_be_told_is_not_told():
    assert diagnosis_of(Timing()) == Diagnosis(None, "The run was too short to find its bottleneck.")
    assert diagnosis_of(of(computing=1.0), device="mps").bound is None


SLOW = {
    "data": of(data=5.0, computing=5.0),
    "computing": of(computing=10.0),
    "launching": of(launching=5.0, computing=5.0),
    "synchronising": of(synchronising=5.0, computing=5.0),
    "communication": of(communication=5.0, computing=5.0),
}
ADVICE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("data", {}, {"can_cache": True}, "--data-backend cached or --workers 8"),
    ("data", {"workers": 8}, {"can_cache": True}, "--data-backend cached"),
    ("data", {"workers": 8, "chosen": ("data_backend",)}, {}, ""),
    ("data", {"data_backend": "cached"}, {"can_cache": True, "threads_help": False}, "--data-backend auto"),
    ("data", {"data_backend": "synthetic"}, {"threads_help": False}, ""),
    ("computing", {}, {}, "--compile on"),
    ("computing", {}, {"can_compile": False}, ""),
    ("computing", {"compile": "on", "channels_last": "off"}, {}, "--channels-last auto"),
    ("computing", {"compile": "on", "amp_dtype": "fp32"}, {}, "--amp-dtype auto"),
    ("computing", {"device": "cpu", "amp_dtype": "fp32", "chosen": ("amp_dtype",)}, {}, ""),
    ("computing", {"compile": "on", "deterministic": True}, {}, "--no-deterministic"),
    ("launching", {"compile": "on"}, {}, "--batch-size 64"),
    ("launching", {}, {"images": 60}, "--compile on"),
    ("launching", {}, {"can_record": True}, "--compile on or --cuda-graph or --batch-size 64"),
    ("launching", {"compile": "on", "cuda_graph": True}, {"can_record": True}, "--batch-size 64"),
    ("launching", {"compile": "on", "amp_dtype": "fp16"}, {"can_record": True}, "--batch-size 64"),
    ("synchronising", {"log_interval": 1, "checkpoint_steps": 5}, {}, "--log-interval 10 or --checkpoint-st"),
    ("synchronising", {"checkpoint_minutes": 0.5}, {"images": 640}, "--checkpoint-minutes 5"),
    ("communication", {"grad_accum_steps": 4}, {}, "--batch-size 64 or --grad-accum-steps 8"),
    ("communication", {}, {"images": 60}, ""),
]


@pytest.mark.parametrize(("bound", "settings", "room", "advice"), ADVICE)
def test_advice_fits_the_run(bound, settings, room, advice):
    found = diagnosis_of(SLOW[bound], room=dataclasses.replace(ROOM, **room), **settings)
    assert found.bound == bound
    assert f"Try {advice}" in found.sentence if advice else "Try" not in found.sentence
    for name in re.findall(r"--(?:no-)?([a-z-]+)", found.sentence):
        assert name.replace("-", "_") in FIELDS


# In a whole run.

QUICK = ("--arch", "lenet5", "--amp-dtype", "fp32", "--data-backend", "torch", "--log-interval", "5")


@pytest.fixture
def slow_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageLoader.__iter__

    def slow(self: ImageLoader) -> Iterator[Batch]:
        for batch in real(self):
            time.sleep(0.05 if self.sampler.train else 0)
            yield batch

    monkeypatch.setattr(ImageLoader, "__iter__", slow)


@pytest.mark.timing
def test_a_run_says_it_after_the_first_epoch_and_at_its_end(train, demo, one_core, slow_loader, capsys):
    assert train(*QUICK, "--data", demo, "--batch-size", "16", "--epochs", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    said = [i for i, line in enumerate(lines) if line.startswith("Bottleneck: data: the loader delivers ")]
    assert len(said) == 2
    assert lines[said[0] - 1].startswith("epoch 1/3  train")
    assert said[1] == len(lines) - 2
    for number, line in enumerate(Path("runs/lenet5-shapes/metrics.jsonl").read_text().splitlines()):
        record = json.loads(line)
        assert set(record["shares"]) == set(SLOW)
        assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert number == 0 or record["shares"]["data"] > 0.5  # the first interval includes start-up


@pytest.mark.timing
def test_a_run_that_computing_bounds_says_so_once(train, demo, one_core, monkeypatch, capsys):
    real = Normalized.forward

    def slow(self: Normalized, images: Tensor, mix: Tensor | None = None) -> object:
        time.sleep(0.1 if self.training else 0)
        return real(self, images, mix)

    monkeypatch.setattr(Normalized, "forward", slow)
    monkeypatch.setattr(HostClock, "cpu_contention", lambda self: 0.0)
    flags = ("--data", demo, "--data-backend", "cached", "--batch-size", "16", "--epochs", "2")
    assert train(*QUICK, *flags) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^Bottleneck: compute: \d+%", out, re.MULTILINE)) == 1
    assert out.count("Bottleneck:") == 1


@pytest.mark.timing
def test_fit_hands_the_verdict_over(tmp_path, monkeypatch, demo, one_core, slow_loader, wording):
    monkeypatch.chdir(tmp_path)
    settings = {"arch": "lenet5", "data": demo, "data_backend": "torch", "amp_dtype": "fp32", "epochs": 1}
    assert fastcnn.fit(**settings, batch_size=16, log_interval=5).verdict.startswith("Bottleneck: data: ")
    short = fastcnn.fit(**settings, batch_size=16)
    wording(short.verdict)
