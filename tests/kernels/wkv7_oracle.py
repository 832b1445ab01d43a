"""WKV-7 in float64 NumPy: the recurrence and its hand-written reverse pass, token by token."""

import numpy as np

NAMES = ("r", "logw", "k", "v", "a", "b")


def _double(x):
    return None if x is None else np.asarray(x).astype(np.float64)


def _start(s0, r, v):
    batch, _, heads, width = r.shape
    shape = (batch, heads, v.shape[-1], width)
    return np.zeros(shape) if s0 is None else np.broadcast_to(_double(s0), shape).copy()


def _outer(rows, columns):
    return rows[..., :, None] * columns[..., None, :]


def _times(matrix, vector):
    return (matrix @ vector[..., None])[..., 0]


def _transposed_times(matrix, vector):
    return (vector[..., None, :] @ matrix)[..., 0, :]


def forward(inputs, s0=None, reset=None, reset_state=None):
    """y, the last state, and for each token the states that it read and left behind."""
    r, logw, k, v, a, b = map(_double, inputs)
    state, fresh = _start(s0, r, v), _start(reset_state, r, v)
    y, states = np.zeros(v.shape), []
    for t in range(r.shape[1]):
        if reset is not None:
            state = np.where(np.asarray(reset)[:, t, None, None, None], fresh, state)
        read, sa = state, _times(state, a[:, t])
        state = state * np.exp(logw[:, t])[:, :, None, :]
        state = state + _outer(sa, b[:, t]) + _outer(v[:, t], k[:, t])
        y[:, t] = _times(state, r[:, t])
        states.append((read, state))
    return y, state, states


def backward(inputs, dy, ds, s0=None, reset=None, reset_state=None):
    """Cotangents by name: r, logw, k, v, a, b, s0, reset_state (states per batch row)."""
    r, logw, k, v, a, b = map(_double, inputs)
    dy, cot = _double(dy), _double(ds).copy()
    _, last, states = forward(inputs, s0, reset, reset_state)
    out = {name: np.zeros(x.shape) for name, x in zip(NAMES, (r, logw, k, v, a, b))}
    dreset = np.zeros_like(last)
    for t in reversed(range(r.shape[1])):
        read, left = states[t]
        cot = cot + _outer(dy[:, t], r[:, t])
        out["r"][:, t] = _transposed_times(left, dy[:, t])
        out["v"][:, t] = _times(cot, k[:, t])
        out["k"][:, t] = _transposed_times(cot, v[:, t])
        dsa = _times(cot, b[:, t])
        out["b"][:, t] = _transposed_times(cot, _times(read, a[:, t]))
        out["a"][:, t] = _transposed_times(read, dsa)
        decay = np.exp(logw[:, t])
        out["logw"][:, t] = decay * np.sum(cot * read, axis=2)
        cot = cot * decay[:, :, None, :] + _outer(dsa, a[:, t])
        if reset is not None:
            stop = np.asarray(reset)[:, t, None, None, None]
            dreset += np.where(stop, cot, 0)
            cot = np.where(stop, 0, cot)
    return {**out, "s0": cot, "reset_state": dreset}


def relative_error(got, want):
    """Relative l2 error in float64; absolute where the wanted array is 0."""
    got, want = _double(got), _double(want)
    norm = np.linalg.norm(want)
    return np.linalg.norm(got - want) / (norm if norm else 1.0)
