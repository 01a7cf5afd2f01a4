"""Low-rank adapters inside a local language model, whose weights can be any tensors.

W = W_0 + (alpha / r) B A (Hu et al. 2022, arXiv 2106.09685), by peft, which puts the layers in
place. A is a random projection that is drawn once and kept (as in Zhang et al. 2023, LoRA-FA,
arXiv 2308.03303), and B is what is learned: A -> M A, B -> B M^-1 leaves the model as it is, so a
posterior over both would have a ridge along every M, and with A known there is none.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float

from bayesmeta.llm.local import LocalLLM

#: Linear layers of a block that are adapted by default: where attention and the feed-forward part
#: write into the residual stream's content.
TARGETS = ("v_proj", "down_proj")


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterModule:
    """One adapted layer.

    Attributes:
      name: of the layer within the network, such as ``model.layers.3.mlp.down_proj``.
      shape: (outputs, rank) of its B.
      place: of its entries in the vector of all.
    """

    name: str
    shape: tuple[int, int]
    place: slice


class Adapter:
    """The adapter of one `LocalLLM`, which from now on answers with it.

    The model says exactly what it said before until weights are given, see `using`.
    """

    def __init__(
        self,
        llm: LocalLLM,
        *,
        rank: int = 4,
        alpha: int | None = None,
        targets: Sequence[str] = TARGETS,
        seed: int = 0,
    ) -> None:
        """
        Args:
          llm: changed in place. Make a second `LocalLLM` to compare with.
          rank: r.
          alpha: default r, so that B A is added as it is.
          targets: names of linear layers, or of whole branches, that are adapted in every block.
          seed: of A, whose entries are N(0, 1 / inputs): A keeps the scale of what it projects.

        Raises:
          ImportError: peft is not installed.
          ValueError: no layer has such a name, or the model has an adapter already.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.lora import LoraLayer
        except ImportError as error:
            raise ImportError(
                "adapters need peft, which is not installed. Run: pip install 'bayesmeta[adapter]'."
            ) from error
        network = llm.module
        if any(isinstance(part, LoraLayer) for part in network.modules()):
            raise ValueError(
                f"{llm.name} has an adapter already. Make a new LocalLLM for another one."
            )
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        config = LoraConfig(
            r=rank, lora_alpha=alpha or rank, target_modules=list(targets), lora_dropout=0.0
        )
        inject_adapter_in_model(config, network)
        network.eval()
        generator = torch.Generator().manual_seed(seed)
        self._layers: list[Any] = []
        modules, size = [], 0
        for name, part in network.named_modules():
            if not isinstance(part, LoraLayer):
                continue
            project, expand = (getattr(part, side)["default"] for side in ("lora_A", "lora_B"))
            drawn = torch.randn(project.weight.shape, generator=generator)
            with torch.no_grad():
                project.weight.copy_(drawn / math.sqrt(project.in_features))
            project.weight.requires_grad_(False)
            zero = expand.weight.detach().clone()
            del expand._parameters["weight"]  # so that any tensor can take its place
            expand.weight = zero
            self._layers.append(expand)
            modules.append(AdapterModule(name, tuple(zero.shape), slice(size, size + zero.numel())))
            size += zero.numel()
        self.llm, self.modules, self.size = llm, tuple(modules), size
        self.settings: Mapping[str, Any] = {
            "rank": rank,
            "alpha": alpha or rank,
            "targets": list(targets),
            "seed": seed,
        }

    @contextlib.contextmanager
    def using(self, weights: Float[torch.Tensor, " size"] | None) -> Iterator[LocalLLM]:
        """The model with these entries of every B, one module after another; None for zeros.

        Gradients pass through to ``weights``. What the model was before comes back on leaving.
        """
        before = [layer.weight for layer in self._layers]
        if weights is None:
            weights = torch.zeros(self.size)
        if weights.shape != (self.size,):
            raise ValueError(
                f"adapter weights have shape {tuple(weights.shape)}, wanted ({self.size},): one "
                f"entry for every entry of B in {len(self.modules)} modules."
            )
        try:
            for module, layer in zip(self.modules, self._layers, strict=True):
                entries = weights[module.place].reshape(module.shape)
                layer.weight = entries.to(layer.weight)
            yield self.llm
        finally:
            for layer, weight in zip(self._layers, before, strict=True):
                layer.weight = weight

    def per_module(self, values: Float[torch.Tensor, " module"]) -> Float[torch.Tensor, " size"]:
        """Each module's value at all its entries."""
        sizes = torch.tensor([math.prod(m.shape) for m in self.modules], device=values.device)
        return torch.repeat_interleave(values, sizes)
