"""Array structs that more than one room speaks."""

import flax.struct
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Transition:
    """Steps of a Markov decision process; every field may carry the same leading axes.

    `next_obs` is always the observation that the dynamics produced, before any auto-reset, so that
    a model never learns the jump from the end of one episode to the start of the next.
    """

    obs: Float[Array, "*b o"]
    action: Float[Array, "*b a"]  # in [-1, 1]
    reward: Float[Array, "*b"]
    terminated: Bool[Array, "*b"]  # the task ended: no bootstrap
    truncated: Bool[Array, "*b"]  # the clock ended it: bootstrap
    next_obs: Float[Array, "*b o"]
