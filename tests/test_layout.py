"""The top-level folders `models` and `inference` are the packages bayesmeta.models, .inference."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_package_list_names_every_package():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {"bayesmeta", "bayesmeta.models", "bayesmeta.inference"}
    for folder in ("bayesmeta", "models", "inference"):
        prefix = "bayesmeta" if folder == "bayesmeta" else f"bayesmeta.{folder}"
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            if parts[:1] not in (("models",), ("inference",)):
                found.add(".".join((prefix, *parts)))
    assert found == listed


@pytest.mark.parametrize("folder", ["models", "inference"])
def test_link_leads_to_the_folder(folder):
    link = ROOT / "bayesmeta" / folder
    if not link.is_symlink():
        pytest.skip("a clone without symbolic links")
    assert link.resolve() == (ROOT / folder).resolve()


@pytest.mark.parametrize("folder", ["models", "inference"])
def test_importing_a_second_copy_fails_loudly(folder):
    run = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert f"import bayesmeta.{folder}" in run.stderr


def test_numpyro_is_whole_when_arviz_came_first():
    code = (
        "import arviz\nfrom bayesmeta import SitePrior\n"
        "import numpyro\nprint(numpyro.distributions.distribution.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "numpyro.distributions.distribution", run.stderr


def test_import_is_free():
    code = (
        "import sys, bayesmeta\n"
        "heavy = {'torch', 'transformers', 'jax', 'numpyro', 'arviz', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
