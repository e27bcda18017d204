"""The partial likelihood and its baseline are those of lifelines."""

import numpy as np
import pytest
import torch

from ehrsequencing.objectives.cox import baseline_log_increments, cox_nll

lifelines = pytest.importorskip("lifelines")
pd = pytest.importorskip("pandas")


def test_the_partial_likelihood_at_lifelines_coefficients_is_theirs_with_ties():
    random = np.random.default_rng(0)
    covariates = random.normal(size=(300, 2))
    days = np.ceil(-np.log(random.random(300)) * np.exp(-covariates @ [0.8, -0.5]) * 10)
    observed = random.random(300) < 0.7
    frame = pd.DataFrame({"a": covariates[:, 0], "b": covariates[:, 1], "days": days, "observed": observed})
    fitted = lifelines.CoxPHFitter().fit(frame, "days", "observed")
    score = torch.from_numpy(covariates @ fitted.params_.to_numpy())
    arguments = (score, torch.from_numpy(days), torch.from_numpy(observed))
    assert -cox_nll(*arguments).item() * observed.sum() == pytest.approx(fitted.log_likelihood_, rel=1e-9)
    # Their scores are centred; a baseline is of the subject whose score is 0.
    centred = score - float(covariates.mean(0) @ fitted.params_.to_numpy())
    edges = torch.tensor([0.0, 3.0, 8.0, 20.0], dtype=torch.float64)
    mine = baseline_log_increments(centred, arguments[1], arguments[2], edges).exp().cumsum(0)
    theirs = fitted.baseline_cumulative_hazard_["baseline cumulative hazard"]
    assert mine.tolist() == pytest.approx(
        [theirs[theirs.index <= edge].iloc[-1] for edge in edges[1:].tolist()], rel=1e-9
    )
