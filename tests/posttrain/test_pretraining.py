import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain, tasks
from jaxlab.posttrain import pretraining

RECIPE = pretraining.Recipe(
    tasks.chain.Config(n_steps=1, p=3), n_embd=8, head_size=8, ranks=(2, 2, 2, 2), steps=4, batch=4,
    block=2, evaluation_prompts=4,
)  # fmt: skip


def test_the_digest_covers_every_number():
    seen = {RECIPE.digest()}
    others = [
        dataclasses.replace(RECIPE, **{f.name: getattr(RECIPE, f.name) * 2})
        for f in dataclasses.fields(RECIPE)
        if isinstance(getattr(RECIPE, f.name), int | float) and f.name != "compact"
        and getattr(RECIPE, f.name)
    ]  # fmt: skip
    others += [
        dataclasses.replace(RECIPE, task=tasks.chain.Config(n_steps=1, p=5)),
        dataclasses.replace(RECIPE, task=tasks.kvsum.Config()),
        dataclasses.replace(RECIPE, compact=False),
        dataclasses.replace(RECIPE, ranks=(2, 2, 2, 4)),
        dataclasses.replace(RECIPE, weight_decay=0.1),
    ]
    for other in others:
        assert other.digest() not in seen
        seen.add(other.digest())
    assert RECIPE.digest() == dataclasses.replace(RECIPE).digest()
    with pytest.raises(ValueError, match="steps: expected a multiple"):
        dataclasses.replace(RECIPE, steps=5)
    with pytest.raises(ValueError, match="batch: expected at least 1"):
        dataclasses.replace(RECIPE, batch=0)


@pytest.mark.slow
def test_models_are_trained_once(tmp_path):
    params, curves = pretraining.pretrained(RECIPE, [3, 5], tmp_path)
    (place,) = tmp_path.iterdir()
    assert place.name.startswith("chain-" + RECIPE.digest())
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    again, same = pretraining.pretrained(RECIPE, [3, 5], tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    np.testing.assert_array_equal(curves["nll"], same["nll"])
    # A finished run leaves its checkpoints alone.
    assert all(before.get(p) == p.stat().st_mtime_ns for p in place.rglob("*.npz"))
    head = params["head"]
    assert head.shape[0] == 2 and not np.array_equal(head[0], head[1])
    model, task = pretraining.model_of(RECIPE), pretraining.task_of(RECIPE)
    assert model.vocab_size == task.vocab_size == head.shape[1]
    one = jax.tree.map(lambda leaf: leaf[0], params)
    logits, _ = posttrain.prefill(model, one, jnp.ones((1, task.prompt_length), int))
    assert np.isfinite(logits).all()


def test_only_what_the_model_writes_is_learned():
    task = tasks.kvsum.make(tasks.kvsum.Config(turns=2))

    def mask_of(task):
        def one(key):
            problem, _ = task.sample(key)
            return problem, tasks.policy_mask(task, problem, task.solution(problem))

        return jax.jit(one)(jax.random.key(0))

    _, mask = mask_of(task)
    assert mask.tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0]
    stack = tasks.stack.make()
    problem, mask = mask_of(stack)
    n = int(problem.length)
    assert mask.tolist() == [1] * (n + 1) + [0] * (5 - n)


@pytest.mark.slow
def test_a_model_learns_its_task(tmp_path):
    recipe = pretraining.Recipe(tasks.chain.Config(n_steps=2, p=5), steps=300)
    _, curves = pretraining.pretrained(recipe, [0], tmp_path)
    assert float(curves["test_pass_at_1"][0, -1]) > 0.9
