"""A polynomial is found again, with the terms that it has and no others."""

import pytest
import torch

from metarun.core.formula import fit_formula

X = torch.linspace(-2, 2, 41)
TERMS = {"1": torch.ones(41), "x": X, "x2": X**2, "x3": X**3}


def test_the_terms_of_a_sparse_polynomial_and_no_others_are_found() -> None:
    found = fit_formula(TERMS, 3 * X - 0.5 * X**3)
    assert found.coefficients == pytest.approx({"x": 3.0, "x3": -0.5}, abs=1e-5)
    assert found.explained == pytest.approx(1)


def test_a_term_that_explains_little_is_left_out_and_the_rest_is_fitted_without_it() -> None:
    """Of x + c x^3 least squares on x alone has the slope 1 + c sum x^4 / sum x^2."""
    found = fit_formula(TERMS, X + 0.01 * X**3)
    assert found.coefficients == pytest.approx({"x": 1 + 0.01 * float((X**4).sum() / (X**2).sum())}, rel=1e-5)
    assert 0.99 < found.explained < 1
