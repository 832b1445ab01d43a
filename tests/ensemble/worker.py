"""A run in a process of its own: for tests that kill it or force a number of devices."""

import argparse
import sys

import jax


def regression(width=16):
    """A small network fitted by Adam with momentum of its own, chaotic enough to show any bit."""
    import jax.numpy as jnp
    import optax

    from jaxlab.ensemble import Experiment

    adam = optax.adam(1.0)

    def init(key, hparams):
        key, one, two = jax.random.split(key, 3)
        params = {
            "in": jax.random.normal(one, (4, width)) / 2,
            "out": jax.random.normal(two, (width, 1)) / 4,
        }
        lr = hparams.get("lr", jnp.float32(1e-2))
        poison = hparams.get("poison", jnp.int32(-1))
        return {
            "params": params,
            "adam": adam.init(params),
            "lr": lr,
            "poison": poison,
            "count": jnp.int32(0),
            "key": key,
        }

    def update(state):
        key, noise = jax.random.split(state["key"])
        x = jax.random.normal(noise, (32, 4))

        def loss_fn(params):
            y = jnp.tanh(x @ params["in"]) @ params["out"]
            return jnp.mean((y[:, 0] - jnp.sin(3 * x.sum(-1))) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 with Python floats
            updates, moments = adam.update(grads, state["adam"])
        params = jax.tree.map(lambda p, u: p + state["lr"] * u, state["params"], updates)
        count = state["count"] + 1
        broken = count == state["poison"]
        params = jax.tree.map(lambda p: jnp.where(broken, jnp.nan, p), params)
        new = {**state, "params": params, "adam": moments, "count": count, "key": key}
        return new, {"loss": loss, "bits": jax.random.uniform(noise)}

    def evaluate(state, key):
        x = jax.random.uniform(key, (4,))
        return {"test": (jnp.tanh(x @ state["params"]["in"]) @ state["params"]["out"])[0]}

    return Experiment(init, update, evaluate)


def dyna():
    """The model-based loop on a light environment, as small as it can be."""
    from jaxlab import agents, envs, worldmodels

    config = agents.DynaConfig(
        sac=agents.SACConfig(hidden=(16,)),
        model=worldmodels.EnsembleConfig(members=3, elites=2, hidden=(16,)),
        fit=worldmodels.FitConfig(batch_size=32, max_epochs=3),
        batch_size=32,
        utd=2,
        capacity=128,
        initial_steps=32,
        model_train_freq=16,
        rollout_batch=64,
        eval_episodes=2,
    )
    return agents.dyna.make(envs.make("pendulum", episode_length=50), config)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiment", default="regression", choices=["regression", "dyna"])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--microbatch", type=int, default=0)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--record-every", type=int, default=10)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--checkpoint")
    parser.add_argument("--visit-seconds", type=float, default=2.0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)

    from jaxlab import ensemble

    # Far more host visits and checkpoints than anybody wants, so that a kill hits one.
    sys.modules["jaxlab.ensemble.engine"].VISIT_SECONDS = args.visit_seconds
    data = ensemble.run(
        dyna() if args.experiment == "dyna" else regression(args.width),
        steps=args.steps,
        record_every=args.record_every,
        seeds=[int(s) for s in args.seeds.split(",")],
        mode=args.mode,
        microbatch=args.microbatch or "auto",
        checkpoint=args.checkpoint,
        checkpoint_seconds=0.0,
    )
    data.to_netcdf(args.out, engine="h5netcdf")


if __name__ == "__main__":
    main()
