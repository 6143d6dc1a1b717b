"""The transformers backend: a checkpoint in this process, on a CPU or one GPU, greedy."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evalkit.errors import BadInput
from evalkit.files import versions
from evalkit.models.backends.batches import batches, one_ahead
from evalkit.models.backends.cpu_dtype import fastest_on_cpu, say_which
from evalkit.models.backends.in_flight import failed
from evalkit.models.backends.options import ModelOptions
from evalkit.models.backends.prefix import common_prefix
from evalkit.models.backends.probe import PROBE, not_finite, require_adapter_in_use, require_finite
from evalkit.models.causal_lm import load_causal_lm, with_adapter
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder
from evalkit.models.rope.modules import read_back_transformers, rebuild_rotary_modules
from evalkit.models.rope.readback import GPU_TOLERANCE, TOLERANCE, compare_model, expected_frequencies
from evalkit.models.rope.served import ServedRope, config_for
from evalkit.models.tokenizer import decode_answer, stop_token_ids
from evalkit.options import option
from evalkit.types import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_ANSWER_SHARE = 1 / 16
"""On a CPU, prompts are batched when their answers may have this part of their tokens, or when they are short:"""
_SHORT = 512
"""tokens. A padded batch needs a mask, under which attention to 4,096 tokens takes three times as long as without
(torch 2.13, float32); batches pay off where decoding takes longer than reading."""


@dataclass(frozen=True, kw_only=True)
class HFOptions(ModelOptions):
    """How transformers runs."""

    GROUP: ClassVar[str] = "Backend hf"

    device: Literal["auto", "cpu", "cuda"] = option("--device", "[auto: a GPU where there is one]", default="auto")
    batch_tokens: int | None = option(
        "--batch-tokens", "Padded prompt tokens per batch [8192 on a CPU, 65536 on a GPU].", default=None
    )
    prefill_chunk: int | None = option(
        "--prefill-chunk", "Read longer prompts so many tokens at a time: in less memory, slower [whole].", default=None
    )

    @property
    def gpus(self) -> int:
        """One, unless it shall run on a CPU."""
        return 0 if self.device == "cpu" else 1

    def scoring_tokens(self, prompt: int, candidate: int) -> int:
        """All but the first, which the prompt's own logits predict, and the last."""
        return candidate - 1

    @property
    def decisive(self) -> dict[str, Any]:
        """The model's, and the chunks that prompts are read in, which add up in another order."""
        return super().decisive | ({"prefill chunk": self.prefill_chunk} if self.prefill_chunk else {})

    def __post_init__(self) -> None:
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise BadInput(f"--batch-tokens is {self.batch_tokens}; a batch has at least 1 token.")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise BadInput(f"--prefill-chunk is {self.prefill_chunk}; a chunk has at least 1 token.")


OPTIONS = HFOptions


def open_backend(
    checkpoint: Checkpoint,
    encoder: Encoder,
    options: HFOptions,
    *,
    groups: Sequence[Sequence[str]],
    logprobs: bool,
) -> "HFBackend":
    """Return the backend with nothing loaded; see ``backends.open_backend``.

    Raises:
        BadInput: transformers cannot build the model of this config.
    """
    if checkpoint.unbuilt:
        raise BadInput(checkpoint.unbuilt)
    return HFBackend(checkpoint, encoder.tokenizer, options, logprobs=logprobs)


