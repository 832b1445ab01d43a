"""RWKV-7 "Goose": the model, its training recipe, its checkpoints, its tokenizer, and decoding."""

from jaxlab.rwkv7.checkpoints import (
    CheckpointError,
    from_tensors,
    load,
    load_learned_state,
    save,
    save_learned_state,
    to_tensors,
)
from jaxlab.rwkv7.config import Config, Ranks, default_ranks
from jaxlab.rwkv7.generation import Generation, decode, generate, stream
from jaxlab.rwkv7.initialization import Params, init, num_params
from jaxlab.rwkv7.losses import l2wrap_cross_entropy
from jaxlab.rwkv7.model import features, forward, prefill, receptances_and_keys, run_blocks, step
from jaxlab.rwkv7.optimization import learning_rate_schedule, optimizer, param_labels
from jaxlab.rwkv7.sampling import Sampler, filtered_logits, sample, top_k, top_p
from jaxlab.rwkv7.state import State, initial_state
from jaxlab.rwkv7.tokenizer import StreamDecoder, Tokenizer
from jaxlab.rwkv7.training import Training, TrainState, make_training

__all__ = [
    "CheckpointError",
    "Config",
    "Generation",
    "Params",
    "Ranks",
    "Sampler",
    "State",
    "StreamDecoder",
    "Tokenizer",
    "TrainState",
    "Training",
    "decode",
    "default_ranks",
    "features",
    "filtered_logits",
    "forward",
    "from_tensors",
    "generate",
    "init",
    "initial_state",
    "l2wrap_cross_entropy",
    "learning_rate_schedule",
    "load",
    "load_learned_state",
    "make_training",
    "num_params",
    "optimizer",
    "param_labels",
    "prefill",
    "receptances_and_keys",
    "run_blocks",
    "sample",
    "save",
    "save_learned_state",
    "step",
    "stream",
    "to_tensors",
    "top_k",
    "top_p",
]
