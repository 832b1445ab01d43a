"""RWKV-7 as a language model of bytes, against a transformer of the same size.

Claim: with equal parameters, data and tuning budget, a small RWKV-7 needs fewer bits per byte of
held-out text than a transformer. The text is the source code of Python's standard library, which
every installation has; whole files are held out.

The run leaves the model of its first seed as `model.pth`, in the official format:

    jaxlab generate --weights runs/rwkv7_lm-small/model.pth --vocab bytes --prompt "def "

Reference: Peng et al. (2025), RWKV-7 "Goose" with Expressive Dynamic State Evolution.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Float, Int

from jaxlab import ensemble, nets, rwkv7
from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, guards

PAPER = Paper(
    number="R7",
    title='RWKV-7 "Goose" with Expressive Dynamic State Evolution',
    authors="Peng et al.",
    venue="arXiv",
    year=2025,
)
SUMMARY = "bits per byte of a small RWKV-7 and of a transformer of its size"
TREATMENT, CONTROL = "rwkv7", "transformer"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
VOCABULARY = 257  # 0 ends a file, and a byte is its value plus 1


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    tuning_seeds: int = 2
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # tried for both models
    n_layer: int = 2
    n_embd: int = 64
    head_size: int = 32
    ranks: tuple[int, int, int, int] | None = (16, 16, 16, 32)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations
    context: int = 128
    batch: int = 8
    steps: int = 400
    tuning_steps: int = 200
    block: int = 20  # optimiser steps between two evaluations
    held_out: int = 64  # windows of the evaluation
    text: int = 2_000_000  # bytes of training text at most
    remat: Literal["none", "block"] = "none"
    mode: Literal["exact", "fast"] = "exact"
    data_parallel: int = 1  # devices that share one member: batch, parameters and moments
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses partial blocks, texts without a window, and exact mode on shared devices."""
        if not self.learning_rates:
            raise ValueError("learning_rates: expected at least one")
        if self.text < self.context + 2:
            # A window would run beyond the text, and be filled with its last byte.
            raise ValueError(f"text: expected at least context + 2 bytes, got {self.text}")
        for name in ("steps", "tuning_steps"):
            if getattr(self, name) % self.block:
                raise ValueError(
                    f"{name}: expected a multiple of {self.block}, got {getattr(self, name)}"
                )
        if self.data_parallel > 1 and self.mode == "exact":
            raise ValueError(f"data_parallel: expected 1 in exact mode, got {self.data_parallel}")


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        learning_rates=(3e-3,),
        n_embd=32,
        context=32,
        steps=4,
        tuning_steps=2,
        block=2,
        held_out=4,
        smoke=True,
    ),
    "small": Config(preset="small"),
    # The official recipe's smallest model; needs accelerators.
    "paper": Config(
        preset="paper",
        learning_rates=(3e-4, 6e-4, 1.2e-3),
        n_layer=12,
        n_embd=768,
        head_size=64,
        ranks=None,
        dtype="bfloat16",
        context=512,
        batch=64,
        steps=20_000,
        tuning_steps=5_000,
        block=500,
        held_out=512,
        text=20_000_000,
        remat="block",
        mode="fast",
    ),
}


class Text(NamedTuple):
    """Tokens to learn from and tokens to be judged by, of different files."""

    train: np.ndarray  # int16 [n]
    held_out: np.ndarray  # int16 [m]

    def digest(self) -> str:
        """Says which text it was; it differs between versions of Python."""
        return hashlib.sha256(self.train.tobytes() + b"|" + self.held_out.tobytes()).hexdigest()


