"""Deep kernel transfer (DKT): a Gaussian process over learned features, its kernel shared by all tasks.

Patacchiola, Turner, Crowley, O'Boyle, Storkey, "Bayesian Meta-Learning for the Few-Shot Setting via Deep Kernels",
NeurIPS 2020, https://arxiv.org/abs/1910.05199; code: https://github.com/BayesWatch/deep-kernel-transfer.

The loss of a task is the negative logarithm of the marginal likelihood of all its examples, support and queries alike,
per example. As in the paper classification is regression of the labels +1 and -1, of each class against the others, and
the posterior means are the logits. The prior's mean is a learned constant, as in the authors' code. Unlike there the
classes share one mean, noise and scale of the kernel: which class has which number is random, and so the number of ways
may differ at meta-test. The spectral kernel is that of Wilson & Adams 2013 (https://arxiv.org/abs/1302.4245, Eq. 12);
in the code it multiplies the cosines of all features. Its frequencies are random at first: equal mixtures stay equal.

The noise variance is at least FLOOR, which bounds the condition number of the covariance: float32 is enough then.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive
from metarun.config.traits import Traits
from metarun.core.features import standardise
from metarun.core.inner import draw_networks, forward, own_generator
from metarun.core.objectives import episode_metrics, measure_density, one_hot
from metarun.core.solvers import factorise, log_normal, solve_lower
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

FLOOR = 1e-4  # of the noise variance, as in GPyTorch
MIXTURES = 4  # of the spectral kernel, as in the authors' code


@register("algo", "dkt", Traits(kinds=("classification", "regression")))
@dataclass(frozen=True)
class DKT:
    """Learn a kernel under which a task's labels are likely; a Gaussian process predicts (Patacchiola et al. 2020)."""

    kernel: Literal["linear", "cossim", "bncossim", "rbf", "spectral"]  # of the features
    noise: Positive  # initial variance
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        """The "kernel" and what else the process has are learned through logarithms where they are positive."""
        theta = draw_networks(self.backbone)
        size = self.backbone.feature_size
        theta["process"] = {"mean": torch.zeros(()), "log_noise": torch.tensor(math.log(self.noise))}
        theta["kernel"] = {"log_scale": torch.zeros(())}
        if self.kernel == "bncossim":
            theta["output_norm"] = {"weight": torch.ones(size), "bias": torch.zeros(size)}
        if self.kernel == "rbf":
            theta["kernel"]["log_length"] = torch.zeros(())
        if self.kernel == "spectral":
            with own_generator():
                frequencies, logits = torch.randn(MIXTURES, size) / size**0.5, torch.zeros(MIXTURES)
            log_widths = torch.full((MIXTURES, size), -0.5 * math.log(size))
            theta["kernel"] |= {"logits": logits, "frequencies": frequencies, "log_widths": log_widths}
        return theta

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def features(self, theta: Theta, z: Tensor, seen: Tensor) -> Tensor:
        """What the kernel compares: [n, D] -> [n, D]. Batch norm is of training tasks, elsewhere of `seen` [m, D]."""
        if self.kernel == "bncossim":
            z = standardise(self.backbone, z, seen) * theta["output_norm"]["weight"] + theta["output_norm"]["bias"]
        return F.normalize(z, dim=-1) if self.kernel in ("cossim", "bncossim") else z

    def covariance(self, theta: Theta, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b): features [n, D], [m, D] -> [n, m]."""
        w = theta["kernel"]
        if self.kernel == "rbf":
            shape = (-0.5 * squares(a, b, (-w["log_length"]).exp())).exp()
        elif self.kernel == "spectral":
            mixtures = zip(w["logits"].softmax(0), w["frequencies"], w["log_widths"].exp())
            terms = [share * (-0.5 * squares(a, b, v)).exp() * cosines(a, b, mu) for share, mu, v in mixtures]
            shape = torch.stack(terms).sum(0)
        else:
            shape = a @ b.T
        return w["log_scale"].exp() * shape

    def variance(self, theta: Theta, z: Tensor) -> Tensor:
        """k(z, z) of each: features [n, D] -> [n]."""
        stationary = self.kernel in ("rbf", "spectral")
        return theta["kernel"]["log_scale"].exp() * (torch.ones_like(z[:, 0]) if stationary else z.square().sum(-1))

    def noise_variance(self, theta: Theta) -> Tensor:
        return FLOOR + theta["process"]["log_noise"].exp()

    def residuals(self, theta: Theta, y: Tensor) -> Tensor:
        """What the prior's mean leaves of class indices [n], as labels of +1 and -1, or of values: [n, outputs]."""
        mean = theta["process"]["mean"]
        if self.spec.kind == "classification":
            y = 2 * one_hot(y, self.spec.output_size).to(mean.dtype) - 1
        return y - mean

    def factor(self, theta: Theta, z: Tensor) -> Tensor:
        """L, lower triangular, of K + noise I = L L^T: features [n, D] -> [n, n]."""
        return factorise(self.covariance(theta, z, z), self.noise_variance(theta))

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """The support's features before and after batch norm, L [n, n] and L^-1 (y - mean) [n, outputs].

        support.x: [n, *input], support.y: [n] class indices or [n, output] values.
        """
        seen = self.embed(theta, support.x)  # [n, D]
        z = self.features(theta, seen, seen)
        factor = self.factor(theta, z)
        return {"seen": seen, "z": z, "factor": factor, "solved": solve_lower(factor, self.residuals(theta, support.y))}

    def posterior(self, theta: Theta, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [n, *input] -> the means [n, outputs] of what is observed, and its variance [n, 1], noise included."""
        z = self.features(theta, self.embed(theta, x), phi["seen"])
        across = solve_lower(phi["factor"], self.covariance(theta, phi["z"], z))  # L^-1 k_*: [support, n]
        variance = self.variance(theta, z) - across.square().sum(0)
        mean = theta["process"]["mean"] + across.T @ phi["solved"]
        return mean, variance.clamp(min=0)[:, None] + self.noise_variance(theta)

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, output]: the posterior's means."""
        return self.posterior(theta, phi, x)[0]

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """-log p(y | X) / n of support and queries together, the mean over classes or outputs (Eq. 4)."""
        x, y = (torch.cat(parts) for parts in zip(*episode))
        z = self.embed(theta, x)
        factor = self.factor(theta, self.features(theta, z, z))
        loss = -log_normal(factor, self.residuals(theta, y)).mean() / len(y)
        return loss, {"noise": self.noise_variance(theta).detach()}

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """In regression also how good the predicted distribution is."""
        metrics = episode_metrics(self, self.spec, theta, episode)
        if self.spec.kind == "classification" or self.norm == "per_query":
            return metrics
        mean, variance = self.posterior(theta, self.adapt(theta, episode.support), episode.query.x)
        return metrics | measure_density(mean[None], variance[None], episode.query.y)


def squares(a: Tensor, b: Tensor, widths: Tensor) -> Tensor:
    """|w (a - b)|^2: [n, D], [m, D], and w [] or [D] -> [n, m]."""
    return (widths * (a[:, None] - b)).square().sum(-1)


def cosines(a: Tensor, b: Tensor, frequency: Tensor) -> Tensor:
    """cos f . (a - b): [n, D], [m, D] and f [D] -> [n, m]."""
    return ((a @ frequency)[:, None] - b @ frequency).cos()
