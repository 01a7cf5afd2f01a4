"""A program's arguments apart from the numbers in their arrays, to compile once for all numbers."""

import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayArgs:
    """What a program's arguments are, but for the numbers in their arrays.

    Equal, and of equal hash, where a program that was traced for one serves the other. Not
    hashable where a leaf that is no array is not.

    Attributes:
      structure: of the pytree.
      leaves: its leaves, with shape, dtype and placement instead of every array.
    """

    structure: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...]) -> tuple["ArrayArgs", list[Any]]:
        """The arguments' form, and the arrays among their leaves."""
        leaves, structure = jax.tree.flatten(args)
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        return cls(structure, tuple(_form(v) if _is_array(v) else v for v in leaves)), arrays

    def filled(self, arrays: list[Any]) -> tuple[Any, ...]:
        """The arguments with these arrays, which may be traced."""
        rest = iter(arrays)
        return self.structure.unflatten(
            [next(rest) if isinstance(v, jax.ShapeDtypeStruct) else v for v in self.leaves]
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _form(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        array.shape,
        array.dtype,
        sharding=getattr(array, "sharding", None),
        weak_type=getattr(array, "weak_type", False),
    )
