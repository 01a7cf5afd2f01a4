"""Data parallelism: the tasks of a data set spread over several devices.

A posterior needs the log density of all tasks at one point, and that is a sum over tasks. Where
each device holds some of them it computes their part of the sum and of its gradient; only these
few numbers travel, and XLA writes that program by itself once the arrays say where they lie.
Parameters are replicated, so chains see the same posterior as on one device.
"""

import dataclasses
import types
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: The axis of a data set's arrays that is spread, as their annotations call it, and of the mesh.
TASK = "task"


def shard_tasks[Data](data: Data, devices: Sequence[Any] | None = None) -> Data:
    """The same data with their tasks spread evenly over devices; engines take them as they are.

    `bayesmeta.inference.nuts.nuts` and `bayesmeta.inference.svi.svi` then never hold all the
    evidence on one device. Where the devices do not divide the tasks, the last task is repeated
    with weight zero, which adds nothing to the log density. A program that draws something for
    each single task (a random strategy, say) draws it for these too; it has their prior as its
    posterior there, and rows from N on are to be ignored.

    Args:
      data: a dataclass of arrays whose annotations name their axes, one of them ``task``, such as
        `bayesmeta.models.figure2.Figure2Data` or `bayesmeta.models.full_data.FullData`. Its field
        ``scale`` [task] holds task weights.
      devices: JAX devices; by default all of the platform that JAX computes on.

    Raises:
      TypeError: not such a dataclass, or an array whose annotation does not name its axes.
      ValueError: no device, no task, or arrays that disagree on the number of tasks.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices is empty. Give at least one, or None for all there are.")
    axes = task_axes(data)
    sizes = {name: _leaf(data, name).shape[axis] for name, axis in axes.items() if axis is not None}
    if "scale" not in sizes:
        raise TypeError(
            f"{type(data).__name__} has no field scale [task] of task weights, without which "
            "tasks cannot be padded. Add one of ones."
        )
    num_tasks = sizes["scale"]
    for name, size in sizes.items():
        if size != num_tasks:
            raise ValueError(
                f"{name} holds {size} tasks, but scale holds {num_tasks}. Give every array the "
                "same tasks."
            )
    if num_tasks == 0:
        raise ValueError("there are no tasks to spread. Give at least one.")
    # Axes of this mesh are for the compiler to use: programs need not know that they are spread.
    mesh = Mesh(np.array(devices), (TASK,))
    missing = -num_tasks % len(devices)

    def place(name: str, leaf: Any) -> jax.Array:
        axis = axes[name]
        if axis is None:
            return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))
        leaf = np.asarray(leaf)
        width = [(0, missing if a == axis else 0) for a in range(leaf.ndim)]
        padded = np.pad(leaf, width, mode="edge")
        if name == "scale":
            padded[num_tasks:] = 0
        spec = PartitionSpec(*(TASK if a == axis else None for a in range(leaf.ndim)))
        return jax.device_put(padded, NamedSharding(mesh, spec))

    return _replace_leaves(data, place)


def is_sharded(*model_args: Any) -> bool:
    """Whether any array among some arguments is spread over several devices."""
    return any(
        isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated
        for leaf in jax.tree.leaves(model_args)
    )


def over_arrays(
    model: Callable[..., Any], model_args: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[jax.Array, ...]]:
    """The same program as a function of its JAX arrays alone, and those arrays.

    Arrays that a compiled program is given stay where they lie; arrays that it merely refers to
    are copied into it, whole, for every device.
    """
    leaves, structure = jax.tree.flatten(model_args)
    given = [isinstance(leaf, jax.Array) for leaf in leaves]

    def program(*arrays: jax.Array) -> Any:
        rest = iter(arrays)
        merged = [
            next(rest) if is_given else leaf for leaf, is_given in zip(leaves, given, strict=True)
        ]
        return model(*structure.unflatten(merged))

    return program, tuple(leaf for leaf in leaves if isinstance(leaf, jax.Array))


def task_axes(data: Any) -> dict[str, int | None]:
    """Path of every array in a dataclass -> its axis of tasks, None where it has none.

    The annotations say so, as in ``Float[Array, "candidate skill task"]``. Arrays of dataclasses
    within are named as ``outcome.log_p``. Fields that are None are left out.
    """
    if not dataclasses.is_dataclass(data) or isinstance(data, type):
        raise TypeError(
            f"shard_tasks needs a dataclass of arrays, got {type(data).__name__}. Pass the data "
            "alone, not the prior; priors and parameters are the same on all devices."
        )
    axes: dict[str, int | None] = {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if value is None or field.metadata.get("static"):
            continue
        if dataclasses.is_dataclass(value):
            axes |= {f"{field.name}.{path}": axis for path, axis in task_axes(value).items()}
            continue
        names = _axis_names(field.type)
        if names is None or len(names) != np.ndim(value):
            raise TypeError(
                f"field {field.name!r} of {type(data).__name__} is annotated {field.type!r}, which "
                f"does not name the {np.ndim(value)} axes of its value. Annotate it as in "
                'Float[Array, "candidate skill task"].'
            )
        axes[field.name] = names.index(TASK) if TASK in names else None
    return axes


def _axis_names(annotation: Any) -> list[str] | None:
    """Names in a jaxtyping annotation, or in the one array type of a union with None."""
    options = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    named = [option.dim_str.split() for option in options if hasattr(option, "dim_str")]
    return named[0] if len(named) == 1 else None


def _leaf(data: Any, path: str) -> Any:
    for name in path.split("."):
        data = getattr(data, name)
    return data


def _replace_leaves(data: Any, place: Any, prefix: str = "") -> Any:
    changes = {}
    for field in dataclasses.fields(data):
        value, path = getattr(data, field.name), f"{prefix}{field.name}"
        if value is None or field.metadata.get("static"):
            continue
        inner = dataclasses.is_dataclass(value)
        changes[field.name] = (
            _replace_leaves(value, place, f"{path}.") if inner else place(path, value)
        )
    return dataclasses.replace(data, **changes)