def standard_library(limit: int) -> Text:
    """Source files of Python's standard library, every tenth of them held out.

    Args:
        limit: most tokens of training text.

    Returns:
        The text, files in the order of their names.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("*/*.py"))]
    files = [path for path in files if "site-packages" not in path.parts]
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for i, path in enumerate(files):
        parts[i % 10 == 9].append(path.read_bytes())

    def tokens(file: bytes) -> np.ndarray:
        return np.append(np.frombuffer(file, np.uint8).astype(np.int16) + np.int16(1), np.int16(0))

    train, held_out = (np.concatenate([tokens(file) for file in part]) for part in parts)
    return Text(train[:limit], held_out)


def windows(text: Array, starts: Int[Array, " B"], length: int) -> Int[Array, "B L"]:
    """Stretches of a text that begin at the given places."""
    return text[starts[:, None] + jnp.arange(length)[None]].astype(jnp.int32)


def model_config(config: Config) -> rwkv7.Config:
    """The sizes of RWKV-7."""
    return rwkv7.Config(
        VOCABULARY,
        config.n_layer,
        config.n_embd,
        head_size=config.head_size,
        ranks=config.ranks,
        dtype=jnp.dtype(config.dtype),
    )


def baseline_config(config: Config) -> nets.TransformerConfig:
    """A transformer of the same depth and width, its feed-forward width fitted to the same size."""

    def sized(dim_ffn: int) -> nets.TransformerConfig:
        return nets.TransformerConfig(
            VOCABULARY,
            config.n_layer,
            config.n_embd,
            config.head_size,
            dim_ffn,
            dtype=jnp.dtype(config.dtype),
        )

    missing = rwkv7.num_params(model_config(config)) - _size(sized(1))
    return sized(1 + round(missing / (2 * config.n_embd * config.n_layer)))


def _size(config: nets.TransformerConfig) -> int:
    shapes = jax.eval_shape(lambda key: nets.transformer_init(key, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _mesh(config: Config) -> Mesh | None:
    if config.data_parallel == 1:
        return None
    devices = np.array(jax.devices()).reshape(-1, config.data_parallel)
    return Mesh(devices, ("members", "data"), axis_types=(AxisType.Auto,) * 2)


def make(config: Config, arm: str, text: Text, steps: int) -> ensemble.Experiment:
    """Training of one model; `hparams` holds the peak learning rate.

    Args:
        config: sizes.
        arm: "rwkv7" or "transformer".
        text: what to learn from and what to be judged by.
        steps: length of the schedule.

    Returns:
        An experiment whose update is a block of optimiser steps, and whose evaluation reports
        "bits_per_byte" of the held-out windows.
    """
    length = config.context + 1
    train, held_out = jnp.asarray(text.train), jnp.asarray(text.held_out)
    places = np.linspace(0, len(text.held_out) - length, config.held_out, dtype=np.int32)
    judged = windows(held_out, jnp.asarray(places), length)
    model, baseline = model_config(config), baseline_config(config)

    def trainer(lr: Float[Array, ""]) -> rwkv7.Training:
        optimizer = rwkv7.optimizer(lr, 0.1 * lr, steps, weight_decay=0.0)
        if arm == TREATMENT:
            return rwkv7.make_training(model, optimizer, remat=config.remat)

        def start(key):
            params = nets.constrain_fsdp(nets.transformer_init(key, baseline))
            return rwkv7.TrainState(params, nets.constrain_fsdp(optimizer.init(params)))

        def step(state, tokens):
            tokens = nets.constrain_batch(tokens)

            def loss_of(params):
                logits = nets.transformer_apply(params, baseline, tokens[:, :-1])
                return rwkv7.l2wrap_cross_entropy(logits, tokens[:, 1:])

            loss, grads = jax.value_and_grad(loss_of)(state.params)
            updates, moments = optimizer.update(grads, state.optimizer, state.params)
            params = nets.constrain_fsdp(optax.apply_updates(state.params, updates))
            return rwkv7.TrainState(params, nets.constrain_fsdp(moments)), {"loss": loss}

        return rwkv7.Training(start, step)

    def init(key, hparams):
        key, start = jax.random.split(key)
        return {"train": trainer(hparams["lr"]).init(start), "key": key, "lr": hparams["lr"]}

    def update(state):
        def one(train_state, key):
            starts = jax.random.randint(key, (config.batch,), 0, train.size - length)
            return trainer(state["lr"]).step(train_state, windows(train, starts, length))

        key, *keys = jax.random.split(state["key"], config.block + 1)
        trained, metrics = jax.lax.scan(one, state["train"], jnp.stack(keys))
        return {**state, "train": trained, "key": key}, {"loss": metrics["loss"].mean()}

    def evaluate(state, key):
        params, inputs = state["train"].params, judged[:, :-1]
        if arm == TREATMENT:
            logits, _ = rwkv7.forward(params, model, inputs)
        else:
            logits = nets.transformer_apply(params, baseline, inputs)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, judged[:, 1:]).mean()
        return {"bits_per_byte": nats / jnp.log(2.0)}

    return ensemble.Experiment(init, update, evaluate)


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    model = model_config(config)  # refuses sizes that do not fit
    return (
        Claim(
            name="bits per byte",
            statement="With equal parameters and data, RWKV-7 needs at least 0.05 bits per byte "
            "of held-out text less than a transformer.",
            metric="minus the bits per byte of held-out files after the last step",
            treatment=TREATMENT,
            control=CONTROL,
            threshold=0.05,
            worst=-8.0,
            n_seeds=max(config.seeds, 16),
            guards=(
                Guard("control_learns", "the transformer beats byte frequencies by half a bit"),
                Guard("training_helps", "RWKV-7 ends half a bit below its first evaluation"),
                Guard("same_size", "both have the same number of parameters within 2 %"),
                Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
            ),
            protocol=(
                ("tuning grid of lr", ", ".join(f"{r:g}" for r in config.learning_rates)),
                ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
                ("tuning criterion", "bits per byte after fewer steps, per arm"),
                ("tuning steps", config.tuning_steps),
                ("evaluation seeds", "from 1000"),
                ("steps", config.steps),
                ("bytes per step", config.batch * config.context),
                ("model", f"L{model.n_layer} C{model.n_embd}"),
            ),
        ),
    )


def _unigram_bits(text: Text) -> float:
    """Bits per byte of held-out text coded by the byte frequencies of the training text."""
    counts = np.bincount(text.train, minlength=VOCABULARY) + 1.0
    used = np.bincount(text.held_out, minlength=VOCABULARY)
    return float(-(used / used.sum()) @ np.log2(counts / counts.sum()))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Tunes both models, trains both on the evaluation seeds, judges, and keeps one model."""
    import xarray

    registered = registered_digests(directory)
    text = standard_library(config.text)
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    rows = []
    for arm in (TREATMENT, CONTROL):

        def go(name, steps, seeds, rates, arm=arm):
            return ensemble.run(
                make(config, arm, text, steps),
                steps=steps // config.block,
                seeds=seeds,
                grid={"lr": rates},
                mode=config.mode,
                mesh=_mesh(config),
                checkpoint=directory / "checkpoints" / name,
                resume=resume,
                progress=progress,
                label=name,
            )

        rates = list(config.learning_rates)
        if len(rates) > 1:
            tuning = go(f"{arm}-tuning", config.tuning_steps, range(config.tuning_seeds), rates)
            bits = np.nan_to_num(tuning["bits_per_byte"].values[..., -1], nan=8.0)
            rates = [rates[int(np.argmin(bits.mean(axis=-1)))]]
        data = go(arm, config.steps, seeds, rates).isel(lr=0)
        rows.append(data.reset_coords("lr").expand_dims(arm=[arm]))
    data = xarray.concat(rows, "arm", combine_attrs="drop_conflicts")
    data.attrs["text_sha256"] = text.digest()
    _keep_model(config, text, directory)

    scores = {arm: -data["bits_per_byte"].sel(arm=arm).values for arm in (TREATMENT, CONTROL)}
    treatment, control = scores[TREATMENT][:, -1], scores[CONTROL][:, -1]
    (claim,) = claims(config)
    first = float(np.nanmean(scores[TREATMENT][:, 0]))
    sizes = rwkv7.num_params(model_config(config)), _size(baseline_config(config))
    outcomes = {
        "control_learns": guards.learns(control, -_unigram_bits(text), 0.5),
        "training_helps": guards.learns(treatment, first, 0.5),
        "same_size": guards.same_budget(*sizes, tolerance=0.02),
        "finite": guards.mostly_finite(treatment, control),
    }
    evidence = Evidence(
        treatment,
        control,
        seeds,
        {} if config.smoke else outcomes,
        config.smoke,
        registered.get(claim.name),
    )
    curves = Curves(
        "bits-per-byte",
        "Bytes of Python's standard library",
        "optimiser steps",
        "bits per byte, held-out files",
        data["step"].values * config.block,
        {arm: -score for arm, score in scores.items()},
        {"byte frequencies": _unigram_bits(text)},
    )
    return Outcome(
        parts=((claim, decide(claim, evidence)),),
        paired={claim.name: (treatment, control)},
        datasets={"rwkv7_lm": data},
        curves=(curves,),
        notes=(f"model.pth holds RWKV-7 of seed {seeds[0]}, in the official format.",),
    )


def _keep_model(config: Config, text: Text, directory: Path) -> None:
    """Writes the trained model of the first seed."""
    experiment = make(config, TREATMENT, text, config.steps)
    hparams: dict[str, Any] = {"lr": jnp.float32(0)}
    states = ensemble.states(directory / "checkpoints" / TREATMENT, experiment, hparams)
    params = jax.tree.map(lambda leaf: leaf[0], states["train"].params)
    rwkv7.save(directory / "model.pth", params, model_config(config))
