"""State tuning: frozen weights, a learned state before the first token.

M1 `tune_state`, M2 `jaxlab.rwkv7.upscaling` (re-exported here), M3 `dbp_update`, M4
`test_time_tune`, M5 `observer_loss`. The paper's sections on decorrelation, test-time scaling and
the observer could not be read: what is marked [R] is the most faithful reconstruction we know of,
not the authors' equations.

Reference: Liu et al. 2025, State Tuning: State-based Test-Time Scaling on RWKV-7.
"""

from jaxlab.rwkv7.state_tuning.decorrelation import Decorrelation, dbp_init, dbp_update
from jaxlab.rwkv7.state_tuning.observer import (
    ObserverMaps,
    init_observer,
    observed_tuning_loss,
    observer_loss,
    state_trajectory,
)
from jaxlab.rwkv7.state_tuning.tuning import (
    Batch,
    Tuned,
    Tuning,
    init_tuned_state,
    learned_state,
    state_optimizer,
    state_tuning_loss,
    test_time_tune,
    tune_state,
    tuned_model,
)
from jaxlab.rwkv7.upscaling import (
    Signals,
    Upscaling,
    init_upscaling,
    kernel_features,
    literal_radius,
    support_vectors,
    upscaled,
    upscaled_wkv,
)

__all__ = [
    "Batch",
    "Decorrelation",
    "ObserverMaps",
    "Signals",
    "Tuned",
    "Tuning",
    "Upscaling",
    "dbp_init",
    "dbp_update",
    "init_observer",
    "init_tuned_state",
    "init_upscaling",
    "kernel_features",
    "learned_state",
    "literal_radius",
    "observed_tuning_loss",
    "observer_loss",
    "state_optimizer",
    "state_trajectory",
    "state_tuning_loss",
    "support_vectors",
    "test_time_tune",
    "tune_state",
    "tuned_model",
    "upscaled",
    "upscaled_wkv",
]
