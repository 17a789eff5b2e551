"""Meta-learning with implicit gradients (iMAML).

Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019,
https://arxiv.org/abs/1909.04630.

At the minimum phi* of L_S(phi) + lambda/2 |phi - theta|^2 the meta-gradient is (I + H/lambda)^-1 grad L_Q(phi*), with
H the Hessian of L_S at phi*. Conjugate gradient solves this with Hessian-vector products, so no graph of the inner
steps is kept. With few steps of either solver the result is an approximation.

Every weight is adapted, including those of norm layers, as in the authors' code. Then theta acts on phi* through the
proximal term alone. (A weight that is not adapted would need mixed second derivatives.)

The authors' released code (aravindr93/imaml_dev) differs from the paper: it takes the inner steps on L_S without the
proximal term, then a single step on that term, solves with (1 + 1) I + H/(lambda + 10), and tests without lambda.
The settings `proximal` 0, `shift` 1 and `damping` 12 reproduce it at the paper's lambda of 2, except for the single
step. On Omniglot the solution is half the query gradient (cosines above 0.99), which is first-order MAML's gradient
after many steps. The paper's Hessian-free inner solver is neither here nor in that code.

The paper's form, with the proximal term in every inner step, diverged on Omniglot at lambda 2 and alpha 0.1. Gradient
steps are stable while the Hessian's top eigenvalue is below 2/alpha - lambda = 18; at phi it was 22 to 35 by step 200
(of 4 tasks) and up to 108 by step 400, and the support's loss exceeded that of guessing. Unlike MAML's gradient, the
implicit gradient assumes that phi* was reached, and so cannot correct inner steps that no longer reach it.

I + H/lambda may not be positive definite where the inner steps stop. Conjugate gradient ends at the first direction
along which it is not. (Without this, gradients on sine waves grew to a thousand times those of other tasks.) If that is
the first direction, the query gradient itself, the task contributes this gradient unchanged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vjp

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, forward, last, slope, unroll
from metarun.core.objectives import judge, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "imaml", Traits(kinds=("classification", "regression"), exact=False, ragged=True))
@dataclass(frozen=True)
class IMAML:
    """Learn the centre that every task's weights are kept close to (Rajeswaran et al. 2019)."""

    inner_lr: Positive  # alpha
    inner_steps: Whole
    proximal: NonNegative  # lambda
    cg_steps: Count
    shift: NonNegative  # added to the 1 of the operator; 0 in the paper
    damping: NonNegative  # added to lambda in the operator; 0 in the paper
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone, self.head)

    def loss(self, phi: Theta, examples: Examples) -> Tensor:
        """L, the mean over the examples."""
        return objectives.loss(self.spec.kind, self.predict(phi, phi, examples.x), examples.y)

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J, gradient steps from theta on L_S(phi) + lambda/2 |phi - theta|^2 (Eq. 4).

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """

        def objective(phi: Theta) -> Tensor:
            difference = add(phi, -1.0, theta)
            return self.loss(phi, support) + self.proximal / 2 * dot(difference, difference)

        return unroll(objective, theta, lr=self.inner_lr, steps=self.inner_steps, first_order=True)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = forward(self.backbone, (phi["backbone"], phi["norm"]), x)
        return forward(self.head, phi["head"], features)

    def implicit(self, phi: Theta, support: Examples, gradient: Theta) -> Theta:
        """(I + H/lambda)^-1 gradient, with H the Hessian of L_S at phi (Lemma 1)."""
        if self.proximal + self.damping == 0:
            raise ConfigError("algo.proximal is 0: the implicit gradient divides by it; use a number above 0")

        def support_loss(phi: Theta) -> Tensor:
            return self.loss(phi, support)

        hessian = vjp(grad(support_loss), phi)[1]  # symmetric: H^T v is H v

        def operator(v: Theta) -> Theta:
            return add(scale(1 + self.shift, v), 1 / (self.proximal + self.damping), hessian(v)[0])

        return conjugate_gradient(operator, gradient, self.cg_steps)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The query loss L_Q(phi*), with the implicit gradient as its gradient (Algorithm 2)."""

        def query_loss(phi: Theta) -> tuple[Tensor, tuple[Tensor, Metrics]]:
            value, metrics = judge(self.spec, self.predict(theta, phi, episode.query.x), episode.query.y)
            return value, (value, metrics)

        with torch.no_grad():
            phi = self.adapt(theta, episode.support)
            gradient, (value, metrics) = grad(query_loss, has_aux=True)(phi)
            implicit = self.implicit(phi, episode.support, gradient)
        return value + slope(theta, implicit), metrics

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)


def conjugate_gradient(operator: Callable[[Theta], Theta], b: Theta, steps: int) -> Theta:
    """Approximate the x of operator(x) = b from x = 0, for a symmetric `operator`.

    Ends at the first direction along which the operator is not positive; returns b if that is the very first
    (Nocedal & Wright, Numerical Optimization, 2nd edition, Algorithm 7.1).
    """
    x, residual, direction = scale(0.0, b), b, b
    square = dot(b, b)
    for _ in range(steps):
        image = operator(direction)
        step = ratio(square, dot(direction, image))
        x, residual = add(x, step, direction), add(residual, -step, image)
        before, square = square, torch.where(step > 0, dot(residual, residual), 0.0)  # 0 ends it
        direction = add(residual, ratio(square, before), direction)
    unmoved = (dot(x, x) == 0).to(square.dtype)
    return add(x, unmoved, b)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 if b is not positive."""
    return torch.where(b > 0, a / b, 0.0)


def dot(a: Theta, b: Theta) -> Tensor:
    return torch.stack([(p * b[c][name]).sum() for c, params in a.items() for name, p in params.items()]).sum()


def scale(factor: float, a: Theta) -> Theta:
    return {c: {name: factor * p for name, p in params.items()} for c, params in a.items()}


def add(a: Theta, factor: float | Tensor, b: Theta) -> Theta:
    """a + factor * b."""
    return {c: {name: p + factor * b[c][name] for name, p in params.items()} for c, params in a.items()}
