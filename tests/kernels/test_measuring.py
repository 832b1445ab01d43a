"""The benchmark and the tuner measure what they say, and write what `auto` reads."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxlab_kernels import autotune, bench, measure, reference, tuning, wkv7
from jaxlab_kernels.measure import Workload

TINY = Workload(batch=1, length=32, heads=2, width=16, dtype="float32")


@pytest.mark.slow
def test_error_sees_a_wrong_kernel_and_a_wrong_gradient():
    right = measure.operator("xla", 16)

    def faster_decay(r, logw, k, v, a, b):
        return right(r, 1.01 * logw, k, v, a, b)

    def deaf(r, logw, k, v, a, b):
        return right(r, jax.lax.stop_gradient(logw), k, v, a, b)

    assert measure.error(right, TINY) < 5e-6
    assert measure.error(faster_decay, TINY) > 1e-3
    assert measure.error(deaf, TINY) == pytest.approx(1.0)


def test_roofline_of_the_reference_shape():
    """B = 8, T = 4096, H = N = 64 in bfloat16: 1024 + 1792 bytes per token and head, and the
    decays in float32: three times 128 bytes more."""
    workload = Workload(8, 4096, 64, 64, "bfloat16")
    moved = workload.token_heads * (1024 + 1792 + 3 * 128)
    assert bench.roofline_ms(workload, "NVIDIA H200") == pytest.approx(moved / 4.8e12 * 1e3)
    assert bench.roofline_ms(workload, "cpu") is None


@pytest.mark.slow
def test_bench_prints_a_row_for_each(capsys):
    sizes = ["--batch", "1", "--length", "32", "--heads", "1", "--width", "24"]
    assert bench.main([*sizes, "--chunk", "16", "--repeats", "2", "--no-peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]
    assert [row[0] for row in rows] == ["scan", "xla", "xla_ad"]
    assert all(len(row) == len(bench.COLUMNS) and float(row[7]) < 5e-6 for row in rows)
    assert bench.main([*sizes, "--impl", "pallas_tpu", "--chunk", "16", "--no-peers"]) == 0
    assert "needs K and D in" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tuned_row_is_what_auto_runs(tmp_path, monkeypatch, capsys):
    table = tmp_path / "tuned.json"
    other = {"device_kind": "other", "width": 8, "dtype": "float32", "impl": "xla"}
    other |= {"chunk": 64, "scan_below": 2, "options": {"num_warps": 4}}
    table.write_text(json.dumps([other]))
    monkeypatch.setattr(autotune, "LENGTHS", (16,))
    monkeypatch.setattr(autotune, "candidates", lambda platform: [autotune.Candidate("xla", 64)])
    sizes = ["--batch", "1", "--length", "64", "--heads", "1", "--width", "8"]
    options = ["--dtype", "float32", "--repeats", "2", "--out", str(table)]
    assert autotune.main([*sizes, *options]) == 0
    capsys.readouterr()
    monkeypatch.setattr(tuning, "TABLE", table)
    tuning.table.cache_clear()
    try:
        assert tuning.lookup("other", 8, "float32").options == (("num_warps", 4),)
        choice = tuning.lookup(jax.devices()[0].device_kind, 16, "float32")
        assert (choice.impl, choice.chunk) == ("xla", 64)
        # A sequence of 200 tokens is padded to 256 only if the chunk is 64.
        x = jnp.zeros((1, 200, 1, 8))
        assert "[1,256,1,8]" in str(jax.make_jaxpr(wkv7)(*(x,) * 6))
    finally:
        tuning.table.cache_clear()


def test_a_single_repeat_has_no_spread():
    assert measure.median_ms(lambda: None, 1)[1] == 0


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (bench, ["--repeats", "0"], "argument --repeats: must be at least 1, got 0"),
        (
            autotune,
            ["--length", "100"],
            "--length: must be a multiple of 64, the largest chunk",
        ),
        (autotune, ["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(command, options, message, capsys):
    with pytest.raises(SystemExit):
        command.main(options)
    assert message in capsys.readouterr().err


def test_a_wrong_candidate_is_left_out(monkeypatch):
    candidates = [autotune.Candidate("wrong", 16), autotune.Candidate("xla", 16)]
    monkeypatch.setattr(autotune, "candidates", lambda platform: candidates)

    def program(candidate, workload):
        def run(r, logw, k, v, a, b):
            shift = 1e-3 if candidate.impl == "wrong" else 0.0
            return reference.scan(r, logw + shift, k, v, a, b, jnp.zeros((r.shape[0], 2, 16, 16)))

        return run

    monkeypatch.setattr(autotune, "_program", program)
    said = []
    best, _ = autotune.fastest(TINY, 2, said.append)
    assert best == candidates[1]
    assert "left out" in said[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_computes_the_same(dtype):
    pytest.importorskip("torch")
    from jaxlab_kernels.peers import torch_sequential

    inputs = measure.make_inputs(TINY._replace(dtype=dtype))
    y, _ = wkv7(*inputs, impl="scan")
    output = jnp.asarray(torch_sequential(inputs).output())
    assert jnp.abs(output - y.astype(jnp.float32)).max() < (1e-5 if dtype == "float32" else 0.1)


def test_the_threshold_of_mosaic_is_found_in_its_own_chunk(monkeypatch):
    seen = []

    def operator(impl, chunk):
        seen.append((impl, chunk))
        return lambda *inputs: inputs

    monkeypatch.setattr(autotune, "LENGTHS", (16, 32))
    monkeypatch.setattr(measure, "operator", operator)
    monkeypatch.setattr(measure, "training", lambda f: f)
    monkeypatch.setattr(measure, "time_jax", lambda *_: (1.0, None))
    best = autotune.Candidate("pallas_mosaic_gpu", 64)
    assert autotune.scan_below(TINY, best, 2) == 16
    assert set(seen) == {("pallas_mosaic_gpu", 64), ("scan", None)}
