"""From a training to data sets of the usual levels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxlab import envs
from jaxlab.agents import interaction, sac
from jaxlab.datasets.behaviour import Behaviour, BehaviourConfig, Step, _with_log_prob, train
from jaxlab.datasets.files import Dataset, DatasetError
from jaxlab.envs import Env, auto_reset, episode_returns, uniform_policy
from jaxlab.types import Transition

Level = Literal["random", "medium", "medium-replay", "expert"]
LEVELS: tuple[str, ...] = get_args(Level)
MEDIUM_SCORE = 33.0  # normalised score at whose first evaluation a policy is "medium"
EXPERT_SCORE = 66.0  # without which the last policy is not called "expert"
_LANES = 8  # environments that record side by side
_RANDOM_EPISODES = 256  # of uniform actions, where the environment states no return of theirs
# (obs[o], key) -> (action[a], log-density)
_Sampler = Callable[[Array, Array], tuple[Array, Array]]


def normalized_score(score: Any, random_return: float, expert_return: float) -> Any:
    """100 (R - R_random) / (R_expert - R_random).

    Args:
        score: return R, or an array of them.
        random_return: of uniform actions.
        expert_return: of a reference.

    Returns:
        0 for uniform actions, 100 for the reference.

    Reference:
        Fu et al. 2020 (D4RL), section 5. Scores of other physics must not be compared with D4RL's.
    """
    return 100 * (score - random_return) / (expert_return - random_return)


def record(
    behaviour: Behaviour | None,
    env: Env,
    config: BehaviourConfig,
    level: Level,
    key: Key[Array, ""],
    rows: int = 10_000,
) -> Dataset:
    """Makes the data set of one level from a training.

    "random" takes uniform actions; "medium" samples from the policy of the first evaluation with a
    normalised score of 33; "medium-replay" is all that the training did up to there; "expert"
    samples from the last policy. Scores are relative to the environment's reference returns, or,
    where it has none, to what uniform actions and the last policy earned in this training.

    Args:
        behaviour: the training; None will do for "random".
        env: that it was trained in.
        config: that it was trained with.
        level: which data.
        key: random key of the recording.
        rows: transitions; not of "medium-replay", which is as long as it took.

    Returns:
        The data set, with what is known about the policy in `about`.

    Raises:
        ValueError: an unknown level, or no rows.
        DatasetError: the training has no policy of that level.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {LEVELS}, got {level!r}")
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    about: dict[str, Any] = {
        "env": env.spec.name,
        "episode_length": env.spec.episode_length,
        "level": level,
    }
    if level == "random":
        random_return = _random_return(env, jax.random.fold_in(key, 1))
        about |= {"random_return": random_return, "expert_return": env.spec.expert_return}
        spread = partial(_uniform, env.spec.action_dim)
        return _played(key, env, spread, rows, about | {"return": random_return, "score": 0.0})
    if behaviour is None:
        raise ValueError(f"behaviour: expected a training for {level!r}, got None")
    random_return, expert_return = _references(behaviour, env)
    about |= {"random_return": random_return, "expert_return": expert_return}
    returns = np.asarray(behaviour.returns, np.float64)
    scores = normalized_score(returns, random_return, expert_return)
    block = len(returns) - 1 if level == "expert" else _medium(scores)
    if level == "expert" and not scores[-1] >= EXPERT_SCORE:
        raise DatasetError(
            f"the last policy's score is {scores[-1]:.0f}, an expert needs {EXPERT_SCORE:.0f}; "
            "train longer"
        )
    about |= {
        "return": float(returns[block]),
        "score": float(scores[block]),
        "training_rows": int(behaviour.rows[block]),
        "training": dataclasses.asdict(config),
    }
    if level == "medium-replay":
        history = jax.tree.map(lambda x: x[: about["training_rows"]], behaviour.history)
        return _dataset(_by_lane(history, config.lanes), about)
    agent = behaviour.policy(block)

    def sampled(obs: Array, key: Array) -> tuple[Array, Array]:
        return sac.act_with_log_prob(agent, config.sac, obs, key)

    return _played(key, env, sampled, rows, about)


