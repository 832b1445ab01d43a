import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ensemble, posttrain, tasks
from jaxlab.posttrain import grpo, pretraining

CHAIN = tasks.compact(tasks.chain.make(tasks.chain.Config(n_steps=1, p=3, style="values")))
# Rewards that a policy which knows nothing gets half of the time.
TASK = CHAIN._replace(
    outcome=lambda problem, completion: (completion[0] % 2).astype(jnp.float32),
    reward=lambda problem, completion: completion[1].astype(jnp.float32),
)
WIDTH = 6
SMALL = {"prompts": 4, "group": 4, "evaluation_prompts": 4, "evaluation_samples": 2}


def elman(vocab_size):
    """The smallest recurrent language model; it compiles in a second."""

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"in": (vocab_size, WIDTH), "to": (WIDTH, WIDTH), "out": (WIDTH, vocab_size)}
        return {n: 0.7 * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())}

    def extend(params, state, tokens, lengths):
        def step(state, column):
            token, place = column
            new = jnp.tanh(params["in"][token] + state @ params["to"])
            if lengths is not None:
                new = jnp.where((place < lengths)[:, None], new, state)
            return new, new

        columns = (tokens.T, jnp.arange(tokens.shape[1]))
        state, hidden = jax.lax.scan(step, state, columns)
        return jnp.swapaxes(hidden @ params["out"], 0, 1), state

    return posttrain.LanguageModel(
        vocab_size, init, lambda rows: jnp.zeros((rows, WIDTH)), extend,
        lambda state, rows: state[rows],
    )  # fmt: skip


MODEL = elman(TASK.vocab_size)


def start(key, hparams):
    del hparams
    return MODEL.init(key)


def members(experiment, **numbers):
    """Four seeds at each of three learning rates as one vmapped program."""
    keys = jnp.repeat(jax.random.split(jax.random.key(0), 4), 3)
    rates = jnp.tile(jnp.asarray([0.0, 1e-3, 1e-2]), 4)
    fixed = {name: jnp.full(12, value) for name, value in numbers.items()}
    return jax.jit(jax.vmap(experiment.init))(keys, {"lr": rates, **fixed})


@pytest.fixture(scope="module")
def plain():
    return grpo.make(TASK, MODEL, start, grpo.Config(**SMALL, steps_per_update=2))


def test_seeds_and_learning_rates_are_one_program_without_the_host(plain):
    states = members(plain)
    step = jax.jit(jax.vmap(plain.update))
    before = jax.tree.map(np.asarray, states["params"])
    history = []
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            states, metrics = step(states)
            history.append(metrics)
    assert step._cache_size() == 1
    for metrics in history:
        assert all(np.isfinite(v).all() and v.shape == (12,) for v in metrics.values())
        assert (np.asarray(metrics["mismatch"]) < 1e-5).all()
        np.testing.assert_array_equal(metrics["kl"], 0)
    moved = np.asarray([
        np.abs(np.asarray(a) - b).reshape(12, -1).max(axis=1)
        for a, b in zip(jax.tree.leaves(states["params"]), jax.tree.leaves(before))
    ]).max(axis=0).reshape(4, 3)  # fmt: skip
    np.testing.assert_array_equal(moved[:, 0], 0)  # learning rate 0
    assert (moved[:, 1] > 0).all() and (moved[:, 2] > moved[:, 1]).all()
    # Members of one seed see the same problems and keys: paired.
    keys = np.asarray(jax.random.key_data(states["key"])).reshape(4, 3, -1)
    assert (keys == keys[:, :1]).all() and (keys[0] != keys[1]).any()


@pytest.mark.slow
def test_a_member_alone_is_the_member_in_the_ensemble(plain):
    states = members(plain)
    many, told = jax.jit(jax.vmap(plain.update))(states)
    one, alone = jax.jit(plain.update)(jax.tree.map(lambda x: x[5], states))
    for name in told:
        assert float(told[name][5]) == pytest.approx(float(alone[name]), abs=1e-5), name
    for a, b in zip(jax.tree.leaves(many["params"]), jax.tree.leaves(one["params"])):
        np.testing.assert_allclose(a[5], b, atol=1e-5)
    told = jax.jit(plain.evaluate)(one, jax.random.key(0))
    assert set(told) == {"test_pass_at_1", "test_pass_at_n", "test_entropy", "test_length"}
    assert 0 <= float(told["test_pass_at_1"]) <= float(told["test_pass_at_n"]) <= 1


