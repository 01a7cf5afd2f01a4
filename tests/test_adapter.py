"""Adapters: the model they are in, the coordinates of their posterior, and what is inferred."""

import types

import numpy as np
import pytest
from random_model import random_model

from bayesmeta.tasks import Task

pytestmark = pytest.mark.llm

TASKS = [
    Task(f"t{n}", f"What is {n} + {n}?", str(2 * n), (str(2 * n), str(2 * n + 1), "no"), domain="d")
    for n in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def adapter(folder):
    from bayesmeta.llm.adapter import Adapter
    from bayesmeta.llm.local import LocalLLM

    return Adapter(LocalLLM(folder, device="cpu"), rank=2)


def some_weights(adapter, seed=0, scale=0.3):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(adapter.size, generator=generator)


class TestAdapter:
    def test_says_what_the_model_said_until_weights_are_given(self, folder, adapter):
        from bayesmeta.adapter import Answers
        from bayesmeta.llm.local import LocalLLM

        plain = LocalLLM(folder, device="cpu")
        answers = Answers.of(adapter, TASKS)
        flat = [request for task in answers.requests for request in task]
        wanted = [score.log_likelihood for score in plain.log_likelihood(flat)]
        table = answers(None, range(6)).detach().numpy().ravel()
        np.testing.assert_allclose(table, wanted, atol=1e-4)
        with adapter.using(some_weights(adapter)) as llm:
            moved = [score.log_likelihood for score in llm.log_likelihood(flat)]
        assert np.abs(np.subtract(moved, wanted)).max() > 0.1
        again = [score.log_likelihood for score in adapter.llm.log_likelihood(flat)]
        np.testing.assert_allclose(again, wanted, atol=1e-4)

    def test_gradients_pass_through_the_model(self, adapter):
        import torch

        from bayesmeta.adapter import Answers

        answers = Answers.of(adapter, TASKS)
        weights = some_weights(adapter).requires_grad_()
        answers(weights, [1])[0, 0].backward()
        assert weights.grad is not None and len(adapter.modules) == 4
        direction = some_weights(adapter, 1, 1.0)
        with torch.no_grad():
            step = 1e-2 * direction
            up, down = (answers(weights + s * step, [1])[0, 0] for s in (1, -1))
        by_difference = float(up - down) / 2e-2
        assert float(weights.grad @ direction) == pytest.approx(by_difference, rel=2e-2)

    def test_likelihood_is_the_same_for_equivalent_factors(self, folder):
        """T5.8: A -> M A with B -> B M^-1, which is why only B is random."""
        import torch
        import transformers

        from bayesmeta.llm.adapter import Adapter

        network = transformers.AutoModelForCausalLM.from_pretrained(folder).double()
        adapter: object = Adapter(types.SimpleNamespace(module=network, name="double"), rank=3)
        weights = some_weights(adapter).double()
        M = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ids = torch.arange(5, 12)[None]

        def say(values):
            with torch.no_grad(), adapter.using(values):
                return torch.log_softmax(network(input_ids=ids).logits, -1)

        before = say(weights)
        turned = torch.cat(
            [
                (weights[m.place].reshape(m.shape) @ torch.linalg.inv(M)).ravel()
                for m in adapter.modules
            ]
        )
        assert (say(turned) - before).abs().max() > 1e-3
        with torch.no_grad():
            for module in adapter.modules:
                A = network.get_submodule(module.name).lora_A["default"].weight
                A.copy_(M @ A)
        assert (say(turned) - before).abs().max() < 1e-10

    def test_bad_input(self, adapter):
        import torch

        from bayesmeta.adapter import Answers
        from bayesmeta.llm.adapter import Adapter
        from bayesmeta.skills import Skill, Stage

        with pytest.raises(ValueError, match="has an adapter already"):
            Adapter(adapter.llm)
        with pytest.raises(ValueError, match="wanted \\(.*entry of B in 4 modules"):
            with adapter.using(torch.zeros(3)):
                pass
        with pytest.raises(ValueError, match="no task"):
            Answers.of(adapter, [])
        writes = Skill("think", "Think.", stages=(Stage("So", 5, ("\n",)),))
        with pytest.raises(ValueError, match="writes a trace"):
            Answers.of(adapter, TASKS, writes)


class TestDataDirections:
    def test_the_prior_stays_what_it_was(self):
        import torch

        from bayesmeta.inference.data_directions import DataDirections

        rows = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
        found = DataDirections.of(rows)
        size = len(found.scale)
        map_rest = found.combine(torch.eye(9), torch.zeros(9, size))
        map_data = found.combine(torch.zeros(size, 9), torch.eye(size))
        covariance = map_rest.T @ map_rest + map_data.T @ torch.diag(found.scale**-2) @ map_data
        torch.testing.assert_close(covariance, torch.eye(9), atol=1e-5, rtol=0)
        wrong = map_rest.T @ map_rest + map_data.T @ map_data
        assert (wrong - torch.eye(9)).abs().max() > 0.1

    def test_the_linearised_posterior_has_unit_scale(self):
        import torch

        from bayesmeta.inference.data_directions import DataDirections

        rows = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
        found = DataDirections.of(rows)
        precision = np.eye(7) + rows.T @ rows
        map_data = found.combine(torch.zeros(3, 7), torch.eye(3)).numpy()
        np.testing.assert_allclose(map_data @ precision @ map_data.T, np.eye(3), atol=1e-4)

    def test_density_of_a_program_in_these_coordinates(self):
        import pyro
        import pyro.distributions as dist
        import torch
        from pyro import poutine

        from bayesmeta.inference.data_directions import AlongData, DataDirections

        found = DataDirections.of(np.ones((1, 3), np.float32))

        def program():
            return pyro.sample("B", dist.Normal(torch.zeros(3), 0.5).to_event(1))

        other = poutine.reparam(program, config={"B": AlongData(found)})
        with pyro.poutine.seed(rng_seed=0):
            draws = torch.stack([other() for _ in range(4000)])
        sites = poutine.trace(other).get_trace().nodes
        assert {"B_rest", "B_data", "B"} <= set(sites)
        error = 4.5 * 0.25 * np.sqrt(2 / 4000)  # of a variance, at 4.5 standard errors
        assert (torch.cov(draws.T) - 0.25 * torch.eye(3)).abs().max() < error


def logistic(num_tasks=60, seed=0):
    """A linear substitute for the language model, whose weights are nearly collinear."""
    import torch

    from bayesmeta.adapter import Jacobian
    from bayesmeta.models.adapter_pyro import AdapterData

    rng = np.random.default_rng(seed)
    one = rng.normal(size=num_tasks)
    x = np.stack([one, one + 0.2 * rng.normal(size=num_tasks), rng.normal(size=num_tasks)], 1)
    slopes = np.zeros((num_tasks, 2, 3), np.float32)
    slopes[:, 1] = 2 * x
    p = 1 / (1 + np.exp(-(slopes[:, 1] @ [1.0, -0.5, 0.8])))
    gold = (rng.random(num_tasks) < p).astype(np.int64)
    table = torch.from_numpy(slopes)
    data = AdapterData(
        lambda weights, index: table[index] @ weights,
        torch.from_numpy(gold),
        torch.tensor([2, 1]),
    )
    return data, Jacobian(np.zeros((num_tasks, 2), np.float32), slopes), slopes[:, 1], gold


class TestPosterior:
    def test_equals_that_of_nuts_on_a_logistic_substitute(self):
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        import torch

        from bayesmeta.inference.adapter_svi import adapter_svi
        from bayesmeta.inference.nuts import nuts
        from bayesmeta.models.adapter_pyro import ADAPTER
        from bayesmeta.models.prior import SitePrior

        data, jacobian, x, gold = logistic()
        prior = ADAPTER.replace("wide", tau=SitePrior("Fixed", {"value": 1.0}))
        found = adapter_svi(data, prior, jacobian, num_steps=600, learning_rate=0.05, rng_seed=0)
        assert found.status.converged
        generator = torch.Generator().manual_seed(0)
        rest = torch.randn(20_000, 3, generator=generator)
        noise = torch.randn(20_000, len(found.loc), generator=generator)
        draws = found.directions.combine(rest, found.loc + found.sd * noise).numpy()

        def program(x, gold):
            B = numpyro.sample("B", dist.Normal(0, 1).expand([3]).to_event(1))
            with numpyro.plate("task", len(gold)):
                numpyro.sample("O", dist.Bernoulli(logits=x @ B), obs=gold)

        exact = nuts(program, jnp.asarray(x), jnp.asarray(gold), num_samples=2000, rng_seed=0)
        exact = exact.samples["B"].reshape(-1, 3)
        sd = exact.std(0)
        # The variational family is not the posterior: a tenth of a standard deviation is its due.
        assert (np.abs(draws.mean(0) - exact.mean(0)) < 0.2 * sd).all()
        assert (np.abs(draws.std(0) / sd - 1) < 0.2).all()
        correlation = np.corrcoef(exact.T)[0, 1]
        assert correlation < -0.7
        assert np.corrcoef(draws.T)[0, 1] == pytest.approx(correlation, abs=0.1)

    def test_a_live_model_learns_and_says_how_sure_it_is(self):
        import torch

        from bayesmeta import LocalLLM
        from bayesmeta.adapter import fit_adapter, heldout_gain
        from bayesmeta.llm.adapter import Adapter
        from bayesmeta.models.adapter_pyro import LEARNED_SCALES

        adapter = Adapter(LocalLLM(device="cpu"), targets=("v_proj",))
        seen = []
        fit = fit_adapter(
            adapter,
            TASKS,
            LEARNED_SCALES,
            num_steps=20,
            batch_size=3,
            progress=lambda *args: seen.append(args),
        )
        assert seen[0] == ("backward passes", 1, 6) and seen[-1] == ("steps", 20, 20)
        assert fit.tau.shape == (30,) and np.isfinite(fit.elbo).all()
        assert fit.mean().shape == (adapter.size,) == (30 * 192 * 4,)
        gain = heldout_gain(fit, TASKS, num_draws=4)
        moved = (gain["mean"] - gain["before"]).to_numpy()
        assert moved.mean() > 0.05  # on the tasks it was fitted to
        assert gain["draw_sd"].to_numpy().min() > 0
        draws = fit.draws(3)
        assert torch.equal(draws, fit.draws(3)) and not torch.equal(draws, fit.draws(3, 1))


class TestModules:
    def fit(self, num_modules, size, num_tasks, planted, effect, seed=0):
        """Random slopes; only planted modules' weights differ from zero."""
        import torch

        from bayesmeta.adapter import Jacobian

        rng = np.random.default_rng(seed)
        slopes = rng.normal(size=(num_tasks, 3, num_modules * size)).astype(np.float32)
        parts = [slice(m * size, (m + 1) * size) for m in range(num_modules)]
        weights = np.zeros(num_modules * size)
        for m in planted:
            weights[parts[m]] = effect * rng.normal(size=size)
        p = np.exp(slopes @ weights)
        p /= p.sum(1, keepdims=True)
        gold = (rng.random((num_tasks, 1)) > p.cumsum(1)).sum(1)
        modules = [types.SimpleNamespace(name=f"m{m}", place=parts[m]) for m in range(num_modules)]
        return types.SimpleNamespace(
            adapter=types.SimpleNamespace(modules=modules),
            scale=torch.full((num_modules * size,), 0.5),
            jacobian=Jacobian(np.zeros((num_tasks, 3), np.float32), slopes),
            answers=types.SimpleNamespace(gold=torch.from_numpy(gold)),
        )

    def test_evidence_is_the_integral_over_weights(self):
        import jax
        import jax.numpy as jnp

        from bayesmeta.adapter_modules import quadratic
        from bayesmeta.models.module_selection import log_evidence

        fit: object = self.fit(3, 2, 8, (0,), 1.0)
        gold, scale = fit.answers.gold.numpy(), fit.scale.numpy()
        parts = [module.place for module in fit.adapter.modules]
        update = 0.1 * np.random.default_rng(2).normal(size=6)
        with jax.enable_x64(True):
            data = quadratic(fit.jacobian, gold, scale, update, parts, jnp.asarray, least=0.0)
            for s in ((1, 0, 1), (1, 1, 1), (0, 1, 0)):
                ours = float(log_evidence(data, jnp.asarray(s, float), jnp.asarray(1.4)))
                kept = np.repeat(np.asarray(s, bool), 2)
                wanted = self.integral(fit, gold, update, 1.4 * scale * kept)
                assert ours == pytest.approx(wanted, abs=1e-3)
            # Directions of which the data say little may be kept to first order.
            small = 0.05 * scale
            rough = quadratic(fit.jacobian, gold, small, update, parts, jnp.asarray, least=0.01)
            assert rough.v.shape[1] < data.v.shape[1]
            ours = float(log_evidence(rough, jnp.ones(3), jnp.ones(())))
            assert ours == pytest.approx(self.integral(fit, gold, update, small), abs=1e-3)

    def test_evidence_needs_double_precision(self):
        import jax
        import jax.numpy as jnp

        from bayesmeta.adapter_modules import quadratic
        from bayesmeta.models.module_selection import log_evidence

        fit: object = self.fit(3, 2, 8, (0,), 1.0)
        gold, scale = fit.answers.gold.numpy(), fit.scale.numpy()
        parts, nowhere = [module.place for module in fit.adapter.modules], np.zeros(6)
        wanted = self.integral(fit, gold, nowhere, 3000.0 * scale * [1, 1, 0, 0, 1, 1])
        for double, error in ((True, 1e-6), (False, 1e-2)):
            with jax.enable_x64(double):
                data = quadratic(fit.jacobian, gold, scale, nowhere, parts, jnp.asarray, least=0.0)
                ours = log_evidence(data, jnp.asarray([1.0, 0.0, 1.0]), jnp.asarray(3000.0))
            assert (abs(float(ours) - wanted) < error) == double

    def integral(self, fit, gold, update, scale):
        """By the Gaussian integral over the weights themselves."""
        J = fit.jacobian.slopes.astype(float)
        logits = J @ update
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        H, pull = np.zeros((6, 6)), np.zeros(6)
        for n in range(len(gold)):
            block = np.diag(p[n]) - np.outer(p[n], p[n])
            b = np.eye(3)[gold[n]] - p[n] + block @ logits[n]
            H += J[n].T @ block @ J[n]
            pull += J[n].T @ b
        inner = np.eye(6) + scale[:, None] * H * scale
        u = scale * pull
        return 0.5 * u @ np.linalg.solve(inner, u) - 0.5 * np.linalg.slogdet(inner)[1]

    def test_gibbs_equals_enumeration(self):
        import itertools

        import jax
        import jax.numpy as jnp

        from bayesmeta.adapter_modules import module_data, select_modules
        from bayesmeta.models.module_selection import SPIKE_AND_SLAB, log_evidence
        from bayesmeta.models.prior import SitePrior

        prior = SPIKE_AND_SLAB.replace("fixed", tau=SitePrior("Fixed", {"value": 1.0}))
        fit: object = self.fit(6, 2, 25, (1,), 1.5)
        found = select_modules(fit, prior, num_warmup=100, num_samples=2000)
        total = {}
        with jax.enable_x64(True):
            data = module_data(fit)
            for s in itertools.product((0.0, 1.0), repeat=6):
                log_prior = sum(np.log(0.2 if one else 0.8) for one in s)
                evidence = log_evidence(data, jnp.asarray(s), jnp.ones(()))
                total[s] = np.exp(log_prior + float(evidence))
        inclusion = sum(np.asarray(s) * p for s, p in total.items()) / sum(total.values())
        error = 4.5 * found.table["inclusion_se"].to_numpy() + 1e-3
        assert (np.abs(found.table["inclusion"].to_numpy() - inclusion) < error).all()
        assert inclusion.max() > 0.9 and inclusion.min() < 0.2
        assert np.abs(inclusion - 0.2).max() > error.max()  # the prior would not do

    def test_planted_modules_are_found(self):
        from bayesmeta.adapter_modules import select_modules

        planted = (2, 7, 11, 17)
        found = select_modules(self.fit(20, 3, 300, planted, 0.5), num_samples=400)
        chosen = set(np.flatnonzero(found.table["selected"]))
        right = len(chosen & set(planted))
        assert 2 * right / (len(chosen) + len(planted)) > 0.9
        assert found.share == pytest.approx(0.2, abs=0.06)
        assert found.tree["posterior"]["tau"].dtype == np.float64
        np.testing.assert_array_equal(np.flatnonzero(found.most_probable(0.2)), np.array(planted))
        # Where no module matters, none is chosen.
        nothing = select_modules(self.fit(20, 3, 300, (), 0.0), num_samples=200)
        assert nothing.share <= 0.05