def generate(
    name: str,
    level: Level,
    seed: int = 0,
    rows: int = 10_000,
    config: BehaviourConfig = BehaviourConfig(),
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Trains a policy and records a data set: the same arguments give the same bits.

    All levels of one seed come from one training, and so belong together.

    Args:
        name: the environment's name.
        level: which data.
        seed: of everything random.
        rows: see `record`.
        config: sizes of the training.
        options: of the environment.

    Returns:
        The data set.

    Raises:
        ValueError: an unknown environment or level, or no rows.
        DatasetError: the training has no policy of that level.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {LEVELS}, got {level!r}")
    env = envs.make(name, **(options or {}))
    train_key, record_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    behaviour = None if level == "random" else train(train_key, env, config)
    key = jax.random.fold_in(record_key, LEVELS.index(level))
    dataset = record(behaviour, env, config, level, key, rows)
    about = {**dataset.about, "seed": seed, "options": dict(options or {}), **_versions()}
    return dataclasses.replace(dataset, about=about)


def _random_return(env: Env, key: Array) -> float:
    if env.spec.random_return is not None:
        return env.spec.random_return
    play = jax.jit(lambda key: episode_returns(key, env, uniform_policy(env), _RANDOM_EPISODES))
    return float(jnp.mean(play(key)))


def _references(behaviour: Behaviour, env: Env) -> tuple[float, float]:
    random_return, expert_return = env.spec.random_return, env.spec.expert_return
    if random_return is None:
        random_return = float(behaviour.random_return)
    if expert_return is None:
        expert_return = float(behaviour.returns[-1])
    if not expert_return > random_return:
        raise DatasetError(
            f"the last policy returns {expert_return:.4g}, uniform actions {random_return:.4g}: "
            "nothing was learned; train longer"
        )
    return random_return, expert_return


def _medium(scores: np.ndarray) -> int:
    good = np.flatnonzero(scores >= MEDIUM_SCORE)
    if not good.size:
        raise DatasetError(
            f"no evaluation scores {MEDIUM_SCORE:.0f} (the best {np.nanmax(scores):.0f}); "
            "train longer"
        )
    return int(good[0])


def _uniform(action_dim: int, obs: Array, key: Array) -> tuple[Array, Array]:
    action = jax.random.uniform(key, (action_dim,), jnp.float32, -1.0, 1.0)
    return action, jnp.full((), -action_dim * np.log(2.0), jnp.float32)


def _played(
    key: Array, env: Env, sampler: _Sampler, rows: int, about: Mapping[str, Any]
) -> Dataset:
    """Plays on in some environments side by side, one after the other in the data."""
    stepper, steps = auto_reset(env), -(-rows // _LANES)

    def lane(key: Array) -> Step:
        reset_key, key = jax.random.split(key)

        def step(carry: tuple, key: Array) -> tuple[tuple, Step]:
            env_state, obs = carry
            act_key, step_key = jax.random.split(key)
            action, log_prob = sampler(obs, act_key)
            env_state, obs, seen = interaction.env_step(stepper, env_state, obs, action, step_key)
            return (env_state, obs), _with_log_prob(seen, log_prob)

        return jax.lax.scan(step, stepper.reset(reset_key), jax.random.split(key, steps))[1]

    played = jax.jit(jax.vmap(lane))(jax.random.split(key, _LANES))
    return _dataset(played, about, rows)


def _by_lane(history: Step, lanes: int) -> Step:
    """From [T * lanes] in the order of time to [lanes, T]."""
    return jax.tree.map(
        lambda x: np.swapaxes(np.asarray(x).reshape(-1, lanes, *x.shape[1:]), 0, 1), history
    )


def _dataset(lanes: Step, about: Mapping[str, Any], rows: int | None = None) -> Dataset:
    """Lays rows [lanes, T] one lane after the other and numbers their episodes."""
    ended = np.asarray(lanes.terminated | lanes.truncated)
    # A lane begins an episode, and so does the row behind an end.
    begins = np.concatenate([np.ones_like(ended[:, :1]), ended[:, :-1]], axis=1).reshape(-1)
    flat = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:rows], jax.device_get(lanes)
    )
    fields = {field.name: getattr(flat, field.name) for field in dataclasses.fields(Transition)}
    return Dataset(
        transitions=Transition(**fields),
        episode=np.cumsum(begins[:rows], dtype=np.int32) - np.int32(1),
        log_prob=flat.log_prob,
        about=dict(about),
    )


def _versions() -> dict[str, str]:
    import jaxlab

    return {
        "jaxlab": jaxlab.__version__,
        "jax": jax.__version__,
        "device": jax.local_devices()[0].device_kind,
    }