class HFBackend:
    """Greedy decoding with a KV cache, prompts of similar length padded into one batch.

    The caller sends the longest prompts first, so that what does not fit into memory shows at once.
    """

    name = "hf"
    warnings: tuple[str, ...] = ()

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Any, options: HFOptions | None = None, *, logprobs: bool = False
    ) -> None:
        """Take what is asked; the first ``serve`` loads it.

        Args:
            checkpoint: what is asked, with its adapter (merged into the weights).
            tokenizer: the checkpoint's.
            options: how it runs.
            logprobs: fill ``Completion.logprobs``.

        Raises:
            BadInput: the device is missing, or transformers has no such attention.
        """
        import torch

        options = options or HFOptions()
        if options.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("No CUDA device is visible to torch here; use --device cpu, or a machine with a GPU.")
        _require_attention(options.attention)
        self.checkpoint, self.tokenizer, self.logprobs = checkpoint, tokenizer, logprobs
        self._attention, self._chunk = options.attention, options.prefill_chunk
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        self.batch_tokens = options.batch_tokens or (65_536 if self.device == "cuda" else 8_192)
        self.stops = stop_token_ids(checkpoint.path, tokenizer)
        self.model: Any = None
        self._dtype: str = options.dtype
        if options.dtype == "auto" and self.device == "cpu":
            self._dtype = fastest_on_cpu(checkpoint.dtype, checkpoint.hidden_size)
            self.warnings = say_which(checkpoint.dtype, checkpoint.hidden_size)

    def serve(self, rope: ServedRope, lengths: Sequence[str], positions: int) -> list[dict[str, Any]]:
        """Load the weights, or switch the rule of the loaded ones, and compare what they compute with it.

        Raises:
            BadInput: the adapter cannot be put on, or changes nothing; prompts cannot be read in chunks.
            EngineError: the weights cannot be loaded, are not complete, or compute another rule.
        """
        self._follows_length = bool(rope.long)
        if self.model is None:
            model = load_causal_lm(
                self.checkpoint.path,
                config_for(self.checkpoint.path, rope.mapping),
                self._dtype,
                attention=self._attention,
            )
            self.model = model.to(self.device).eval()
            self._put_adapter_on()
        else:
            self.set_rope(rope.mapping)
        if self._chunk and not self._continues:
            raise BadInput(
                f"--prefill-chunk {self._chunk}: {self.checkpoint.path} must read a prompt whole, since its layers "
                "keep a window or a state instead of all keys, or its frequencies hang on the length; leave the option "
                "out."
            )
        expected = expected_frequencies(self.checkpoint, rope)
        effective = read_back_transformers(self.model, positions=rope.window)
        tolerance = GPU_TOLERANCE if self.device == "cuda" else TOLERANCE
        return [one.to_json() for one in compare_model(expected, effective, tolerance=tolerance)]

    def identity(self) -> dict[str, Any]:
        """Return what can change an answer; see ``backends.Backend``."""
        return {
            "name": self.name,
            "versions": versions(("torch", "transformers")),
            "device": self.device,
            "dtype": self._loaded_dtype,
            "attention": self.model.config._attn_implementation,
            "stop_ids": list(self.stops),
        } | ({"prefill_chunk": self._chunk} if self._chunk else {})

    def settings(self) -> dict[str, Any]:
        """Return what cannot change an answer; see ``backends.Backend``."""
        return {"batch_tokens": self.batch_tokens}

    def set_rope(self, rope: Mapping[str, Any] | None) -> None:
        """Serve the loaded weights with another rope rule: rotary modules are built anew from the changed config."""
        wanted = config_for(self.checkpoint.path, rope).get_text_config()
        for config in {id(c): c for m in self.model.modules() if (c := getattr(m, "config", None))}.values():
            if config.model_type == wanted.model_type:  # modules may read the rope entry at every step
                for field in ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings"):
                    if hasattr(wanted, field):
                        setattr(config, field, deepcopy(getattr(wanted, field)))
        rebuild_rotary_modules(self.model)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Yield each prompt with its greedy completion as soon as its row of the batch is finished.

        What adjacent prompts about one context have in common is computed once. The next batch is pulled, which builds
        its prompts, while one is answered.
        """
        for batch in one_ahead(prompts, self._batches):
            yield from self._answer(batch)

    def close(self) -> None:
        """Drop the weights."""
        import torch

        self.model = None
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def _loaded_dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def _put_adapter_on(self) -> None:
        """Merge the adapter, if there is one, into the loaded weights, and prove that it changes what they compute."""
        adapter = self.checkpoint.adapter
        if adapter is None:
            return
        before = self._probe()
        self.model = with_adapter(self.model, adapter.path).eval()
        require_adapter_in_use(adapter, before, self._probe(), f"in {self._loaded_dtype}")

    def _probe(self) -> list[float]:
        """Return the log-probabilities of the probe's tokens, all but the first."""
        import torch

        ids = torch.tensor([self.tokenizer(PROBE, add_special_tokens=False).input_ids], device=self.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
        found: list[float] = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten().tolist()
        return found

    def _batches(self, prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
        """Put together what is answered together: prompts about one context, or of similar length."""
        until_none_is_there = (prompt for prompt in prompts)  # groupby drops what comes behind an end
        for context, about in groupby(until_none_is_there, key=self._context):
            if context:
                yield list(about)
            else:
                yield from batches(about, self.batch_tokens, alone=self._goes_alone)

    def _context(self, prompt: Prompt) -> tuple[str, str, str] | None:
        """Name the context that a prompt shares with others; None where it is computed for the prompt alone.

        Short ones are, in large batches.
        """
        sample = prompt.sample
        if not sample.context_id or len(prompt.token_ids) <= _SHORT or not self._continues:
            return None
        return sample.subset, prompt.length, sample.context_id

    @property
    def _continues(self) -> bool:
        """Whether a prompt can be read in parts: every layer keeps what it has read, and no frequencies hang on the
        whole length, as longrope's do.
        """
        return not self._follows_length and self._keeps_all_keys

    @cached_property
    def _keeps_all_keys(self) -> bool:
        """Whether what a prompt leaves in the cache serves each of its beginnings too: no state, no window of keys."""
        import torch
        from transformers.cache_utils import DynamicLayer

        ids = torch.tensor([self.tokenizer(PROBE, add_special_tokens=False).input_ids], device=self.device)
        with torch.inference_mode():
            cache = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
        layers = getattr(cache, "layers", [])
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def _in_chunks(self, prompt: Prompt) -> bool:
        return self._chunk is not None and len(prompt.token_ids) > self._chunk

    def _goes_alone(self, prompt: Prompt) -> bool:
        tokens = len(prompt.token_ids)
        mostly_reads = tokens > _SHORT and prompt.max_new_tokens < _ANSWER_SHARE * tokens
        return self._in_chunks(prompt) or (self.device == "cpu" and mostly_reads)

    def _answer(self, batch: list[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Answer a batch; when it does not fit into memory, answer its halves."""
        import torch

        waiting = [batch]
        while waiting:
            part = waiting.pop()
            unanswered = {id(prompt): prompt for prompt in part}
            try:
                for prompt, completion in self._decode(part):
                    del unanswered[id(prompt)]
                    yield prompt, completion
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Its traceback held the batch's tensors: only behind the clause can their memory be freed.
            if not unanswered:
                continue
            rest = list(unanswered.values())
            if self.device == "cuda":
                torch.cuda.empty_cache()
            if len(rest) == 1 == len(part):
                tokens = len(rest[0].token_ids)
                reason = (
                    f"engine: out of memory at {tokens} prompt tokens; use --dtype bfloat16, --prefill-chunk or vllm"
                )
                yield rest[0], failed(reason, retryable=True)  # another process may have held the memory
            else:
                half = max(len(rest) // 2, 1)
                waiting += [part for part in (rest[half:], rest[:half]) if part]

    def _decode(self, batch: list[Prompt]) -> Iterator[tuple[Prompt, Completion]]:
        """Answer a batch of prompts; those about one context from one cache of what they have in common.

        A prompt in chunks is read into such a cache too, all but its last token.
        """
        started = time.perf_counter()
        in_parts = self._context(batch[0]) if len(batch) > 1 else self._in_chunks(batch[0])
        shared = common_prefix(batch) if in_parts else 0
        if not shared:
            yield from self._decode_rows(batch, started)
            return
        cache = self._prefill(batch[0].token_ids[:shared])
        for rows in batches(batch, self.batch_tokens):
            own = _repeated(cache, len(rows)) if len(batch) > 1 else cache
            for prompt, completion in self._decode_rows(rows, started, shared, own):
                cached = 0 if prompt is batch[0] else shared
                yield prompt, replace(completion, num_cached_tokens=cached)

    def _prefill(self, token_ids: "NDArray[np.int32]") -> Any:
        """Return the cache of these tokens, read in chunks where that was asked for."""
        import torch

        ids = torch.from_numpy(token_ids.astype("int64"))[None].to(self.device)
        mask, positions = torch.ones_like(ids), torch.arange(ids.shape[1], device=self.device)[None]
        size, cache = self._chunk or ids.shape[1], None
        with torch.inference_mode():
            for start in range(0, ids.shape[1], size):
                cache = self.model(
                    input_ids=ids[:, start : start + size],
                    attention_mask=mask[:, : start + size],
                    position_ids=positions[:, start : start + size],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).past_key_values
        return cache

    def _decode_rows(
        self, batch: list[Prompt], started: float, shared: int = 0, cache: Any = None
    ) -> Iterator[tuple[Prompt, Completion]]:
        """Prefill the left-padded batch once, then add one token a step to the rows that are not finished.

        Args:
            batch: the prompts.
            started: when they were taken up, by the performance counter.
            shared: tokens at the beginning of each that ``cache`` holds already.
            cache: of as many rows as there are prompts.
        """
        import torch

        ids, mask = self._pad(batch, shared)
        rows = list(range(len(batch)))
        answers: list[list[int]] = [[] for _ in batch]
        logprobs: list[list[float]] = [[] for _ in batch]
        scored: list[tuple[float, ...]] = [() for _ in batch]
        with torch.inference_mode():
            # The mask is always passed: without it, transformers takes gaps in position_ids for packed sequences.
            step = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, shared:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            if any(prompt.candidates for prompt in batch):
                scored = self._score_candidates(batch, mask, step)
            while True:
                cache, logits = step.past_key_values, step.logits[:, -1]
                best, next_ids = logits.max(-1)
                if not bool(best.isfinite().all()):  # the largest of numbers with a NaN among them is NaN
                    row = rows[int(best.isfinite().logical_not().nonzero()[0])]
                    raise not_finite(self.checkpoint.path, self._loaded_dtype, len(batch[row].token_ids))
                chosen = logits.float().log_softmax(-1).amax(-1).tolist() if self.logprobs else []
                keep: list[int] = []
                for place, (row, token) in enumerate(zip(rows, next_ids.tolist(), strict=True)):
                    stopped = token in self.stops
                    if not stopped:
                        answers[row].append(token)
                        logprobs[row] += chosen[place : place + 1]
                    if stopped or len(answers[row]) >= batch[row].max_new_tokens:
                        seconds = time.perf_counter() - started
                        completion = self._completion(answers[row], stopped, seconds, logprobs[row])
                        yield batch[row], replace(completion, candidate_logprobs=scored[row])
                    else:
                        keep.append(place)
                if not keep:
                    return
                if len(keep) < len(rows):
                    kept = torch.tensor(keep, device=self.device)
                    cache.reorder_cache(kept)  # every kind of layer can, also those with a state instead of keys
                    mask, next_ids = mask[kept], next_ids[kept]
                    rows = [rows[place] for place in keep]
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                step = self.model(
                    input_ids=next_ids[:, None],
                    attention_mask=mask,
                    position_ids=mask.sum(-1, keepdim=True) - 1,
                    past_key_values=cache,
                    use_cache=True,
                )

    def _score_candidates(self, batch: list[Prompt], mask: "torch.Tensor", prefill: Any) -> list[tuple[float, ...]]:
        """Return the log-probability of each prompt's candidates; the first tokens' are in the prompts' own logits.

        Those behind are read on a copy of the prompts' keys and values (or of whatever state the model keeps), the
        n-th candidates of all prompts at once, padded on the right.
        """
        import torch

        first = prefill.logits[:, -1].float().log_softmax(-1)
        found: list[list[float]] = [[] for _ in batch]
        lists = [[torch.from_numpy(ids.astype("int64")) for ids in prompt.candidates.values()] for prompt in batch]
        for place in range(max(map(len, lists))):
            rows = [row for row, own in enumerate(lists) if place < len(own)]
            texts = [lists[row][place] for row in rows]
            sums = [float(first[row, text[0]]) for row, text in zip(rows, texts, strict=True)]
            longest = max(map(len, texts)) - 1
            if longest:
                ids = torch.zeros(len(batch), longest, dtype=torch.long)
                for row, text in zip(rows, texts, strict=True):
                    ids[row, : len(text) - 1] = text[:-1]
                steps = torch.arange(longest, device=self.device)
                logits = self.model(
                    input_ids=ids.to(self.device),
                    attention_mask=torch.cat([mask, mask.new_ones(len(batch), longest)], dim=1),
                    position_ids=mask.sum(-1, keepdim=True) + steps,
                    past_key_values=deepcopy(prefill.past_key_values),
                    use_cache=True,
                ).logits
                for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
                    behind = text[1:].to(self.device)
                    logprobs = logits[row, : len(behind)].float().log_softmax(-1)
                    sums[i] += float(logprobs.gather(-1, behind[:, None]).sum())
            for row, value in zip(rows, sums, strict=True):
                require_finite([value], self.checkpoint.path, self._loaded_dtype, len(batch[row].token_ids))
                found[row].append(value)
        return [tuple(values) for values in found]

    def _pad(self, batch: list[Prompt], shared: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the ids behind the shared ones, padded on the left, and the mask of all.

        Shapes (batch, longest prompt - shared) and (batch, longest prompt).
        """
        import torch

        longest = max(len(prompt.token_ids) for prompt in batch)
        ids = torch.zeros(len(batch), longest - shared, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        mask[:, :shared] = 1
        for row, prompt in enumerate(batch):
            rest = torch.from_numpy(prompt.token_ids[shared:].astype("int64"))
            ids[row, longest - shared - len(rest) :] = rest
            mask[row, longest - len(rest) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _completion(self, token_ids: list[int], stopped: bool, seconds: float, logprobs: list[float]) -> Completion:
        return Completion(
            text=decode_answer(self.tokenizer, token_ids),
            token_ids=tuple(token_ids),
            finish_reason="stop" if stopped else "length",
            seconds=seconds,
            logprobs=tuple(logprobs),
        )


def _repeated(cache: Any, rows: int) -> Any:
    """Return a cache with so many rows for one, which grows without changing the first: layers only replace tensors."""
    own = copy(cache)
    own.layers = [copy(layer) for layer in cache.layers]
    if rows > 1:
        own.batch_repeat_interleave(rows)
    return own


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory could not be had, on a GPU or (torch has no class for it there) on a CPU."""
    import torch

    words = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux and macOS, on Windows
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in words)


def _require_attention(name: str | None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = ["eager", *sorted(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]
    if name is not None and name not in names:  # a name with a slash would be downloaded
        raise BadInput(f"--attention-backend {name}: transformers has {', '.join(names)}.")
