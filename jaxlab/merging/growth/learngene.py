"""Layers as a linear function of their depth: two blocks that initialise models of any depth."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from jaxlab.arrays import safe_sqrt
from jaxlab.merging.arrays import safe_divide
from jaxlab.merging.growth.depth import depth_of

Rule = Literal["l/L", "l/(L-1)"]
_PRECISE = jax.lax.Precision.HIGHEST


class Gene(NamedTuple):
    """Layer l of L is base + position(l, L) * slope, leaf by leaf."""

    slope: PyTree[Array]  # theta_A
    base: PyTree[Array]  # theta_B


class Linearity(NamedTuple):
    """How far layers are a function of their depth: shares of their variance."""

    linear: Float[Array, ""]  # R^2 of a line in the depth
    quadratic: Float[Array, ""]  # R^2 of a parabola
    component: Float[Array, ""]  # |correlation| of the first principal component with the depth
    null: Float[Array, " p"]  # R^2 of a line after random permutations of the layers


def positions(depth: ArrayLike, count: int, rule: Rule = "l/L") -> Float[Array, " count"]:
    """Positions of layers 0 .. count - 1 in a model of some depth.

    Args:
        depth: L, may be traced.
        count: how many positions to give.
        rule: "l/L", which never reaches 1, or "l/(L-1)".

    Returns:
        float32 numbers.

    Raises:
        ValueError: if the rule is another one.
    """
    if rule not in ("l/L", "l/(L-1)"):
        raise ValueError(f"rule: expected 'l/L' or 'l/(L-1)', got {rule!r}")
    whole = jnp.asarray(depth).astype(jnp.float32)
    return jnp.arange(count, dtype=jnp.float32) / (
        whole if rule == "l/L" else jnp.maximum(whole - 1, 1)
    )


def le_expand(
    gene: Gene, depth: int | Int[Array, ""], rule: Rule = "l/L", *, room: int | None = None
) -> PyTree[Float[Array, "L ..."]]:
    """The layers of a model of some depth.

    Args:
        gene: two blocks.
        depth: L; traced if `room` is given.
        rule: see `positions`.
        room: how many layers to return; those from `depth` on are extrapolations to be masked out,
            so that models of many depths are one program.

    Returns:
        Stacked layers, differentiable: the auxiliary model is the ordinary model applied to them.

    Reference:
        Xia et al. 2024, Transformer as linear expansion of learngene (TLEG), eq. 3.
    """
    count = room if room is not None else int(depth)
    place = positions(depth, count, rule)

    def expand(slope: Array, base: Array) -> Array:
        at = place.astype(base.dtype).reshape((count,) + (1,) * base.ndim)
        return base[None] + at * slope[None]

    return jax.tree.map(expand, gene.slope, gene.base)


def le_fit(
    stacked: PyTree[Float[Array, "L ..."]], rule: Rule = "l/L"
) -> tuple[Gene, PyTree[Float[Array, ""]]]:
    """The gene closest to given layers, leaf by leaf in the least-squares sense.

    Args:
        stacked: layers of one model.
        rule: see `positions`.

    Returns:
        The gene, and for each leaf R^2: the share of the variance over layers that it explains
        (1 where there is none).
    """
    depth = depth_of(stacked)
    place = positions(depth, depth, rule)
    centred = place - jnp.mean(place)
    square = jnp.maximum(jnp.sum(centred**2), jnp.finfo(jnp.float32).tiny)

    def fit(leaf: Array) -> tuple[Array, Array, Array]:
        at = centred.astype(leaf.dtype)
        slope = jnp.tensordot(at, leaf, 1, precision=_PRECISE) / square.astype(leaf.dtype)
        mean = jnp.mean(leaf, axis=0)
        base = mean - jnp.mean(place).astype(leaf.dtype) * slope
        spread = leaf - mean[None]
        rest = spread - jnp.tensordot(at, slope, 0)
        total = jnp.sum(spread**2)
        left = safe_divide(jnp.sum(rest**2), total, total == 0, 0.0)
        return slope, base, 1 - left

    fitted = jax.tree.map(fit, stacked)
    slope, base, r2 = (jax.tree.map(lambda _, f: f[i], stacked, fitted) for i in range(3))
    return Gene(slope, base), r2


def gene_transfer(
    gene: Gene,
    stem: dict[str, Any],
    depth: int,
    rule: Rule = "l/L",
    *,
    blocks: str = "blocks",
    head: str | None = None,
) -> dict[str, Any]:
    """A model of some depth, ready for ordinary training.

    Args:
        gene: trained in an auxiliary model.
        stem: that model's parameters; its layers, if there, are not used.
        depth: L of the new model.
        rule: see `positions`; the one that the gene was trained or fitted with.
        blocks: name of the layers.
        head: name of the output layer to leave out, as when the classes differ; None keeps it.

    Returns:
        A copy of the stem with the expanded layers.
    """
    kept = {name: value for name, value in stem.items() if name not in (blocks, head)}
    return {**kept, blocks: le_expand(gene, depth, rule)}


def linearity_report(
    key: Key[Array, ""], stacked: PyTree[Float[Array, "L ..."]], permutations: int = 200
) -> Linearity:
    """Tests whether trained layers are linear in their depth.

    Args:
        key: random key of the permutations.
        stacked: layers of a model that was trained without that constraint.
        permutations: size of the null distribution.

    Returns:
        All leaves together. Any L points have some R^2 with a line, 1 / (L - 1) on average in
        random order, so compare with `null`.

    Reference:
        Xia et al. 2024, Transformer as linear expansion of learngene, figure 1.
    """
    depth = depth_of(stacked)
    flat = [leaf.reshape(depth, -1).astype(jnp.float32) for leaf in jax.tree.leaves(stacked)]
    centred = [x - jnp.mean(x, axis=0, keepdims=True) for x in flat]
    gram = sum((jnp.matmul(x, x.T, precision=_PRECISE) for x in centred), jnp.zeros((depth, depth)))
    total = jnp.trace(gram)
    place = jnp.linspace(-1, 1, depth)

    def explained(directions: Float[Array, "k L"]) -> Array:
        basis, _ = jnp.linalg.qr(directions.T)
        share = jnp.sum(basis * jnp.matmul(gram, basis, precision=_PRECISE))
        return safe_divide(share, total, total == 0, 1.0)

    line = place - jnp.mean(place)
    square = place**2
    parabola = jnp.stack([line, square - jnp.mean(square)])
    _, vectors = jnp.linalg.eigh(gram)
    first = vectors[:, -1]
    orders = jax.vmap(lambda k: jax.random.permutation(k, depth))(
        jax.random.split(key, permutations)
    )
    return Linearity(
        explained(line[None]),
        explained(parabola),
        jnp.abs(jnp.dot(first, line)) / safe_sqrt(jnp.dot(line, line)),
        jax.vmap(lambda order: explained(line[order][None]))(orders),
    )


def kd_loss(
    student: Float[Array, "*b k"],
    teacher: Float[Array, "*b k"],
    tau: ArrayLike = 1.0,
    *,
    reduction: Literal["numel", "batchmean"] = "batchmean",
) -> Float[Array, ""]:
    """Soft distillation: tau^2 KL(teacher || student) of the softened classes.

    Args:
        student: logits.
        teacher: logits; constant under differentiation.
        tau: temperature.
        reduction: divide the sum over examples by their number ("batchmean"), or by the number of
            logits ("numel"), which is K times smaller.

    Returns:
        The loss.

    Raises:
        ValueError: if the reduction is another one.

    Reference:
        Hinton et al. 2015, Distilling the knowledge in a neural network, section 2.
    """
    if reduction not in ("numel", "batchmean"):
        raise ValueError(f"reduction: expected 'numel' or 'batchmean', got {reduction!r}")
    warm = jnp.asarray(tau).astype(student.dtype)
    known = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / warm)
    found = jax.nn.log_softmax(student / warm)
    total = warm**2 * jnp.sum(jnp.exp(known) * (known - found))
    return total / (student.size if reduction == "numel" else student.size // student.shape[-1])
