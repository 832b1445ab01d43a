"""Files exchanged with PyTorch and safetensors, and logits of the `rwkv` package, if installed."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7.checkpoints.pth import read_pth, write_pth
from jaxlab.rwkv7.checkpoints.safetensors import read_safetensors, write_safetensors


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def as_torch(torch, tensors):
    state = {name: np.array(tensor.read(), np.float32) for name, tensor in tensors.items()}
    return {name: torch.from_numpy(array) for name, array in state.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_torch_saves_is_read_equal(torch, params, config, tmp_path, dtype):
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    state = as_torch(torch, rwkv7.to_tensors(cast, config))
    path = tmp_path / "model.pth"
    torch.save({name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}, path)
    loaded, found = rwkv7.load(path, dtype="float32")
    assert found.param_dtype == jnp.dtype(dtype)
    jax.tree.map(np.testing.assert_array_equal, loaded, cast)


def test_views_and_modules(torch, tmp_path):
    """Shared storages, transposed and offset views, version numbers of modules, other protocols."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(3, 2).half()
    state = module.state_dict()
    state.update(t=base.t(), row=base[2], part=base[1:3, 2:5], scalar=base[3, 5], none=base[:0])
    path = tmp_path / "views.pth"
    for protocol in (2, 4):
        torch.save(state, path, pickle_protocol=protocol)
        found = read_pth(path)
        assert set(found) == set(state)
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name].read(), tensor.numpy())
            assert found[name].shape == tuple(tensor.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_reads_what_is_written(torch, params, config, tmp_path, dtype):
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    tensors = rwkv7.to_tensors(cast, config)
    path = tmp_path / "model.pth"
    write_pth(path, tensors)
    for options in ({}, {"mmap": True}):
        found = torch.load(path, weights_only=True, **options)
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == getattr(torch, dtype)
            want = np.asarray(tensor.read(), np.float32)
            np.testing.assert_array_equal(found[name].float().numpy(), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_reads_what_is_written_and_back(params, config, tmp_path, dtype):
    peer = pytest.importorskip("safetensors.numpy")
    tensors = rwkv7.to_tensors(jax.tree.map(lambda x: x.astype(dtype), params), config)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors)
    if dtype == "bfloat16":  # its NumPy side knows no bfloat16
        pytest.importorskip("torch")
        import safetensors.torch

        found = {k: v.float().numpy() for k, v in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    else:
        found = peer.load_file(path)
        peer.save_file(found, path)
    again = read_safetensors(path)
    assert set(found) == set(tensors) == set(again)
    for name, tensor in tensors.items():
        want = np.asarray(tensor.read(), np.float32)
        np.testing.assert_array_equal(found[name], want)
        np.testing.assert_array_equal(np.asarray(again[name].read(), np.float32), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript, which it imports
def test_logits_of_the_rwkv_package(torch, monkeypatch, tmp_path, make_config, make_params):
    """It rounds exp(-1/2) to 0.606531, which alone moves logits by about 1e-6 of their spread."""
    pytest.importorskip("rwkv")
    for name, value in {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "rwkv.model", raising=False)
    from rwkv.model import RWKV

    config = make_config(n_embd=128, head_size=64, dim_ffn=512, ranks=(32, 16, 8, 24))
    params = make_params(5, config, scale=0.1)
    path = tmp_path / "model"
    rwkv7.save(f"{path}.pth", params, config)
    peer = RWKV(model=str(path), strategy="cpu fp32")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 50)
    got, state = rwkv7.forward(params, config, jnp.asarray(tokens)[None])
    want, peer_state = peer.forward(tokens.tolist(), None, full_output=True)
    want = want.numpy()
    error = np.abs(np.asarray(got[0]) - want).max() / want.std()
    print(f"largest difference of logits: {error:.2e} of their standard deviation")
    assert error < 1e-4
    for layer in range(config.n_layer):
        shift, wkv, ffn_shift = peer_state[3 * layer : 3 * layer + 3]
        for ours, theirs in zip(state, (shift, wkv, ffn_shift)):
            spread = float(theirs.std())
            np.testing.assert_allclose(ours[layer, 0], theirs.numpy(), atol=1e-4 * spread)
    stepped, _ = peer.forward(int(tokens[0]), peer_state)
    logits, _ = rwkv7.step(params, config, jnp.asarray(tokens[:1]), state)
    np.testing.assert_allclose(logits[0], stepped.numpy(), atol=1e-4 * want.std())


def test_the_released_vocabulary():
    """The `rwkv` package ships it, and a tokenizer of its own."""
    package = pytest.importorskip("rwkv.rwkv_tokenizer")
    path = Path(package.__file__).with_name("rwkv_vocab_v20230424.txt")
    ours, peer = rwkv7.Tokenizer.from_file(path), package.TRIE_TOKENIZER(str(path))
    assert ours.vocab_size == 65530
    for text, ids in {
        "a": [98],
        "Hello world": [33155, 40213],
        "\n\n": [261],
        "12345 + 678 = ": [632, 654, 54, 278, 3540, 57, 296, 33],
    }.items():
        assert ours.encode(text) == peer.encode(text) == ids
    rng = np.random.default_rng(0)
    texts = [Path(__file__).read_text(), "日本語 é \U0001f600 \u0000 Ünïcödé\r\n\t" * 3]
    letters = [chr(n) for n in rng.integers(32, 0x2FFF, 2000)]
    for text in [*texts, "".join(letters)]:
        ids = ours.encode(text)
        assert ids == peer.encode(text)
        assert ours.decode(ids) == text
