"""The language-model experiment: equal sizes, disjoint text, a short run that leaves a model."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxlab import ensemble, rwkv7
from jaxlab.report import discover, load_program


@pytest.fixture(scope="module")
def lm():
    program = load_program(discover()["rwkv7_lm"])
    return __import__("sys").modules[program.run.__module__]


def test_both_models_have_one_size(lm):
    for preset in ("small", "paper"):
        config = lm.PRESETS[preset]
        ours = rwkv7.num_params(lm.model_config(config))
        assert abs(ours / lm._size(lm.baseline_config(config)) - 1) < 0.01


def test_text_is_cut_by_files_and_windows_are_its_bytes(lm):
    text = lm.standard_library(50_000)
    assert text.train.size == 50_000
    assert text.train.min() == 0 and text.held_out.max() <= 256
    rows = lm.windows(jax.numpy.asarray(text.train), jax.numpy.array([3, 100]), 5)
    np.testing.assert_array_equal(rows, [text.train[3:8], text.train[100:105]])
    # A uniform code needs log2(257) bits, and no code by frequencies needs more.
    assert 4 < lm._unigram_bits(text) < np.log2(257)


def test_sizes_that_do_not_fit_are_refused_before_a_run(lm):
    config = lm.PRESETS["small"]
    for wrong, words in (
        ({"text": 129}, "text: expected at least context"),
        ({"learning_rates": ()}, "learning_rates: expected at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(config, **wrong)
    with pytest.raises(ValueError, match="n_embd: expected a multiple of head_size 7"):
        lm.claims(replace(config, head_size=7))


@pytest.mark.slow
def test_bits_per_byte_at_the_start_are_those_of_a_guess(lm):
    config = lm.PRESETS["smoke"]
    text = lm.standard_library(20_000)
    experiment = lm.make(config, "rwkv7", text, 4)
    state = experiment.init(jax.random.key(0), {"lr": jax.numpy.float32(0.0)})
    bits = jax.jit(experiment.evaluate)(state, jax.random.key(1))["bits_per_byte"]
    assert 8.0 < bits < 9.0


@pytest.mark.slow
def test_devices_may_share_a_member(lm):
    config = replace(lm.PRESETS["smoke"], mode="fast")
    text = lm.standard_library(20_000)
    options = {"steps": 2, "seeds": 1, "grid": {"lr": [3e-3]}, "progress": False}
    alone = ensemble.run(lm.make(config, "rwkv7", text, 4), **options)
    shared = replace(config, data_parallel=2)
    spread = ensemble.run(lm.make(shared, "rwkv7", text, 4), mesh=lm._mesh(shared), **options)
    np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-4)
    with pytest.raises(ValueError, match="data_parallel: expected 1 in exact mode"):
        replace(shared, mode="exact")


@pytest.mark.slow
def test_a_short_run_leaves_a_model_that_loads(lm, tmp_path):
    config = lm.PRESETS["smoke"]
    outcome = lm.run(config, directory=tmp_path, resume=True, progress=False)
    ((claim, verdict),) = outcome.parts
    assert verdict.status == "smoke" and claim.n_seeds == 16
    params, loaded = rwkv7.load(tmp_path / "model.pth")
    assert (loaded.n_layer, loaded.n_embd, loaded.vocab_size) == (2, 32, 257)
    text = lm.standard_library(config.text)
    states = ensemble.states(
        tmp_path / "checkpoints" / "rwkv7",
        lm.make(config, "rwkv7", text, config.steps),
        {"lr": jax.numpy.float32(0)},
    )
    np.testing.assert_array_equal(params["emb"], states["train"].params["emb"][0])
