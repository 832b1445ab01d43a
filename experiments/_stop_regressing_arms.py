"""The arms of the comparison, and how each gets its learning rate before it is compared.

The arms share body, data, order of the batches and initial value (the centre of the support); they
differ in the last layer and its loss.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble
from jaxlab.stats import evaluation_seeds
from jaxlab.values import HeadKind, Support, ValueHead

if TYPE_CHECKING:
    import xarray

Arm = Literal["mse", "mse_clip", "mse_softmax", "two_hot", "hl_gauss", "c51"]
ARMS: tuple[Arm, ...] = ("mse", "mse_clip", "mse_softmax", "two_hot", "hl_gauss", "c51")
TREATMENT: Arm = "hl_gauss"
CONTROL: Arm = "mse"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation

_SCALAR: dict[str, HeadKind] = {"mse": "scalar", "mse_clip": "scalar_clip"}


def head(arm: str, support: tuple[float, float], num_bins: int) -> ValueHead:
    """The value head of an arm.

    Args:
        arm: one of `ARMS`.
        support: ends of the grid, in the units of the targets.
        num_bins: locations.

    Returns:
        Atoms between the ends, bins for "hl_gauss"; a scalar head starts at the same centre.
    """
    kind: Any = _SCALAR.get(arm, arm)
    grid = Support(*support, num_bins, "bins" if kind == "hl_gauss" else "atoms")
    return ValueHead(kind, grid)


def study_seeds(seeds: int, smoke: bool) -> tuple[int, ...]:
    """Seed ids of a run: of evaluation, or, for a smoke run, ones that decide nothing ever."""
    return tuple(SMOKE_SEEDS[:seeds]) if smoke else evaluation_seeds(seeds)


def best_rate(scores: np.ndarray, rates: Sequence[float], worst: float) -> float:
    """Chooses a learning rate by the mean score [rates, seeds]; a diverged seed counts as worst."""
    return rates[int(np.argmax(np.where(np.isfinite(scores), scores, worst).mean(axis=-1)))]


def tuned_run(
    experiment: ensemble.Experiment,
    settings: Sequence[Mapping[str, float]],
    score: Callable[["xarray.Dataset"], np.ndarray],
    *,
    rates: Sequence[float],
    tuning_seeds: int,
    tuned_settings: Sequence[int],
    worst: float,
    steps: int,
    record_every: int,
    seeds: Sequence[int],
    checkpoint: Path,
    **options: Any,
) -> "xarray.Dataset":
    """Tunes the learning rate of one arm in every setting, then runs all settings.

    Args:
        experiment: takes the traced hyper-parameter "lr" and those of the settings.
        settings: hyper-parameters of each, all with the same names.
        score: results -> scores without their last dimension, the step; higher is better.
        rates: learning rates tried.
        tuning_seeds: seeds 0, 1, ... that they are tried on.
        tuned_settings: for each setting the index of the one whose rate it takes.
        worst: score of a diverged seed.
        steps: updates of either run.
        record_every: updates per recorded row.
        seeds: of the run.
        checkpoint: its folder; the tuning's lies beside it.
        **options: of `ensemble.run`.

    Returns:
        Dims (point, seed, step), points in the order of the settings, coordinate "lr".
    """
    names, chosen = list(settings[0]), sorted(set(tuned_settings))
    best = {index: rates[0] for index in chosen}
    if len(rates) > 1:
        tried = [{**settings[index], "lr": rate} for index in chosen for rate in rates]
        tuning = ensemble.run(
            experiment,
            steps=steps,
            seeds=range(tuning_seeds),
            points=_points(tried, (*names, "lr")),
            record_every=record_every,
            checkpoint=checkpoint.with_name(f"{checkpoint.name}-tuning"),
            label=f"{checkpoint.name} tuning",
            **options,
        )
        found = score(tuning).reshape(len(chosen), len(rates), tuning_seeds)
        best = {index: best_rate(found[i], rates, worst) for i, index in enumerate(chosen)}
    points = [{**s, "lr": best[index]} for s, index in zip(settings, tuned_settings, strict=True)]
    return ensemble.run(
        experiment,
        steps=steps,
        seeds=seeds,
        points=_points(points, (*names, "lr")),
        record_every=record_every,
        checkpoint=checkpoint,
        label=checkpoint.name,
        **options,
    )


def _points(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Any]:
    columns = {name: np.asarray([row[name] for row in rows]) for name in names}
    return {
        name: jnp.asarray(c, jnp.int32 if c.dtype.kind == "i" else jnp.float32)
        for name, c in columns.items()
    }
