"""`jaxlab generate`: text from RWKV-7 weights, printed as it comes."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.cli.usage import UsageError, parse

if TYPE_CHECKING:
    from jaxlab.rwkv7 import Config, Params, State, Tokenizer

SIGINT_STATUS = 130


@dataclass(frozen=True)
class GenerateOptions:
    """What to continue, with which model, and how."""

    weights: str = ""  # .pth, .safetensors, or a Hugging Face folder
    state: str = ""  # tuned initial state of these weights: .safetensors or .pth
    vocab: str = ""  # vocabulary file, or "bytes" for a model of bytes
    prompt: str = ""  # text to be continued
    tokens: int = 200  # at most so many
    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # keep so many tokens; 0: all
    top_p: float = 1.0  # keep the most likely tokens with this mass
    seed: int = 0  # the same seed gives the same text
    stop: tuple[str, ...] = ()  # end before any of these texts


def _check(options: GenerateOptions) -> None:
    if not options.weights:
        raise UsageError("name the weights: jaxlab generate --weights FILE --vocab FILE|bytes")
    if not options.vocab:
        raise UsageError("name the vocabulary: --vocab FILE, or --vocab bytes")
    if options.tokens < 1:
        raise UsageError(f"tokens: expected at least 1, got {options.tokens}")
    if not options.temperature >= 0:  # nor NaN
        raise UsageError(f"temperature: expected at least 0, got {options.temperature:g}")
    if options.top_k < 0:
        raise UsageError(f"top-k: expected at least 0, got {options.top_k}")
    if not 0 <= options.top_p <= 1:
        raise UsageError(f"top-p: expected between 0 and 1, got {options.top_p:g}")
    if "" in options.stop:
        raise UsageError("stop: expected texts that are not empty")


def main(words: Sequence[str]) -> int:
    """Continues a prompt on standard output; numbers about it go to standard error.

    Args:
        words: what was typed after `generate`.

    Returns:
        0, or 130 if interrupted.

    Raises:
        UsageError: no weights or vocabulary, or files that are not what they should be.
    """
    about = "Continues a prompt with an RWKV-7 model; the text comes token by token."
    options = parse(GenerateOptions, words, GenerateOptions(), "jaxlab generate", about)
    _check(options)
    tokenizer = _tokenizer(options.vocab)
    params, config = _load(Path(options.weights), tokenizer)
    state = _load_state(Path(options.state), config) if options.state else None
    prompt = _encode(tokenizer, options.prompt)
    started, total = time.monotonic(), 0
    try:
        for piece, count in _pieces(options, params, config, state, tokenizer, prompt):
            total = count
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print()
        return SIGINT_STATUS
    print()
    seconds = time.monotonic() - started
    print(f"{len(prompt)} + {total} tokens in {seconds:.1f} s", file=sys.stderr)
    return 0


def _tokenizer(vocab: str) -> Tokenizer:
    from jaxlab.rwkv7 import Tokenizer

    if vocab == "bytes":
        return Tokenizer.of_bytes()
    try:
        return Tokenizer.from_file(vocab)
    except (OSError, ValueError) as error:
        raise UsageError(_sentence(error)) from error


def _load(weights: Path, tokenizer: Tokenizer) -> tuple[Params, Config]:
    import jax

    from jaxlab.rwkv7 import CheckpointError, load

    # CPUs compute bfloat16 products more slowly than float32 ones.
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        params, config = load(weights, dtype=dtype, param_dtype=dtype)
    except (OSError, CheckpointError) as error:
        raise UsageError(_sentence(error)) from error
    known = tokenizer.vocab_size
    if config.vocab_size < known:
        raise UsageError(
            f"the vocabulary has {known} tokens, but {weights} was trained with {config.vocab_size}"
        )
    # Tables are padded to round sizes; ids without text must not be chosen.
    params = params | {"emb": params["emb"][:known], "head": params["head"][:known]}
    return params, dataclasses.replace(config, vocab_size=known)


def _load_state(path: Path, config: Config) -> State:
    from jaxlab.rwkv7 import CheckpointError, initial_state, load_learned_state

    try:
        return initial_state(config, 1, load_learned_state(path, config))
    except (OSError, CheckpointError) as error:
        raise UsageError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    from jaxlab.rwkv7.tokenizer import END_OF_DOCUMENT

    try:
        # Behind the end of a document a new one begins.
        return tokenizer.encode(prompt) or [END_OF_DOCUMENT]
    except ValueError as error:
        raise UsageError(f"prompt: {error}") from error


def _pieces(
    options: GenerateOptions,
    params: Any,
    config: Any,
    state: State | None,
    tokenizer: Tokenizer,
    prompt: list[int],
) -> Iterator[tuple[str, int]]:
    """Text that will not be taken back, and the number of tokens so far."""
    import jax

    from jaxlab.rwkv7 import Sampler, StreamDecoder, stream
    from jaxlab.rwkv7.tokenizer import END_OF_DOCUMENT

    sampler = Sampler(
        options.temperature, options.top_k or None, None if options.top_p == 1 else options.top_p
    )
    decoder, pending, count = StreamDecoder(tokenizer), "", 0
    tokens = stream(
        params,
        config,
        prompt,
        options.tokens,
        jax.random.key(options.seed),
        sampler,
        stop_tokens=(END_OF_DOCUMENT,),
        state=state,
    )
    for ids in tokens:
        count += len(ids)
        pending += decoder.feed(ids)
        found = [at for at in map(pending.find, options.stop) if at >= 0]
        if found:
            yield pending[: min(found)], count
            return
        held = _held_back(pending, options.stop)
        yield pending[: len(pending) - held], count
        pending = pending[len(pending) - held :]
    yield pending + decoder.finish(), count


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may still turn out to be the beginning of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
