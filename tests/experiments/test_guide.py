"""Guide: the tables' closed forms, what the base reads, a short run."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain
from jaxlab.posttrain import grpo
from jaxlab.report import discover, load_program
from jaxlab.tasks import chain

guide = sys.modules[load_program(discover()["guide"]).run.__module__]
tables, lm, world = (
    sys.modules[f"{guide.__package__}._guide_{part}"] for part in ("exact", "lm", "world")
)
TINY = guide.PRESETS["smoke"].lm


def test_tables_start_where_they_should_and_guidance_reaches_the_hard_half():
    config = tables.Config(prompts=8, steps=200, block=100)
    experiment = tables.make(config)
    start = experiment.init(jax.random.key(0), {"arm": 0})
    success = np.prod(np.asarray(jax.nn.softmax(start.logits))[:, :, 0], axis=1)
    good = np.exp(2) / (np.exp(2) + 5)
    bad = np.exp(-2.5) / (np.exp(-2.5) + 5)
    np.testing.assert_allclose(success[:4], good**4, rtol=1e-5)
    np.testing.assert_allclose(success[4:], good**2 * bad**2, rtol=1e-5)

    @jax.jit
    def hard(arm):
        state = experiment.init(jax.random.key(1), {"arm": arm})
        return jax.lax.scan(lambda s, _: experiment.update(s), state, length=2)[1]["hard"][-1]

    plain, guided = float(hard(0)), float(hard(1))
    assert plain < 0.05 and guided > plain + 0.1


@pytest.mark.slow
def test_wrong_solutions_are_wrong_everywhere():
    task = TINY.task
    problems, _, _ = grpo.sample_problems(jax.random.key(0), task, 50, "train")
    right = jax.vmap(task.solution)(problems)
    wrong = world.wrong_solutions(jax.random.key(1), task, TINY.modulus, problems)
    differs = np.asarray(right != wrong)
    # Numbers at every other place, then the answer behind its marker.
    places = [0, 2, 4, 7]
    assert differs[:, places].all()
    assert not np.delete(differs, places, axis=1).any()
    np.testing.assert_array_equal(lm.is_right(right, right), 1)
    np.testing.assert_array_equal(lm.is_right(wrong, right), 0)


@pytest.mark.slow
def test_a_shorter_prompt_is_the_beginning_of_the_longest_hint():
    task = TINY.task
    problems, prompts, _ = grpo.sample_problems(jax.random.key(0), task, 5, "train")
    plain = chain.make(chain.Config(TINY.chain_steps, TINY.modulus, style="values"))
    whole = chain.make(
        chain.Config(TINY.chain_steps, TINY.modulus, style="values", hint=TINY.hints)
    )
    wide = jax.vmap(whole.prompt)(problems)
    length, each = TINY.tokens
    np.testing.assert_array_equal(jax.vmap(plain.prompt)(problems), wide[:, :length])
    lengths = world.Config.lengths(TINY, jax.random.key(2), jnp.arange(500) % 2 == 0)
    assert (lengths[1::2] == length).all()
    assert set(np.asarray(lengths[::2])) == {length + 1 + each * n for n in (1, 2, 3)}
    assert prompts.shape[1] == length + 1 + each * TINY.hints


@pytest.mark.slow
def test_hard_means_a_large_start():
    problems, _, _ = grpo.sample_problems(jax.random.key(0), TINY.task, 50, "test")
    np.testing.assert_array_equal(world.is_hard(TINY, problems), np.asarray(problems.start) >= 5)


def test_refusals():
    with pytest.raises(ValueError, match="base_steps: expected a multiple of 5, got 7"):
        world.Config(base_steps=7)
    with pytest.raises(ValueError, match="steps: expected a multiple of 10, got 15"):
        world.Config(steps=15)
    with pytest.raises(ValueError, match="groups: expected an even number, got 3"):
        world.Config(groups=3)


@pytest.mark.slow
def test_rows_to_learn_from():
    """Which groups count, behind what they are trained, and what their ratios compare."""
    config = replace(TINY, groups=4, group=3, base_steps=5)
    model = config.model
    params = jax.tree.map(lambda x: x + 0.05, model.init(jax.random.key(3)))
    collect = jax.jit(lambda arm: lm.collector(config)(jax.random.key(0), params, arm)[0])
    rows = {arm: collect(i) for i, arm in enumerate(lm.ARMS)}
    plain, _ = config.tokens
    for arm, batch in rows.items():
        guided = arm.startswith("guide") or arm == "solutions"
        assert (batch["lengths"] == plain).all() == (arm != "always hinted")
        np.testing.assert_array_equal(batch["hinted"], np.repeat([0, 0, guided, guided], 3))
        same = np.asarray(batch["prompts"][:2, :plain] == batch["prompts"][2:, :plain]).all()
        assert same == guided
    # A network that knows nothing solves nothing: all groups fail, none is mixed.
    assert not rows["filter"]["mask"].any() and not rows["guide"]["mask"].any()
    assert rows["grpo"]["mask"].any(axis=1).all()
    solutions = rows["solutions"]
    np.testing.assert_array_equal(solutions["mask"].any(axis=1), solutions["hinted"])
    np.testing.assert_array_equal(solutions["blind"], solutions["hinted"])
    np.testing.assert_array_equal(solutions["advantages"][6:], 1)
    assert rows["guide, no ratio"]["blind"][6:].all() and not rows["guide"]["blind"].any()

    def behind(batch):
        logits = posttrain.completion_logits(
            model, params, batch["prompts"], batch["tokens"], batch["lengths"]
        )
        return np.asarray(posttrain.token_log_probs(logits, batch["tokens"]))

    guide = jax.tree.map(np.asarray, rows["guide"])
    apart = np.abs(behind(guide) - guide["old"]) * (guide["tokens"] > 0)
    assert apart[:6].max() < 1e-5 and apart[6:].max() > 1e-3


def test_failed_groups_alone_are_guided(monkeypatch):
    """Rewards by a coin: a hinted group counts where the plain one of its problem failed."""
    config = replace(TINY, groups=8, group=2, base_steps=5)

    def by_parity(tokens, solutions):
        return (jnp.sum(tokens, axis=1) % 3 == 0).astype(jnp.float32)

    monkeypatch.setattr(lm, "is_right", by_parity)
    params = config.model.init(jax.random.key(3))
    batch = jax.jit(lambda: lm.collector(config)(jax.random.key(1), params, 2)[0])()
    table = np.asarray(by_parity(batch["tokens"], None)).reshape(8, 2)
    mixed, failed = table.max(1) > table.min(1), table[:4].max(1) == 0
    wanted = np.concatenate([mixed[:4], mixed[4:] & failed])
    np.testing.assert_array_equal(batch["mask"].reshape(8, -1).any(axis=1), wanted)
    assert wanted[4:].any() and (mixed[4:] & ~failed).any()


@pytest.mark.slow
def test_a_short_run_is_a_smoke_run(tmp_path):
    outcome = guide.run(guide.PRESETS["smoke"], directory=tmp_path, resume=False, progress=False)
    assert len(outcome.parts) == 6
    assert set(outcome.datasets["language model"]["arm"].values) == set(lm.ARMS)
