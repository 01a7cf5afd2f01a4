"""How programs are compiled: quickly, unless the user has said how."""

import os

import jax
import pytest

from bayesmeta.inference.compilation import compiler_options
from bayesmeta.xla import compile_quickly


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_backend_optimization_level=2"),
        ("--xla_dump_to=x", "--xla_dump_to=x --xla_backend_optimization_level=2"),
        ("--xla_backend_optimization_level=3", "--xla_backend_optimization_level=3"),
    ],
)
def test_commands_choose_a_level_where_the_user_has_not(monkeypatch, before, after):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    compile_quickly()
    assert os.environ["XLA_FLAGS"] == after
    compile_quickly()
    assert os.environ["XLA_FLAGS"] == after


def test_only_cpus_get_an_option_which_xla_knows(monkeypatch):
    options = compiler_options()
    assert options
    assert float(jax.jit(lambda x: x + 1, compiler_options=options)(1.0)) == 2.0
    with pytest.raises(Exception, match="xla_no_such_level"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_no_such_level": 2})(1.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not compiler_options()
