"""Orthonormal contrasts: coordinates for vectors that sum to zero."""

import numpy as np
from jaxtyping import Float


def contrast(size: int) -> Float[np.ndarray, "size size-1"]:
    """Matrix C with orthonormal columns, each orthogonal to the vector of ones.

    Softmax weights do not change when a constant is added to every logit. Writing the logits as
    ``C @ u`` with free ``u`` of length ``size - 1`` removes that direction, and ``u ~ N(0, s^2)``
    is the same prior for every labelling of the skills. The columns are Helmert's.
    """
    if size < 2:
        raise ValueError(f"a contrast needs at least 2 levels, got {size}. Add a second skill.")
    matrix = np.zeros((size, size - 1))
    for column in range(size - 1):
        matrix[: column + 1, column] = 1.0
        matrix[column + 1, column] = -(column + 1.0)
        matrix[:, column] /= np.sqrt((column + 1.0) * (column + 2.0))
    return matrix
