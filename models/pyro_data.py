"""The data of a model as torch tensors, for the programs written in Pyro."""

import dataclasses
from typing import Any

import jax
import numpy as np
import torch


def to_torch(
    value: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Any:
    """The same data with tensors in place of arrays.

    Args:
      value: a dataclass such as `bayesmeta.models.figure2.Figure2Data`, with others inside or not;
        an array; a tuple of these. Anything else, such as a prior or a graph, comes back as it is.
      device: where the tensors are to be.
      dtype: of the real numbers. Whole numbers become 64-bit, which is what torch indexes with.
    """
    if isinstance(value, tuple):
        return tuple(to_torch(item, device, dtype) for item in value)
    if isinstance(value, jax.Array | np.ndarray):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else torch.int64)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: to_torch(field, device, dtype) for name, field in fields.items()}
        )
    return value


def check_tensors(data: Any) -> None:
    """Raise TypeError unless the features of a model's data are a tensor."""
    if not isinstance(data.x, torch.Tensor):
        raise TypeError(
            f"a Pyro program reads torch tensors, but the data hold {type(data.x).__name__}. "
            "Convert them with bayesmeta.models.pyro_data.to_torch(data)."
        )
