"""Batched sampling with a key-value cache: the loop behind `LocalLLM.sample`.

Prompts are evaluated as one token trie, so that what they share, down to one prompt asked for
many traces, is computed once. Each row then takes its path through the trie as its own cache,
padded on the left, and all rows grow by one column per step.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import DynamicCache

from bayesmeta.llm.base import Sampling
from bayesmeta.llm.trie import PackedTrie, pack, partition


class RowCache(DynamicCache):
    """Keys and values per layer, [rows, heads, columns, head_dim], written in place.

    transformers' own dynamic cache copies everything it holds at every token; this one has room
    for ``capacity`` columns from the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.filled = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx == len(self.buffers):
            self.buffers.append((key_states, value_states))
            return key_states, value_states
        keys, values = self.buffers[layer_idx]
        stop = self.filled + key_states.shape[2]
        keys[:, :, self.filled : stop] = key_states
        values[:, :, self.filled : stop] = value_states
        return keys[:, :, :stop], values[:, :, :stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.filled

    def fill(
        self,
        prefill: "RowCache",
        paths: Mapping[int, Int[np.ndarray, " length"]],
        rows: int,
        room: int,
    ) -> None:
        """Give some rows the keys and values on their paths through an evaluated trie.

        Row ``i`` gets ``paths[i]``, ending at column ``self.filled``.
        """
        for layer, pair in enumerate(prefill.buffers):
            if layer == len(self.buffers):
                shape = (rows, pair[0].shape[1], self.filled + room)
                keys, values = (tensor.new_zeros(*shape, tensor.shape[-1]) for tensor in pair)
                self.buffers.append((keys, values))
            for row, path in paths.items():
                index = torch.from_numpy(path).to(pair[0].device)
                for tensor, buffer in zip(pair, self.buffers[layer], strict=True):
                    buffer[row, :, self.filled - len(path) : self.filled] = tensor[0, :, index]

    def keep(self, rows: Int[torch.Tensor, " kept"]) -> None:
        """Drop all other rows."""
        for layer, (keys, values) in enumerate(self.buffers):
            self.buffers[layer] = (keys[rows], values[rows])


def holding(model: Any, cache: RowCache | None) -> dict[str, Any]:
    """The cache as a keyword argument, whose name changed within transformers 5."""
    names = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def forward_trie(
    model: Any, trie: PackedTrie, keep: Int[np.ndarray, " kept"], cache: RowCache | None = None
) -> Float[torch.Tensor, "kept vocabulary"]:
    """Next-token logits at the nodes ``keep``, from one forward over the whole trie."""
    device = model.device
    mask = None
    if not trie.is_chain:
        allowed = torch.from_numpy(trie.attention_mask()).to(device)
        mask = torch.zeros(allowed.shape, dtype=model.dtype, device=device)
        mask = mask.masked_fill_(~allowed, torch.finfo(model.dtype).min)[None, None]
    output = model(
        input_ids=torch.from_numpy(trie.tokens).to(device)[None],
        position_ids=torch.from_numpy(trie.depth).to(device)[None],
        attention_mask=mask,
        use_cache=cache is not None,
        logits_to_keep=torch.from_numpy(keep).to(device),
        **holding(model, cache),
    )
    if cache is not None:
        cache.filled = len(trie)
    return output.logits[0].float()


def next_token_probs(
    logits: Float[torch.Tensor, "rows vocabulary"], sampling: Sampling
) -> Float[torch.Tensor, "rows vocabulary"]:
    """Probabilities after temperature, then top-k, then top-p; zero if cut."""
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = torch.topk(logits, sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = torch.softmax(logits, dim=-1)
    if sampling.top_p < 1.0:
        ordered, index = torch.sort(probs, dim=-1, descending=True)
        # The first token always stays: no mass comes before it.
        cut = torch.cumsum(ordered, dim=-1) - ordered >= sampling.top_p
        probs = probs.masked_fill(torch.zeros_like(cut).scatter_(-1, index, cut), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(
    probs: Float[torch.Tensor, "rows vocabulary"], uniform: Float[torch.Tensor, " rows"]
) -> Int[torch.Tensor, " rows"]:
    """Tokens by inversion of the cumulative distribution at ``uniform`` in [0, 1).

    In two stages, a block of the vocabulary and then a token in it, because cumulative sums over
    a whole vocabulary are slow. Never returns a token of probability zero.
    """
    width = 256
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % width))
    blocks = blocks.view(len(probs), -1, width)
    mass = blocks.sum(-1).double()
    total = mass.sum(-1, keepdim=True)
    block, rest = _invert(mass, uniform[:, None] * total)
    token, _ = _invert(blocks[torch.arange(len(probs), device=probs.device), block].double(), rest)
    return block * width + token


def _invert(
    mass: Float[torch.Tensor, "rows cells"], point: Float[torch.Tensor, "rows 1"]
) -> tuple[Int[torch.Tensor, " rows"], Float[torch.Tensor, "rows 1"]]:
    """The cell of each row that holds ``point``, and how far into the cell it lies."""
    cumulative = torch.cumsum(mass, dim=-1)
    cell = torch.searchsorted(cumulative, point, right=True)
    # Rounding may place the point past the end: the last cell that has mass takes it.
    last = ((mass > 0) * torch.arange(mass.shape[-1], device=mass.device)).amax(-1, keepdim=True)
    cell = torch.minimum(cell, last)
    before = cumulative.gather(-1, cell) - mass.gather(-1, cell)
    return cell[:, 0], point - before


@dataclasses.dataclass(slots=True)
class Row:
    """One trace in the making: what it was given, and what has come out so far."""

    prompt: list[int]
    uniforms: Float[np.ndarray, " steps"]
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_prob: float = 0.0
    text: str = ""
    stopped: bool = False


class StopRule:
    """Whether a row has reached an end token or a stop string, and the text before it."""

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._end_tokens = tokenizer, end_tokens
        self._stop = [string for string in stop if string]
        # A character takes at most four tokens (its bytes), and a stop string may end anywhere
        # within the newest token; a little more absorbs characters that the cut splits.
        self._window = 4 * max(map(len, self._stop), default=0) + 8

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def ended(self, row: Row) -> bool:
        """Also sets ``row.text`` and ``row.stopped`` when it has."""
        if row.tokens[-1] in self._end_tokens:
            row.text, row.stopped = self.decode(row.tokens[:-1]), True
        elif self._stop:
            tail = self.decode(row.tokens[-self._window :])
            if any(string in tail for string in self._stop):
                text = self.decode(row.tokens)
                found = [at for string in self._stop if (at := text.find(string)) >= 0]
                if found:
                    row.text, row.stopped = text[: min(found)], True
        if not row.stopped and len(row.tokens) == len(row.uniforms):
            row.text = self.decode(row.tokens)
            return True
        return row.stopped


def prefill_rows(
    model: Any, rows: Sequence[Row], room: int, max_nodes: int
) -> tuple[RowCache, Float[torch.Tensor, "rows vocabulary"]]:
    """The cache of all prompts, ending at one column, and the logits that follow each."""
    prompts = [row.prompt for row in rows]
    cache = RowCache()
    cache.filled = max(map(len, prompts))
    logits: dict[int, torch.Tensor] = {}
    for group in partition(prompts, max_nodes=max_nodes):
        trie = pack([prompts[i] for i in group])
        ends, which = np.unique([path[-1] for path in trie.paths], return_inverse=True)
        evaluated = RowCache()
        following = forward_trie(model, trie, ends, evaluated)
        logits.update((i, following[place]) for i, place in zip(group, which, strict=True))
        cache.fill(evaluated, dict(zip(group, trie.paths, strict=True)), len(rows), room)
    return cache, torch.stack([logits[i] for i in range(len(rows))])


def sample_rows(
    model: Any, rows: Sequence[Row], rule: StopRule, sampling: Sampling, *, max_nodes: int = 1024
) -> None:
    """Run all ``rows`` to their end, in place."""
    device = model.device
    steps = max(len(row.uniforms) for row in rows)
    cache, logits = prefill_rows(model, rows, steps, max_nodes)
    lengths, columns = [len(row.prompt) for row in rows], cache.filled
    # Mask over columns, as large as it will ever be; padding stays hidden for good.
    hidden = torch.arange(columns + steps)[None] < columns - torch.tensor(lengths)[:, None]
    mask = torch.zeros(hidden.shape, dtype=model.dtype).masked_fill_(
        hidden, torch.finfo(model.dtype).min
    )
    mask = mask.to(device)[:, None, None]
    position = torch.tensor(lengths, device=device)[:, None]

    live = list(range(len(rows)))  # the row in each place of the batch, -1 once it is done
    for step in range(steps):
        probs = next_token_probs(logits, sampling)
        uniform = [rows[i].uniforms[step] if i >= 0 else 0.0 for i in live]
        tokens = draw(probs, torch.tensor(uniform, dtype=torch.float64, device=device))
        chosen = probs.gather(-1, tokens[:, None])[:, 0].log().tolist()
        for place, (i, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            if i < 0:
                continue
            rows[i].tokens.append(token)
            rows[i].log_prob += chosen[place]
            if rule.ended(rows[i]):
                live[place] = -1
        kept = [place for place, i in enumerate(live) if i >= 0]
        if not kept:
            return
        # Copying the cache costs about as much as one step, so wait until it pays.
        if len(kept) <= 0.75 * len(live):
            places = torch.tensor(kept, device=device)
            cache.keep(places)
            mask, position, tokens = mask[places], position[places], tokens[places]
            live = [live[place] for place in kept]
        logits = (
            model(
                input_ids=tokens[:, None],
                position_ids=position,
                attention_mask=mask[..., : cache.filled + 1],
                use_cache=True,
                logits_to_keep=1,
                **holding(model, cache),
            )
            .logits[:, -1]
            .float()
        )
        cache.filled += 1
        position = position + 1
