"""Proves Cox's losses and elastic net against direct formulas, lifelines and scikit-survival, with ties and censoring."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dagman.errors import TaskError
from dagman.tasks.outcome import cox

with warnings.catch_warnings():
    # Both warn on import with newer pandas or numpy; that is theirs.
    warnings.simplefilter("ignore")
    lifelines = pytest.importorskip("lifelines")
    sksurv_linear = pytest.importorskip("sksurv.linear_model")
    from sksurv.util import Surv


def _cohort(seed: int, items: int = 40, features: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(items, features))
    lived = np.ceil(12 * random.exponential(np.exp(-x[:, 0])))
    followed = np.ceil(random.uniform(1, 30, items))
    return x, np.minimum(lived, followed), lived <= followed


def _sum_directly(risk: np.ndarray, time: np.ndarray, event: np.ndarray, *, efron: bool) -> float:
    total = 0.0
    for t in np.unique(time[event]):
        dying = np.flatnonzero(event & (time == t))
        at_risk = np.exp(risk[time >= t]).sum()
        for k in range(len(dying)):
            gone = k / len(dying) * np.exp(risk[dying]).sum() if efron else 0.0
            total -= np.log(at_risk - gone)
        total += risk[dying].sum()
    return -total / max(int(event.sum()), 1)


@pytest.mark.parametrize(("loss", "efron"), [(cox.measure_breslow_loss, False), (cox.measure_efron_loss, True)])
@given(seed=st.integers(0, 1000))
def test_losses_are_the_formulas_with_tied_times(loss, efron, seed):
    x, time, event = _cohort(seed)
    found = loss(torch.tensor(x[:, 0]), torch.tensor(time), torch.tensor(event))
    assert float(found) == pytest.approx(_sum_directly(x[:, 0], time, event, efron=efron), rel=1e-10)


def test_losses_are_those_that_scikit_survival_and_lifelines_minimise():
    x, time, event = _cohort(3, items=80)
    frame = pd.DataFrame(x, columns=list("abc")).assign(time=time, event=event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        efron = lifelines.CoxPHFitter().fit(frame, "time", "event").params_.to_numpy()
        breslow = sksurv_linear.CoxPHSurvivalAnalysis(ties="breslow").fit(x, Surv.from_arrays(event, time)).coef_
    for loss, weights in ((cox.measure_efron_loss, efron), (cox.measure_breslow_loss, breslow)):
        tried = torch.tensor(weights, requires_grad=True)
        loss(torch.tensor(x) @ tried, torch.tensor(time), torch.tensor(event)).backward()
        assert tried.grad is not None
        assert float(tried.grad.abs().max()) < 1e-4


@pytest.mark.parametrize("loss", [cox.measure_breslow_loss, cox.measure_efron_loss])
def test_gradients_are_those_of_finite_differences(loss):
    x, time, event = _cohort(1, items=12)
    risk = torch.tensor(x[:, 0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: loss(r, torch.tensor(time), torch.tensor(event)), (risk,))


@pytest.mark.parametrize("loss", [cox.measure_breslow_loss, cox.measure_efron_loss])
def test_a_batch_without_events_has_no_loss_and_no_gradient(loss):
    risk = torch.randn(5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    value = loss(risk, torch.arange(5.0), torch.zeros(5, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert risk.grad is not None
    assert not risk.grad.any()


@pytest.mark.parametrize("loss", [cox.measure_breslow_loss, cox.measure_efron_loss])
def test_losses_hold_large_risks(loss):
    risk = torch.tensor([500.0, -500.0, 0.0, 300.0])
    assert torch.isfinite(loss(risk, torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([True, True, True, False])))


@pytest.mark.parametrize("penalty", [0.3, 0.1, 0.02])
def test_the_elastic_net_is_scikit_survivals(penalty):
    x, time, event = _cohort(5, items=80, features=10)
    wanted = sksurv_linear.CoxnetSurvivalAnalysis(l1_ratio=cox.MIXING, alphas=[penalty], tol=1e-10, max_iter=10**6)
    wanted.fit(x, Surv.from_arrays(event, time))
    data = cox._Ordered.of(x - x.mean(axis=0), time, event)
    assert cox._descend(data, np.zeros(10), penalty) == pytest.approx(wanted.coef_[:, 0], abs=1e-4)


def test_the_baseline_is_breslows_by_hand():
    # Risks of 0: at each event time one over the number at risk.
    model = cox.anchor_risk([0, 0, 0, 0], [1, 2, 2, 4], [True, True, False, True])
    assert model.times == pytest.approx([1, 2, 4])
    assert model.hazard == pytest.approx([1 / 4, 1 / 4 + 1 / 3, 1 / 4 + 1 / 3 + 1])
    assert model.survive([[0.0]], [0.5, 1, 3])[0] == pytest.approx([1, np.exp(-1 / 4), np.exp(-1 / 4 - 1 / 3)])


@settings(max_examples=5)
@given(st.integers(0, 50))
def test_the_fit_finds_what_decides_and_leaves_noise_alone(seed):
    x, time, event = _cohort(seed, items=120, features=6)
    model = cox.fit_cox(x, time, event, np.arange(120), seed=seed)
    assert model.weights[0] > 0.4
    assert np.abs(model.weights[1:]).max() < model.weights[0] / 2


def test_survival_falls_over_time_and_with_risk():
    x, time, event = _cohort(2, items=100)
    model = cox.fit_cox(x, time, event, np.arange(100))
    curves = model.survive(x, [0, 3, 6, 12])
    assert (np.diff(curves, axis=1) <= 0).all()
    order = np.argsort(model.score(x))
    assert (np.diff(curves[order, 2]) <= 1e-12).all()


def test_training_without_an_event_is_refused_in_one_line():
    x, time, event = _cohort(2)
    with pytest.raises(TaskError, match="contain no event"):
        cox.fit_cox(x, time, event & False, np.arange(len(x)))
