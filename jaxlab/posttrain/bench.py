"""Rollouts and reinforcement learning against PyTorch: `python -m jaxlab.posttrain.bench`.

One small RWKV-7, the same weights on both sides, checked by its logits; the same prompts, sampler
and GRPO step. The peer decodes as PyTorch programs do, token by token from Python, and trains over
whole sequences with the recurrence as a loop over time. It may live in an environment of its own:
`--peer /path/to/its/python`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, WIDTH, HEAD = 2, 64, 32
PROMPTS, GROUP = 16, 8
MEMBERS = (1, 8)
REPEATS = 5
LEARNING_RATE = 1e-4


def seconds_of(function: Callable[[], Any]) -> float:
    """Median seconds of a call, after one to warm up."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure_ours(path: Path) -> dict[str, Any]:
    """Tokens per rollout, seconds of one, and seconds of a step of so many members.

    Args:
        path: where parameters, prompts and solutions are written for the peer, as `.npz`.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab import posttrain, rwkv7, tasks
    from jaxlab.posttrain import grpo

    task = tasks.chain.make()
    config = rwkv7.Config(task.vocab_size, LAYERS, WIDTH, HEAD, dtype=jnp.float32)
    model = posttrain.rwkv7_model(config)
    draw, noise = jax.random.split(jax.random.key(0))
    params = model.init(draw)
    # Away from the start, where every block adds zero.
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(noise, len(leaves))
    leaves = [x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    params = jax.tree.unflatten(treedef, leaves)
    problems, prompts, _ = grpo.sample_problems(draw, task, PROMPTS, "train")
    length = task.solution_length

    @jax.jit
    def sampled(key: jax.Array) -> Any:
        return grpo.sample_completions(key, task, model, params, problems, prompts, GROUP, length)[
            0
        ]

    named = {jax.tree_util.keystr(k, simple=True, separator="."): v for k, v in
             jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    logits, _ = model.extend(params, model.initial_state(PROMPTS), prompts, None)
    solutions = jax.vmap(task.solution)(problems)
    data = named | {":prompts": prompts, ":solutions": solutions, ":logits": logits}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in data.items()}
    np.savez(path, **arrays)

    experiment = grpo.make(
        task, model, lambda key, hparams: params, grpo.Config(prompts=PROMPTS, group=GROUP)
    )
    steps = {}
    for members in MEMBERS:
        rates = {"lr": jnp.full(members, LEARNING_RATE)}
        states = jax.jit(jax.vmap(experiment.init))(jax.random.split(draw, members), rates)
        update = jax.jit(jax.vmap(experiment.update))
        steps[members] = seconds_of(lambda: jax.block_until_ready(update(states)))
    return {
        "tokens": PROMPTS * GROUP * length,
        "rollout": seconds_of(lambda: jax.block_until_ready(sampled(noise))),
        "steps": steps,
    }


def measure_theirs(path: Path) -> dict[str, Any]:
    """Seconds of a rollout and of a step in PyTorch."""
    import torch
    from torch.nn import functional

    data = np.load(path)
    weights = {k: torch.tensor(data[k]) for k in data.files if not k.startswith(":")}
    prompts, solutions = (torch.tensor(data[f":{k}"]).long() for k in ("prompts", "solutions"))
    for weight in weights.values():
        weight.requires_grad_()
    heads, length = WIDTH // HEAD, solutions.shape[1]

    def normed(name: str, x: Any, layer: Any = ...) -> Any:
        weight, bias = (weights[f"{name}.{part}"][layer] for part in ("weight", "bias"))
        return functional.layer_norm(x, (WIDTH,), weight, bias, 1e-5)

    def mix_time(layer: int, h: Any, first: Any, state: dict[str, Any]) -> tuple[Any, Any]:
        p = {k[11:]: v[layer] for k, v in weights.items() if k.startswith("blocks.att.")}
        rows, count, _ = h.shape
        delta = torch.cat([state["att"][:, None], h[:, :-1]], 1) - h
        state["att"] = h[:, -1]
        x = {name: h + delta * p[f"x_{name}"] for name in "rwkvag"}
        split = lambda y: y.view(rows, count, heads, HEAD)  # noqa: E731
        r, k, v = (x[n] @ p[m].T for n, m in (("r", "receptance"), ("k", "key"), ("v", "value")))
        w = torch.sigmoid(p["w0"] + torch.tanh(x["w"] @ p["w1"]) @ p["w2"])
        decay = split(torch.exp(-0.606531 * w))
        a = torch.sigmoid(p["a0"] + x["a"] @ p["a1"] @ p["a2"])
        g = torch.sigmoid(x["g"] @ p["g1"]) @ p["g2"]
        if first is None:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(p["v0"] + x["v"] @ p["v1"] @ p["v2"])
        kk = functional.normalize(split(k * p["k_k"]), dim=-1)
        k = split(k * (1 + (a - 1) * p["k_a"]))
        r, v, write = split(r), split(v), kk * split(a)
        matrix, out = state["wkv"], []
        for t in range(count):
            removed = (matrix @ kk[:, t, :, :, None]) @ write[:, t, :, None]
            added = v[:, t, :, :, None] @ k[:, t, :, None]
            matrix = matrix * decay[:, t, :, None] - removed + added
            out.append(matrix @ r[:, t, :, :, None])
        state["wkv"] = matrix
        y = torch.stack(out, 1).reshape(rows * count, WIDTH)
        y = functional.group_norm(y, heads, p["ln_x.weight"], p["ln_x.bias"], 64e-5)
        bonus = (r * k * p["r_k"]).sum(-1, keepdim=True) * v
        y = y.view(rows, count, WIDTH) + bonus.reshape(rows, count, WIDTH)
        return (y * g) @ p["output"].T, first

    def mix_channels(layer: int, h: Any, state: dict[str, Any]) -> Any:
        p = {k[11:]: v[layer] for k, v in weights.items() if k.startswith("blocks.ffn.")}
        delta = torch.cat([state["ffn"][:, None], h[:, :-1]], 1) - h
        state["ffn"] = h[:, -1]
        return torch.relu((h + delta * p["x_k"]) @ p["key"].T) ** 2 @ p["value"].T

    def forward(tokens: Any, states: list[dict[str, Any]]) -> Any:
        x, first = normed("ln0", weights["emb"][tokens]), None
        for layer, state in enumerate(states):
            out, first = mix_time(layer, normed("blocks.ln1", x, layer), first, state)
            x = x + out
            x = x + mix_channels(layer, normed("blocks.ln2", x, layer), state)
        return normed("ln_out", x) @ weights["head"].T

    def fresh(rows: int) -> list[dict[str, Any]]:
        zero = torch.zeros(rows, WIDTH)
        wkv = torch.zeros(rows, heads, HEAD, HEAD)
        return [{"att": zero, "ffn": zero, "wkv": wkv} for _ in range(LAYERS)]

    @torch.no_grad()
    def sample() -> tuple[Any, Any]:
        states = fresh(PROMPTS)
        logits = forward(prompts, states)[:, -1].repeat_interleave(GROUP, 0)
        states = [{k: v.repeat_interleave(GROUP, 0) for k, v in s.items()} for s in states]
        tokens, log_probs = [], []
        for _ in range(length):
            log_p = torch.log_softmax(logits, -1)
            token = torch.multinomial(log_p.exp(), 1)
            tokens.append(token[:, 0])
            log_probs.append(log_p.gather(1, token)[:, 0])
            logits = forward(token, states)[:, -1]
        return torch.stack(tokens, 1), torch.stack(log_probs, 1)

    optimizer = torch.optim.Adam(weights.values(), LEARNING_RATE)

    def step() -> None:
        tokens, old = sample()
        rewards = (tokens == solutions.repeat_interleave(GROUP, 0)).float().mean(1)
        table = rewards.view(-1, GROUP)
        table = (table - table.mean(1, keepdim=True)) / (table.std(1, keepdim=True) + 1e-6)
        advantages = table.view(-1, 1)
        states = fresh(PROMPTS)
        first = forward(prompts, states)[:, -1:].repeat_interleave(GROUP, 0)
        states = [{k: v.repeat_interleave(GROUP, 0) for k, v in s.items()} for s in states]
        logits = torch.cat([first, forward(tokens[:, :-1], states)], 1)
        new = torch.log_softmax(logits, -1).gather(2, tokens[..., None])[..., 0]
        ratio = torch.exp(new - old)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()

    with torch.no_grad():
        error = (forward(prompts, fresh(PROMPTS)) - torch.tensor(data[":logits"])).abs().max()
    return {
        "version": torch.__version__,
        "error": float(error),
        "rollout": seconds_of(sample),
        "step": seconds_of(step),
    }


def in_process(python: str, side: str, path: Path) -> Any:
    """Measures one side in a process of its own."""
    # By its path, and without its folder on the path: the peer's environment need not have jaxlab.
    command = [python, "-P", __file__, "--worker", side, str(path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def report(peer: str | None = None) -> list[str]:
    """The table, as lines of Markdown."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.npz"
        ours = in_process(sys.executable, "ours", path)
        theirs = None if peer is None else in_process(peer, "theirs", path)
    rate = ours["tokens"] / ours["rollout"]
    table = [("rollout, tokens/s", rate, theirs and ours["tokens"] / theirs["rollout"])] + [
        (
            f"GRPO, steps/s over all members, {n} vmapped",
            int(n) / seconds,
            theirs and 1 / theirs["step"],
        )
        for n, seconds in ours["steps"].items()
    ]
    who = "PyTorch" if theirs is None else f"PyTorch {theirs['version']}"
    if theirs is not None and theirs["error"] > 1e-3:
        raise RuntimeError(f"the peer's logits differ by {theirs['error']:.1e}: another model")
    return [
        f"RWKV-7 of {LAYERS} layers, width {WIDTH}, float32; {PROMPTS} prompts of the chain task, "
        f"{GROUP} completions each; compilation excluded.",
        "",
        f"| what | ours | {who} | ratio |",
        "|---|---|---|---|",
        *(
            f"| {what} | {mine:.3g} | "
            + ("not measured | |" if other is None else f"{other:.3g} | {mine / other:.1f}× |")
            for what, mine, other in table
        ),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with PyTorch")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, path = options.worker
        measure = measure_theirs if side == "theirs" else measure_ours
        print(json.dumps(measure(Path(path))))
    else:
        print("\n".join(report(options.peer)))


if __name__ == "__main__":
    main()
