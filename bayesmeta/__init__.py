"""Bayesian meta-reasoning with language models.

    tasks    = bayesmeta.make_tasks(num_per_family=20)
    evidence = bayesmeta.observe(bayesmeta.LocalLLM(), tasks, bayesmeta.default_skills())
    tree     = bayesmeta.fit(evidence)

Importing this package is free: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesmeta.evidence import summarise as summarise
    from bayesmeta.evidence_io import load as load_evidence
    from bayesmeta.evidence_io import save as save_evidence
    from bayesmeta.families import make_tasks as make_tasks
    from bayesmeta.fitting import fit as fit
    from bayesmeta.heldout import heldout_table as heldout_table
    from bayesmeta.inverse_planning import infer_skills as infer_skills
    from bayesmeta.llm.base import AbstractLLM as AbstractLLM
    from bayesmeta.llm.base import Sampling as Sampling
    from bayesmeta.llm.local import LocalLLM as LocalLLM
    from bayesmeta.llm.server import ServerLLM as ServerLLM
    from bayesmeta.llm.tabular import TabularLLM as TabularLLM
    from bayesmeta.memory import Memory as Memory
    from bayesmeta.models.figure2 import HIERARCHICAL as HIERARCHICAL
    from bayesmeta.models.prior import Prior as Prior
    from bayesmeta.models.prior import SitePrior as SitePrior
    from bayesmeta.observation import observe as observe
    from bayesmeta.posterior import check_converged as check_converged
    from bayesmeta.posterior import load_posterior as load_posterior
    from bayesmeta.posterior import save_posterior as save_posterior
    from bayesmeta.prediction import predict as predict
    from bayesmeta.preferences import fit_preferences as fit_preferences
    from bayesmeta.prior_check import prior_predictive as prior_predictive
    from bayesmeta.reflection import Forgetting as Forgetting
    from bayesmeta.reflection import reflect as reflect
    from bayesmeta.skills import Skill as Skill
    from bayesmeta.skills import Stage as Stage
    from bayesmeta.skills import default_skills as default_skills
    from bayesmeta.step_evidence import observe_steps as observe_steps
    from bayesmeta.strategy_choice import choose_strategies as choose_strategies
    from bayesmeta.task_files import read_tasks as read_tasks
    from bayesmeta.task_files import write_tasks as write_tasks
    from bayesmeta.tasks import Task as Task
    from bayesmeta.verdicts import from_verdicts as from_verdicts

#: Public name -> where it lives, and what it is called there.
_PUBLIC = {
    "AbstractLLM": ("bayesmeta.llm.base", "AbstractLLM"),
    "Forgetting": ("bayesmeta.reflection", "Forgetting"),
    "HIERARCHICAL": ("bayesmeta.models.figure2", "HIERARCHICAL"),
    "LocalLLM": ("bayesmeta.llm.local", "LocalLLM"),
    "Memory": ("bayesmeta.memory", "Memory"),
    "Prior": ("bayesmeta.models.prior", "Prior"),
    "Sampling": ("bayesmeta.llm.base", "Sampling"),
    "ServerLLM": ("bayesmeta.llm.server", "ServerLLM"),
    "SitePrior": ("bayesmeta.models.prior", "SitePrior"),
    "Skill": ("bayesmeta.skills", "Skill"),
    "Stage": ("bayesmeta.skills", "Stage"),
    "TabularLLM": ("bayesmeta.llm.tabular", "TabularLLM"),
    "Task": ("bayesmeta.tasks", "Task"),
    "check_converged": ("bayesmeta.posterior", "check_converged"),
    "choose_strategies": ("bayesmeta.strategy_choice", "choose_strategies"),
    "default_skills": ("bayesmeta.skills", "default_skills"),
    "fit": ("bayesmeta.fitting", "fit"),
    "fit_preferences": ("bayesmeta.preferences", "fit_preferences"),
    "from_verdicts": ("bayesmeta.verdicts", "from_verdicts"),
    "heldout_table": ("bayesmeta.heldout", "heldout_table"),
    "infer_skills": ("bayesmeta.inverse_planning", "infer_skills"),
    "load_evidence": ("bayesmeta.evidence_io", "load"),
    "load_posterior": ("bayesmeta.posterior", "load_posterior"),
    "make_tasks": ("bayesmeta.families", "make_tasks"),
    "observe": ("bayesmeta.observation", "observe"),
    "observe_steps": ("bayesmeta.step_evidence", "observe_steps"),
    "predict": ("bayesmeta.prediction", "predict"),
    "prior_predictive": ("bayesmeta.prior_check", "prior_predictive"),
    "read_tasks": ("bayesmeta.task_files", "read_tasks"),
    "reflect": ("bayesmeta.reflection", "reflect"),
    "save_evidence": ("bayesmeta.evidence_io", "save"),
    "save_posterior": ("bayesmeta.posterior", "save_posterior"),
    "summarise": ("bayesmeta.evidence", "summarise"),
    "write_tasks": ("bayesmeta.task_files", "write_tasks"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bayesmeta' has no attribute {name!r}; see dir(bayesmeta).")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
