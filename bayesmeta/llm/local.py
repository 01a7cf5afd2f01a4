"""A language model inside this process: transformers and torch."""

import contextlib
import functools
import hashlib
import importlib
import os
import pathlib
import re
import struct
import typing
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from bayesmeta.llm.base import AbstractLLM, Quality, Sampling, Score, ScoreRequest, Trace
from bayesmeta.llm.embedded import (
    GGUFError,
    embedded_model_path,
    file_sha256,
    gguf_quantisation,
)
from bayesmeta.llm.onednn import use_onednn
from bayesmeta.llm.sampling import Row, StopRule, forward_trie, sample_rows
from bayesmeta.llm.trie import common_prefix, pack, partition

_PROPER = Sampling()
# What the readers of GGUF raise when a file ends early or says what it should not.
_BROKEN_FILE = (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, struct.error)
_USER, _ASSISTANT = "\u27eauser\u27eb", "\u27eaassistant\u27eb"


class ContextTooLongError(ValueError):
    """A text has more tokens than the model can attend to."""


@typing.final
class LocalLLM(AbstractLLM):
    """A causal language model from transformers, with exact log-likelihoods.

    Scoring evaluates every distinct token prefix of a call once (see `bayesmeta.llm.trie`), so
    pass all requests of a task, or of many tasks, in one call.

    Text is tokenised as in EleutherAI's lm-evaluation-harness: context and continuation together,
    the continuation being the tokens beyond those that the context alone also has. Special
    tokens written in the text count as such, and none is added.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        revision: str | None = None,
        batch_size: int = 32,
    ) -> None:
        """
        Args:
          model: a GGUF file, a folder in transformers' format, or an id on the Hugging Face hub.
            Default: the embedded SmolLM2-135M-Instruct, which needs no network.
          device: a torch device, or ``"auto"``: CUDA where there is one, else the CPU.
          dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Default: float32 on the CPU,
            bfloat16 elsewhere.
          revision: commit or tag on the hub.
          batch_size: the most traces sampled side by side.

        Raises:
          FileNotFoundError: no such file, or the embedded model is not installed.
          GGUFError: the file is not GGUF, or is broken.
          OSError: transformers could not load the folder or the hub id.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}.")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}.")
        self._batch_size = batch_size
        options: dict[str, Any]
        source = str(embedded_model_path() if model is None else model)
        path = pathlib.Path(source)
        if path.suffix == ".gguf" or path.is_file():
            quantisation, digest = gguf_quantisation(path), file_sha256(path)
            where, options = str(path.parent.resolve()), {"gguf_file": path.name}
            label, options["local_files_only"] = path.stem, True
        elif path.is_dir():
            quantisation, digest = "none", _folder_sha256(path)
            where, options, label = str(path), {"local_files_only": True}, path.resolve().name
        elif path.is_absolute() or source.startswith((".", "~")):
            raise FileNotFoundError(
                f"No model at {source!r}: wanted a GGUF file, or a folder with config.json and "
                "weights. Check the path."
            )
        else:
            quantisation, digest = "none", ""
            where, options, label = source, {"revision": revision}, source
        remember = _gguf_read_once() if path.is_file() else contextlib.nullcontext()
        try:
            with _quiet(), remember:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
                self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    where, dtype=getattr(torch, dtype), **options
                )
        except _BROKEN_FILE as error:
            if not path.is_file():
                raise
            raise GGUFError(
                f"{source!r} could not be read as a model ({path.stat().st_size} bytes): {error}. "
                "It may be cut off (download it again), or of an architecture that transformers "
                f"{transformers.__version__} cannot read from GGUF (give a folder instead)."
            ) from error
        self._model.to(device).eval()
        use_onednn(self._model)
        digest = digest or str(getattr(self._model.config, "_commit_hash", None) or revision or "")
        self._name = f"{label}@{digest[:12]}" + ("" if dtype == "float32" else f"/{dtype}")
        self._attributes = {
            "model": label,
            "revision": digest,
            "quantisation": quantisation,
            "dtype": dtype,
            "device": device,
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
        }
        self._limit = int(
            min(
                getattr(self._model.config, "max_position_embeddings", None) or 1 << 30,
                self._tokenizer.model_max_length or 1 << 30,
            )
        )
        self._template = _chat_template(self._tokenizer)
        self._end_tokens = _end_tokens(self._model, self._tokenizer)

    @property
    def name(self) -> str:
        return self._name

    @property
    def quality(self) -> Quality:
        return "exact"

    @property
    def attributes(self) -> dict[str, str]:
        return dict(self._attributes)

    @property
    def end_of_answer(self) -> str:
        return self._template[2]

    @property
    def context_limit(self) -> int:
        """The most tokens that the model can attend to."""
        return self._limit

    def render(self, user: str, assistant: str) -> str:
        """The model's own chat template, with its default system message if it has one.

        Models without a chat template get the plain text ``user``, an empty line, ``assistant``.
        """
        opening, between, _ = self._template
        return f"{opening}{user}{between}{assistant}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with special tokens parsed and none added."""
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of some token ids, special tokens included."""
        return StopRule(self._tokenizer, self._end_tokens, ()).decode(tokens)

    def encode_requests(self, requests: Sequence[ScoreRequest]) -> list[tuple[list[int], int]]:
        """Tokens of each request, and the index of the first that belongs to the continuation."""
        texts = {r.context: 0 for r in requests} | {r.context + r.continuation: 0 for r in requests}
        tokens = dict(zip(texts, self.encode(list(texts)), strict=True))
        encoded = []
        for request in requests:
            whole = tokens[request.context + request.continuation]
            start = common_prefix(tokens[request.context], whole)
            if start == 0 and whole:
                # Something must come before the first token that is scored.
                whole, start = [self._prefix_token, *whole], 1
            self._check_length(len(whole), "prompt and continuation", request.context)
            encoded.append((whole, start))
        return encoded

    @torch.inference_mode()
    def log_likelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        encoded = self.encode_requests(requests)
        totals = self._totals(encoded).cpu().numpy()
        return [
            Score(float(total), len(tokens) - start, start)
            for total, (tokens, start) in zip(totals, encoded, strict=True)
        ]

    def log_likelihood_tensor(self, requests: Sequence[ScoreRequest]) -> torch.Tensor:
        """What `log_likelihood` says, [request] in nats and float64, for gradients to pass through.

        It depends on whatever weights of `module` require a gradient, such as an adapter's.
        """
        return self._totals(self.encode_requests(requests))

    @property
    def module(self) -> torch.nn.Module:
        """The network itself. Who changes it changes what this object says under its old name."""
        return self._model

    def _totals(self, encoded: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        totals = torch.zeros(len(encoded), dtype=torch.float64, device=self._model.device)
        # The last token is only ever a target, so it is not evaluated.
        scored = [i for i, (tokens, start) in enumerate(encoded) if start < len(tokens)]
        sequences = [encoded[i][0][:-1] for i in scored]
        for group in partition(sequences, max_nodes=self._max_nodes):
            trie = pack([sequences[g] for g in group])
            nodes, targets, owners = [], [], []
            for path, g in zip(trie.paths, group, strict=True):
                tokens, start = encoded[scored[g]]
                nodes.append(path[start - 1 :])
                targets.append(np.array(tokens[start:], np.int64))
                owners.append(np.full(len(tokens) - start, scored[g]))
            keep, which = np.unique(np.concatenate(nodes), return_inverse=True)
            logits = forward_trie(self._model, trie, keep)
            row, target, owner = (
                torch.from_numpy(index).to(logits.device)
                for index in (which, np.concatenate(targets), np.concatenate(owners))
            )
            values = logits[row, target] - torch.logsumexp(logits, dim=-1)[row]
            totals = totals.index_add(0, owner, values.double())
        return totals

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = _PROPER,
    ) -> list[Trace]:
        if len(seeds) != len(prompts):
            raise ValueError(
                f"sample needs one seed per prompt, got {len(seeds)} for {len(prompts)} prompts."
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}.")
        rows = []
        for tokens, seed in zip(self.encode(prompts), seeds, strict=True):
            tokens = tokens or [self._prefix_token]
            self._check_length(len(tokens) + max_new_tokens, "prompt and new tokens", None)
            # Philox is counter-based: a row's draws depend on its seed and on nothing else.
            generator = np.random.Generator(np.random.Philox(seed))
            rows.append(Row(tokens, generator.random(max_new_tokens)))
        rule = StopRule(self._tokenizer, self._end_tokens, stop)
        # Rows of like length need little padding, and equal prompts meet in one batch.
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt), rows[i].prompt))
        for first in range(0, len(order), self._batch_size):
            batch = [rows[i] for i in order[first : first + self._batch_size]]
            sample_rows(self._model, batch, rule, sampling, max_nodes=self._max_nodes)
        return [Trace(row.text, row.log_prob, len(row.tokens), row.stopped) for row in rows]

    @torch.inference_mode()
    def token_entropy(self, texts: Sequence[str]) -> list[float]:
        """Mean over the tokens of a text of the entropy (nats) of what may follow each."""
        sequences = [tokens or [self._prefix_token] for tokens in self.encode(texts)]
        for tokens in sequences:
            self._check_length(len(tokens), "text", None)
        means = [0.0] * len(sequences)
        for group in partition(sequences, max_nodes=min(512, self._max_nodes)):
            trie = pack([sequences[g] for g in group])
            log_probs = torch.log_softmax(
                forward_trie(self._model, trie, np.arange(len(trie))), dim=-1
            )
            entropy = -(log_probs.exp() * log_probs).sum(-1).double().cpu().numpy()
            for path, g in zip(trie.paths, group, strict=True):
                means[g] = float(entropy[path].mean())
        return means

    @property
    def _max_nodes(self) -> int:
        return 1024 if self._model.device.type == "cpu" else 4096

    @property
    def _prefix_token(self) -> int:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return bos if bos is not None else eos

    def _check_length(self, tokens: int, what: str, text: str | None) -> None:
        if tokens > self._limit:
            shown = f" ({text[:60]!r}...)" if text else ""
            raise ContextTooLongError(
                f"The {what}{shown} take {tokens} tokens, but {self._attributes['model']} attends "
                f"to at most {self._limit}. Shorten the question, recall fewer worked examples, "
                "ask for fewer new tokens, or use a model with a longer context."
            )


def _chat_template(tokenizer: Any) -> tuple[str, str, str]:
    """Text before the user's, between the user's and the assistant's, and after the assistant's."""
    if not tokenizer.chat_template:
        default = tokenizer.encode("")
        bos = tokenizer.bos_token if default[:1] == [tokenizer.bos_token_id] else ""
        return bos or "", "\n\n", tokenizer.eos_token or "\n"
    turns = [{"role": "user", "content": _USER}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    opening, between = text.split(_USER)
    turns.append({"role": "assistant", "content": _ASSISTANT})
    closed = tokenizer.apply_chat_template(turns, tokenize=False)
    end = closed.split(_ASSISTANT)[-1].strip() or tokenizer.eos_token or "\n"
    return opening, between, end


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn or a document."""
    ends = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        eos = getattr(config, "eos_token_id", None)
        ends.update(eos if isinstance(eos, list) else [eos])
    vocabulary = tokenizer.get_vocab()
    ends.update(vocabulary.get(word) for word in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>"))
    return frozenset(int(token) for token in ends if token is not None)


def _folder_sha256(folder: pathlib.Path) -> str:
    """One digest over the weight files of a folder."""
    files = sorted(f for f in folder.iterdir() if re.search(r"\.(safetensors|bin)$", f.name))
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice, which are about its internals."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # This one bar heeds no setting, and in a notebook it does not write to standard error either.
    loader = vars(importlib.import_module("transformers.modeling_gguf_pytorch_utils"))
    bar = loader.get("tqdm")
    if bar is not None:
        loader["tqdm"] = functools.partial(bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bar is not None:
            loader["tqdm"] = bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let transformers parse a GGUF header once, not three times: seconds saved per load.

    Its loader also rebuilds one table of tensor names for each module of the model. Both are
    pure functions of their arguments, so they are remembered while a model loads.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names if hasattr(gguf, name)}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