@pytest.mark.slow
def test_equal_rewards_change_nothing():
    hopeless = TASK._replace(outcome=lambda problem, completion: jnp.float32(0))
    experiment = grpo.make(hopeless, MODEL, start, grpo.Config(**SMALL))
    state = jax.jit(experiment.init)(jax.random.key(0), {"lr": jnp.float32(0.1)})
    after, metrics = jax.jit(experiment.update)(state)
    jax.tree.map(np.testing.assert_array_equal, after["params"], state["params"])
    assert float(metrics["degenerate"]) == 1 and float(metrics["grad_norm"]) == 0


@pytest.mark.slow
def test_several_passes_over_minibatches_with_a_tie_to_the_start():
    config = grpo.Config(
        **SMALL, epochs=2, minibatches=2, kl="exact", estimator="rloo", surrogate="cispo",
        mode="seq_mean_token_sum_norm", mask_truncated=True, shaped_reward=True,
    )  # fmt: skip
    experiment = grpo.make(TASK, MODEL, start, config)
    states = members(experiment, kl_coef=0.1, entropy_coef=0.01, temperature=0.8)
    step = jax.jit(jax.vmap(experiment.update))
    states, first = step(states)
    states, second = step(states)
    for metrics in (first, second):
        assert (np.asarray(metrics["mismatch"]) < 1e-5).all()  # rows stay with their log-probs
    kl = np.asarray(second["kl"]).reshape(4, 3)
    np.testing.assert_allclose(kl[:, 0], 0, atol=1e-6)
    assert (kl[:, 2] > 1e-5).all()


@pytest.mark.slow
def test_the_first_gradient_is_reinforce_on_the_same_samples():
    """One plain gradient step of RLOO against the formula, all else taken from the rollout."""
    import optax

    config = grpo.Config(**SMALL, estimator="rloo", mode="seq_mean_token_sum")
    experiment = grpo.make(TASK, MODEL, start, config, optimizer=lambda lr: optax.sgd(lr))
    state = jax.jit(experiment.init)(jax.random.key(3), {"lr": jnp.float32(1.0)})
    after, _ = jax.jit(experiment.update)(state)
    _, collecting, _ = jax.random.split(state["key"], 3)
    drawing, sampling = jax.random.split(collecting)

    def expected(params):
        problems, prompts, _ = grpo.sample_problems(drawing, TASK, 4, "train")
        sampled, rows = grpo.sample_completions(
            sampling, TASK, MODEL, state["params"], problems, prompts, 4, TASK.solution_length
        )
        r = jax.vmap(TASK.outcome)(rows, sampled.tokens).reshape(4, 4)
        a = (4 / 3 * (r - r.mean(1, keepdims=True))).reshape(-1)
        logits = posttrain.completion_logits(MODEL, params, prompts, sampled.tokens)
        logp = jnp.sum(posttrain.token_log_probs(logits, sampled.tokens) * sampled.mask, axis=1)
        return jnp.mean(a * logp)

    ascent = jax.jit(jax.grad(expected))(state["params"])
    assert max(np.abs(slope).max() for slope in jax.tree.leaves(ascent)) > 1e-2
    for new, old, slope in zip(*map(jax.tree.leaves, (after["params"], state["params"], ascent))):
        np.testing.assert_allclose(new - old, slope, atol=2e-6)


def test_refusals():
    for field, value in (
        ("estimator", "ppo"), ("surrogate", "dpo"), ("level", "row"), ("mode", "mean"),
        ("kl", "k1"), ("prompts", 0), ("minibatches", 3), ("length", 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}: expected"):
            grpo.Config(**{field: value})
    with pytest.raises(ValueError, match='level: expected "token" with surrogate "cispo"'):
        grpo.Config(surrogate="cispo", level="sequence")
    with pytest.raises(ValueError, match="task: expected"):
        grpo.make(tasks.chain.make(), MODEL, start)


@pytest.mark.slow
def test_reward_rises_in_an_ensemble_of_rwkv7(tmp_path):
    """From imitation that stopped early to mostly right answers; twelve members, one program."""
    recipe = pretraining.Recipe(
        tasks.chain.Config(n_steps=1, p=5, style="values"), n_embd=16, steps=120, block=30
    )
    bases, _ = pretraining.pretrained(recipe, [0], tmp_path)
    experiment = grpo.make(
        pretraining.task_of(recipe),
        pretraining.model_of(recipe),
        lambda key, hparams: jax.tree.map(lambda leaf: leaf[0], bases),
        grpo.Config(steps_per_update=10, evaluation_prompts=32),
    )
    data = ensemble.run(
        experiment, steps=20, seeds=4, grid={"lr": [0.0, 1e-3, 3e-3]}, progress=False,
        checkpoint=tmp_path / "rl",
    )  # fmt: skip
    reward = data["reward"].mean("seed").values
    assert 0.02 < reward[0].mean() < 0.8
    assert reward[1:, -1].max() > reward[0].mean() + 0.15
    assert float(data["mismatch"].max()) < 1e-5
