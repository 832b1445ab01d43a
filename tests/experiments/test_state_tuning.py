"""State tuning: what the rules write, what each arm may touch, a short run with its files."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.cli import main
from jaxlab.report import discover, load_program
from jaxlab.rwkv7 import state_tuning as st
from jaxlab.stats import Claim

study = sys.modules[load_program(discover()["state_tuning"]).run.__module__]
rules, arms = (sys.modules[f"{study.__package__}._state_tuning_{x}"] for x in ("rules", "arms"))
TINY = study.PRESETS["smoke"]


def test_examples_are_words_and_their_images():
    words = jnp.asarray([[0o123, 0o45], [0o123, 0o777]])
    drawn = rules.examples(words, jnp.asarray([0, 3]))
    assert [rules.text_of(row) for row in drawn.tokens] == ["123=123;045=045;", "123=456;777=222;"]
    np.testing.assert_array_equal(drawn.weight, [[0, 0, 0, 0, 1, 1, 1, 0] * 2] * 2)
    surface = jnp.arange(8)[::-1]
    turned = rules.examples(words, jnp.asarray([0, 3]), surface)
    assert rules.text_of(turned.tokens[1]) == "123=321;777=555;"


def test_held_out_rules_are_never_shown_and_words_are_disjoint():
    assert not set(rules.HELD_OUT) & set(rules.SHOWN_RULES)
    assert sorted((*rules.HELD_OUT, *rules.SHOWN_RULES)) == list(range(rules.BASE))
    pair = jax.vmap(lambda k: arms.targets(k, TINY.tuning))(jax.random.split(jax.random.key(0), 40))
    assert set(np.unique(pair.shift[:, 0])) == set(rules.SHOWN_RULES)
    assert set(np.unique(pair.shift[:, 2])) == set(rules.HELD_OUT)
    plain = np.tile(np.arange(8), (40, 2, 1))
    np.testing.assert_array_equal(pair.surface[:, (0, 2)], plain)
    np.testing.assert_array_equal(np.sort(pair.surface[:, 1], 1), plain[:, 0])
    assert (pair.surface[:, 1] != plain[:, 0]).any(axis=1).mean() > 0.9
    words = np.concatenate([pair.train, pair.validation, pair.test], axis=-1)
    assert all(len(np.unique(row)) == len(row) for row in words.reshape(-1, words.shape[-1]))


def test_tuning_batches_hold_training_words_of_the_target_and_count_images_alone():
    target = jax.tree.map(lambda x: x[2], arms.targets(jax.random.key(1), TINY.tuning))
    drawn = jax.jit(lambda t: arms.batches(jax.random.key(2), t, TINY.tuning))(target)
    assert drawn.tokens.shape == (2, 2, rules.SHOWN)
    digits = np.asarray(drawn.tokens[..., :3]) - rules.DIGIT
    words = digits @ [64, 8, 1]
    assert np.isin(words, target.train).all()
    image = np.asarray(drawn.tokens[..., 4:7]) - rules.DIGIT
    np.testing.assert_array_equal(image, (digits + int(target.shift)) % 8)
    np.testing.assert_array_equal(drawn.weight[0, 0], [0, 0, 0, 1, 1, 1, 0])


def test_steps_to_most_of_a_fall():
    falling = jnp.concatenate([jnp.linspace(1.0, 0.0, 50), jnp.zeros(50)])
    assert float(arms.steps_to(falling)) == pytest.approx(51, abs=3)
    sudden = jnp.concatenate([jnp.ones(20), jnp.zeros(80)])
    assert 20 <= float(arms.steps_to(sudden)) <= 30


@pytest.mark.slow
def test_a_prompt_of_worked_examples_is_a_state_to_go_on_from():
    """Scores from the state behind the examples are those of the whole text read at once."""
    model = TINY.small.model
    params = rwkv7.init(jax.random.key(0), model)
    shape = params["blocks"]["att"]["output"].shape
    params["blocks"]["att"]["output"] = jax.random.normal(jax.random.key(1), shape)
    params["emb"] = jax.random.normal(jax.random.key(2), params["emb"].shape)
    config = replace(TINY.tuning, test=100)
    target = jax.tree.map(lambda x: x[2], arms.targets(jax.random.key(1), config))

    @jax.jit
    def both(params):
        shots = arms.after_shots(params, model, target, 2)
        got = arms.accuracy(params, model, target, target.test, shots)
        lead = target.write(target.train[None, :2]).tokens
        written = target.write(target.test[:, None]).tokens
        prompt = jnp.concatenate([jnp.repeat(lead, len(written), 0), written[:, :4]], 1)
        out = rwkv7.generate(params, model, prompt, 3, jax.random.key(0), rwkv7.Sampler(0.0)).tokens
        return got, jnp.mean(jnp.all(out == written[:, 4:7], axis=1).astype(jnp.float32))

    got, want = both(params)
    assert float(got) == pytest.approx(float(want), abs=0.011)


def test_bits_are_compared():
    one = {"a": jnp.zeros(3), "b": jnp.ones(2)}
    assert study.same_bits(one, {"a": jnp.zeros(3), "b": jnp.ones(2)})
    assert not study.same_bits(one, one | {"a": jnp.zeros(3).at[1].set(1e-30)})


def test_claims_are_well_formed():
    for preset, config in study.PRESETS.items():
        told = study.claims(config)
        assert all(isinstance(claim, Claim) for claim in told)
        assert sum(claim.required for claim in told) == 4
        assert len({claim.digest() for claim in told}) == len(told)
        assert config.preset == preset
    with pytest.raises(ValueError, match="test: expected 512 words in all, got 513"):
        arms.Config(test=385)
    with pytest.raises(ValueError, match="weight_rates: expected as many"):
        arms.Config(weight_rates=(1e-2,))
    with pytest.raises(ValueError, match="steps: expected a multiple of 50"):
        rules.Size(steps=70)


@pytest.mark.slow
def test_a_short_run_judges_nothing_and_its_state_can_be_generated_from(tmp_path, capsys):
    outcome = study.run(TINY, directory=tmp_path, resume=True, progress=False)
    assert [verdict.status for _, verdict in outcome.parts] == ["smoke"] * 7
    data = outcome.datasets["state_tuning"]
    for target in arms.TARGETS:
        off = data[f"state; off; {target}"].values
        np.testing.assert_array_equal(off, data[f"small; zero-shot; {target}"].values)
        assert np.isfinite(data[f"decorrelated; nll; {target}"].values).all()
    assert len(outcome.notes) == 5
    place = tmp_path / "tuned"
    model = TINY.small.model
    learned = rwkv7.load_learned_state(place / "tuned.safetensors", model)
    assert learned.wkv.any()
    params, _ = rwkv7.load(place / "model.safetensors", dtype="float32")
    words = ["generate", "--weights", str(place / "model.safetensors"), "--prompt", "123="]
    words += ["--state", str(place / "tuned.safetensors"), "--temperature", "0", "--tokens", "3"]
    assert main([*words, "--vocab", str(place / "vocabulary.txt")]) == 0
    want = rwkv7.generate(
        params, model, jnp.asarray([[2, 3, 4, rules.EQUALS]]), 3, jax.random.key(0),
        rwkv7.Sampler(0.0), state=rwkv7.initial_state(model, 1, learned),
    )  # fmt: skip
    tokens = [int(t) for t in want.tokens[0] if int(t)]
    assert capsys.readouterr().out == rules.text_of(tokens) + "\n"
    assert st.init_tuned_state(model).wkv.shape == learned.wkv.shape
