"""fastcnn/runtime/machine.py: how a network computes on the CPU, and what happens to freed memory."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastcnn.errors import LocalError, UserError
from fastcnn.runtime import machine
from fastcnn.setup import cpu_trials
from ranks import run_ranks

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
SHAPE = (4, 3, 8, 8)
WAYS = ["fp32 channels-last", "bf16 channels-last", "fp32 NCHW", "bf16 NCHW"]


def probe_in(monkeypatch, seconds: dict[str, float], bf16: bool = True, **told):
    """The choice where a step of each way, in the order of WAYS, takes so long."""
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32,bf16" if bf16 else "fp32")
    spans = [0.0, *itertools.chain.from_iterable((0.0, value) for value in seconds.values())]
    ticks = itertools.accumulate(itertools.chain([0.0, 0.0], spans[:1], itertools.cycle(spans[2:] + [0.0])))
    readings = iter(ticks)
    return cpu_trials.probe_arithmetic(NETWORK, SHAPE, **told, clock=lambda: next(readings))


@pytest.mark.parametrize("fastest", WAYS)
def test_the_fastest_way_is_chosen_and_the_figures_are_its_reason(monkeypatch, fastest):
    way, why = probe_in(monkeypatch, {name: 0.020 if name == fastest else 0.030 for name in WAYS})
    assert str(way) == fastest
    assert f"{fastest} 20 ms" in why
    assert all(name in why for name in WAYS)


def test_what_is_as_good_as_the_usual_way_does_not_replace_it(monkeypatch):
    way, _ = probe_in(monkeypatch, dict(zip(WAYS, (0.100, 0.097, 0.096, 0.099))))
    assert str(way) == "fp32 channels-last"


def test_without_instructions_for_bf16_it_is_not_tried(monkeypatch):
    _, why = probe_in(monkeypatch, {"fp32 channels-last": 0.02, "fp32 NCHW": 0.03}, bf16=False)
    figures, _, reason = why.partition("; ")
    assert "bf16" not in figures
    assert reason == machine.NO_BF16
    way, why = probe_in(monkeypatch, {}, bf16=False, channels_last="on")
    assert str(way) == "fp32 channels-last"
    assert why == machine.NO_BF16


def test_a_first_step_that_takes_long_is_the_only_one(monkeypatch, wording):
    ticks = iter([0.0, cpu_trials.TRIAL_LIMIT + 1])
    way, why = cpu_trials.probe_arithmetic(NETWORK, SHAPE, dtype="fp32", clock=lambda: next(ticks))
    assert str(way) == "fp32 channels-last"
    wording(why)


@pytest.mark.parametrize(("channels_last", "layout"), [("auto", "channels-last"), ("off", "NCHW")])
def test_a_dtype_that_is_asked_for_and_emulated_is_not_timed(without_bf16, channels_last, layout):
    overrides = {"dtype": "bf16", "channels_last": channels_last}
    way, why = cpu_trials.probe_arithmetic(NETWORK, SHAPE, **overrides, clock=never)
    assert (str(way), why) == (f"bf16 {layout}", machine.NO_BF16)
    assert cpu_trials.probe_compile(NETWORK, SHAPE, way, steps=10**9, clock=never) == (False, machine.NO_BF16)


def never() -> float:
    raise AssertionError("something was timed")


# Processes of the compiler


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    """Nothing was compiled in this process yet."""
    monkeypatch.setenv(machine.COMPILE_THREADS, "")
    monkeypatch.delenv(machine.COMPILE_THREADS)
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)


@pytest.mark.parametrize(("cores", "processes"), [(6, "6"), (96, "32")])
def test_the_compiler_gets_the_cores_of_this_process_and_no_more_than_torch_takes(
    monkeypatch, no_compiler, cores, processes
):
    machine.limit_compilers(cores)
    assert os.environ[machine.COMPILE_THREADS] == processes


@pytest.mark.parametrize(("own", "expected"), [(32, 6), (1, 1)])
def test_a_compiler_that_was_imported_is_limited_too(monkeypatch, no_compiler, own, expected):
    config = SimpleNamespace(compile_threads=own)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", config)
    machine.limit_compilers(6)
    assert config.compile_threads == expected


def test_the_users_number_of_compilers_stays(monkeypatch, no_compiler):
    monkeypatch.setenv(machine.COMPILE_THREADS, "20")
    machine.limit_compilers(6)
    assert os.environ[machine.COMPILE_THREADS] == "20"


# What the processor computes in


@pytest.fixture
def products(monkeypatch) -> Iterator[dict[torch.dtype, float]]:
    """Seconds of a small product by dtype, in place of real ones."""
    seconds = {torch.float32: 1e-4, torch.bfloat16: 1e-4, torch.float16: 1e-2}
    monkeypatch.setattr(machine, "product_seconds", lambda dtype: seconds[dtype])
    monkeypatch.delenv(machine.NATIVE_DTYPES, raising=False)
    machine._is_native.cache_clear()
    yield seconds
    machine._is_native.cache_clear()


@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("supported", [True, False])
def test_a_dtype_is_native_if_onednn_supports_it_and_a_product_in_it_is_fast(
    monkeypatch, products, has_onednn, supported
):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    answer = SimpleNamespace(
        _is_mkldnn_bf16_supported=lambda: supported, _is_mkldnn_fp16_supported=lambda: True
    )
    monkeypatch.setattr(torch.ops, "mkldnn", answer)
    assert machine.is_native("bf16") is (supported or not has_onednn)
    assert not machine.is_native("fp16")  # a hundred times slower, whatever was said of it
    assert machine.is_native("fp32")


def test_the_environment_says_what_is_native_and_gpus_have_all(monkeypatch, products):
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32")
    assert [machine.is_native(dtype) for dtype in machine.DTYPES] == [False, False, True]
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32,fp16")
    assert [machine.is_native(dtype) for dtype in machine.DTYPES] == [False, True, True]
    assert all(machine.is_native(dtype, torch.device("cuda")) for dtype in machine.DTYPES)


def test_a_dtype_that_nobody_knows_in_the_environment_is_one_line(monkeypatch, wording):
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32, bf16")
    assert machine.is_native("bf16")
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32,bfloat16")
    with pytest.raises(UserError) as caught:
        machine.is_native("bf16")
    wording(caught.value)


def test_this_processor_knows_in_a_moment():
    machine._is_native.cache_clear()
    begin = time.process_time()
    answers = {dtype: machine._is_native(dtype) for dtype in ("bf16", "fp16")}
    assert time.process_time() - begin < 2
    longest = 3 * machine.EMULATED * machine.product_seconds(torch.float32)
    for dtype in (dtype for dtype, native in answers.items() if native):
        assert machine.product_seconds(machine.DTYPES[dtype]) < longest


@pytest.mark.parametrize(
    ("told", "ways"),
    [
        ({"dtype": "bf16"}, ["bf16 channels-last", "bf16 NCHW"]),
        ({"channels_last": "off"}, ["fp32 NCHW", "bf16 NCHW"]),
    ],
)
def test_what_the_user_told_is_not_varied(monkeypatch, told, ways):
    way, why = probe_in(monkeypatch, {ways[0]: 0.03, ways[1]: 0.02}, **told)
    assert str(way) == ways[1]
    assert [name in why for name in WAYS] == [name in ways for name in WAYS]


def test_the_probe_leaves_the_network_as_it_was(monkeypatch):
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    cpu_trials.probe_arithmetic(NETWORK, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())
    assert all(p.grad is None and p.is_contiguous() for p in NETWORK.parameters())


FP32 = cpu_trials.Arithmetic("fp32", True)


def probe_compile(monkeypatch, steps: int, eager: float, compiled: float, first: float, fails: bool = False):
    """The choice where steps take so long on a clock that only they move."""
    now = [0.0]

    def trial(model, images, way, clock):
        taken = eager if isinstance(model, nn.Module) else first if not model else compiled
        if not isinstance(model, nn.Module):
            if fails:
                raise RuntimeError("no compiler\nmore")
            model.append("called")
        now[0] += taken
        return taken

    monkeypatch.setattr(cpu_trials, "trial_step", trial)
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: [])
    return cpu_trials.probe_compile(NETWORK, SHAPE, FP32, steps=steps)


@pytest.mark.parametrize(
    ("case", "chosen", "word"),
    [
        ({"steps": 10_000, "eager": 0.3, "compiled": 0.1, "first": 60}, False, "less than an hour"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 60}, True, "200 ms a step, 300 without"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.29, "first": 60}, False, "290 ms"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 9000}, False, "after 9000 s"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 60, "fails": True}, False, "no compiler"),
    ],
)
def test_compilation_is_tried_in_long_runs_and_kept_where_it_pays_off(monkeypatch, case, chosen, word):
    choice, why = probe_compile(monkeypatch, **case)
    assert choice is chosen
    assert word in why
    assert "\n" not in why


@pytest.mark.slow
def test_a_compiled_trial_runs(monkeypatch):
    monkeypatch.setattr(cpu_trials, "WORTH_COMPILING", 0)
    choice, why = cpu_trials.probe_compile(NETWORK, SHAPE, FP32, steps=1)
    assert choice is False  # a step never wins seconds back
    assert "without, after" in why


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again_without_asking_the_system():
    """Blocks of 64 MiB: the default allocator maps each of them anew, page by page."""
    (counts,) = run_ranks(page_faults, world_size=1)  # in a process of its own
    assert counts[-1] - counts[0] < 64 * 16_384 / 2  # without: every page of all 64 blocks


def page_faults() -> list[int]:
    """Page faults after each of 65 blocks. Some of the first ones grow the heap, until a block fits in it."""
    import resource

    machine.keep_freed_memory()
    counts = []
    for _ in range(65):
        torch.ones(16 * 2**20)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: torch.empty(2**50), "not enough memory on cpu for 4503599627370496 bytes: "),
        (lambda: np.empty(2**52, dtype=np.uint8), "not enough memory on cpu for 4.00 PiB: "),
    ],
)
def test_exhausted_memory_is_one_line_with_the_settings_that_need_less(error, message, wording):
    expected = pytest.raises(LocalError, match=f"^{message}.*--batch-size")
    with expected as caught, machine.memory_errors_named(torch.device("cpu")):
        error()
    wording(caught.value)


def test_other_errors_are_not_taken_for_exhausted_memory():
    with pytest.raises(RuntimeError, match="^shapes$"), machine.memory_errors_named(torch.device("cpu")):
        raise RuntimeError("shapes")
