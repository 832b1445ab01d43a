"""What the two ways cost: a round of model fitting and critic updates, timed.

Seven members and plain critics against one member and critics with the robust penalty, in the
sizes of Janner et al. 2019, with as many steps of the model as of the critics.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab import worldmodels
from jaxlab.agents import SACConfig, sac
from jaxlab.types import Transition

OBS, ACTION = 11, 3  # a hopper's


@dataclass(frozen=True)
class Config:
    """Sizes of a round."""

    repeats: int = 20
    members: int = 7
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    agent_hidden: tuple[int, ...] = (256, 256)
    batch: int = 256
    steps: int = 4  # of the model, and of the critics


def make_round(config: Config, members: int, robust: bool) -> Callable[[Array], Array]:
    """A compiled round from a random key to a number that depends on all of it."""
    model_config = worldmodels.EnsembleConfig(
        members=members, elites=min(5, members), hidden=config.model_hidden
    )
    agent_config = SACConfig(
        hidden=config.agent_hidden, critic_regulariser="robust" if robust else None
    )
    hparams = sac.hyperparams(ACTION)
    # A fifth of the rows is held out, and an epoch takes the others once.
    rows = config.steps * config.batch * 5 // 4
    fit_config = worldmodels.FitConfig(batch_size=config.batch, max_epochs=1)

    def one(key: Array) -> Array:
        keys = jax.random.split(key, 6)
        obs = jax.random.normal(keys[0], (rows, OBS))
        action = jax.random.uniform(keys[1], (rows, ACTION), minval=-1.0)
        never = jnp.zeros((rows,), bool)
        data = Transition(obs, action, obs[:, 0], never, never, jnp.roll(obs, 1, axis=0))
        model = worldmodels.init(keys[2], model_config, OBS, ACTION)
        model, metrics = worldmodels.fit(
            keys[3], model, data, rows, model_config, fit_config=fit_config
        )
        agent = sac.init(keys[4], agent_config, hparams, OBS, ACTION)
        batches = jax.tree.map(
            lambda x: x[: config.steps * config.batch].reshape(
                config.steps, config.batch, *x.shape[1:]
            ),
            data,
        )
        _, losses = sac.update_many(keys[5], agent, batches, agent_config, hparams)
        return metrics["holdout_loss"] + losses["critic_loss"] + losses["actor_loss"]

    return jax.jit(one).lower(jax.random.key(0)).compile()


def measure(config: Config) -> dict[str, np.ndarray]:
    """Seconds of a round [repeats], both ways in turn so that a busy machine slows both."""
    rounds = {
        "single + robust": make_round(config, 1, robust=True),
        "ensemble": make_round(config, config.members, robust=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    for repeat in range(config.repeats + 1):
        key = jax.random.key(repeat)
        for name, one in rounds.items():
            began = time.perf_counter()
            jax.block_until_ready(one(key))
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(times) for name, times in seconds.items()}
