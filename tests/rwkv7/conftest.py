"""A random model in which no parameter is trivial, and the model's equations in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7


def small_config(**fields):
    """Every size is different from every other, so that no two axes can be confused."""
    sizes = dict(vocab_size=40, n_layer=3, n_embd=32, head_size=16, dim_ffn=56, ranks=(4, 5, 6, 7))
    return rwkv7.Config(**(sizes | {"dtype": "float32"} | fields))


def random_params(seed, config, scale=0.3):
    """Of the size that keeps activations near one; a different number everywhere."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: rwkv7.init(jax.random.key(0), config))
    small = {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "weight"}

    def draw(path, leaf):
        name = path[-1].key
        spread = 1.0 if name in ("emb", "head") else scale
        values = spread * rng.standard_normal(leaf.shape) + (0.6 if name in small else 0.0)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def make_config():
    return small_config


@pytest.fixture(scope="session")
def make_params():
    return random_params


@pytest.fixture(scope="session")
def config():
    return small_config()


@pytest.fixture(scope="session")
def params(config):
    return random_params(7, config)


@pytest.fixture(scope="session")
def weights(params, config):
    """The model as a dictionary with the official names, in float64."""
    tensors = rwkv7.to_tensors(params, config)
    return {name: np.asarray(t.read(), np.float64) for name, t in tensors.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, weight, bias, eps=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


class Oracle:
    """One sequence, one token at a time, one head at a time, straight from the equations."""

    def __init__(self, weights, eps=64e-5):
        self.w, self.eps = weights, eps
        self.depth = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
        self.heads, self.size = weights["blocks.0.att.r_k"].shape
        self.reset()

    def reset(self):
        channels = self.heads * self.size
        self.att = np.zeros((self.depth, channels))
        self.ffn = np.zeros((self.depth, channels))
        self.s = np.zeros((self.depth, self.heads, self.size, self.size))

    def ln(self, name, x):
        return norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def token(self, token):
        x = self.ln("blocks.0.ln0", self.w["emb.weight"][token])
        first = None
        for i in range(self.depth):
            h = self.ln(f"blocks.{i}.ln1", x)
            out, first = self.time_mix(i, h, first)
            x = x + out
            h = self.ln(f"blocks.{i}.ln2", x)
            mu = self.w[f"blocks.{i}.ffn.x_k"].ravel()
            k = self.w[f"blocks.{i}.ffn.key.weight"] @ (h + (self.ffn[i] - h) * mu)
            x = x + self.w[f"blocks.{i}.ffn.value.weight"] @ np.maximum(k, 0) ** 2
            self.ffn[i] = h
        return self.w["head.weight"] @ self.ln("ln_out", x)

    def time_mix(self, i, h, first):
        p = {n.split(".att.")[1]: v for n, v in self.w.items() if n.startswith(f"blocks.{i}.att.")}
        vec = {n: v.ravel() for n, v in p.items() if v.ndim == 3}
        mixed = {m: h + (self.att[i] - h) * vec[f"x_{m}"] for m in "rwkvag"}
        self.att[i] = h
        r = p["receptance.weight"] @ mixed["r"]
        k0 = p["key.weight"] @ mixed["k"]
        v = p["value.weight"] @ mixed["v"]
        # The other parametrisation of the decay, exp(-exp(-softplus(-x) - 1/2)).
        logit = vec["w0"] + np.tanh(mixed["w"] @ p["w1"]) @ p["w2"]
        w = np.exp(-np.exp(-np.log1p(np.exp(-logit)) - 0.5))
        if i == 0:
            first = v
        else:
            v = v + (first - v) * sigmoid(vec["v0"] + (mixed["v"] @ p["v1"]) @ p["v2"])
        a = sigmoid(vec["a0"] + (mixed["a"] @ p["a1"]) @ p["a2"])
        g = sigmoid(mixed["g"] @ p["g1"]) @ p["g2"]
        kk, k = k0 * vec["k_k"], k0 * (1 + (a - 1) * vec["k_a"])
        outs = []
        for head in range(self.heads):
            at = slice(head * self.size, (head + 1) * self.size)
            unit = kk[at] / np.linalg.norm(kk[at])
            s = self.s[i, head]
            s = s * w[at] + np.outer(s @ -unit, unit * a[at]) + np.outer(v[at], k[at])
            self.s[i, head] = s
            o = norm(s @ r[at], p["ln_x.weight"][at], p["ln_x.bias"][at], self.eps)
            outs.append(o + (r[at] * k[at] * p["r_k"][head]).sum() * v[at])
        return p["output.weight"] @ (np.concatenate(outs) * g), first

    def run(self, tokens):
        return np.stack([self.token(token) for token in np.asarray(tokens)])


@pytest.fixture(scope="session")
def oracle(weights):
    return lambda eps=64e-5: Oracle(weights, eps)


@pytest.fixture(scope="session")
def make_oracle():
    return Oracle
