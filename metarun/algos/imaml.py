"""Meta-learning with implicit gradients (iMAML).

Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019,
https://arxiv.org/abs/1909.04630.

At the minimum phi* of L_S(phi) + lambda/2 |phi - theta|^2 the meta-gradient is (I + H/lambda)^-1 grad L_Q(phi*), with
H the Hessian of L_S there. It is found by conjugate gradient with Hessian-vector products and so does not pass through
the inner steps, of which no graph is kept. After few steps of either solver it is an approximation.

Every weight is adapted, those of norm layers too, as in the authors' code; theta then acts on phi* through the proximal
term alone. (A weight that phi* depends on without being adapted would need the mixed second derivatives as well.)

The authors' released code (aravindr93/imaml_dev) differs from the paper: it takes the inner steps on L_S without the
proximal term and then a single step on that term, solves with (1 + 1) I + H/(lambda + 10), and tests without lambda.
`proximal` 0, `shift` 1 and `damping` 12 are that at the paper's lambda of 2, but for the single step. On Omniglot its
solution is half the query gradient (cosines above 0.99): what it descends is first-order MAML's gradient after many
steps. The paper's Hessian-free inner solver is not here, nor in that code.

The paper's operator, with the proximal term in every inner step, came apart on Omniglot at lambda 2 and alpha 0.1: by
step 200 (of 4 tasks) the Hessian's top eigenvalue at phi was 22 to 35, by step 400 up to 108, where gradient steps are
stable up to 2/alpha - lambda = 18, and the loss of the support itself was above that of guessing. The implicit gradient
supposes that phi* is reached, and so, unlike MAML's, cannot see that the inner steps no longer get there.

I + H/lambda need not be positive definite where the inner steps stop. Conjugate gradient ends at the first direction
along which it is not; on sine waves it went on to gradients a thousand times those of other tasks. A task where that is
the query gradient itself adds this gradient as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, last, slope, unroll
from metarun.core.objectives import judged, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "imaml", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class IMAML:
    """Learn the centre that a task's weights are kept near to (Rajeswaran et al. 2019)."""

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
        """Gradient steps from theta on L_S(phi) + lambda/2 |phi - theta|^2 (Eq. 4): phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """

        def objective(phi: Theta) -> Tensor:
            away = plus(phi, -1.0, theta)
            return self.loss(phi, support) + self.proximal / 2 * dot(away, away)

        return unroll(objective, theta, lr=self.inner_lr, steps=self.inner_steps, first_order=True)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], phi["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def implicit(self, phi: Theta, support: Examples, gradient: Theta) -> Theta:
        """(I + H/lambda)^-1 gradient, with H the Hessian of L_S at phi (Lemma 1)."""
        if self.proximal + self.damping == 0:
            raise ConfigError("algo.proximal is 0: the implicit gradient divides by it; use a number above 0")

        def support_loss(phi: Theta) -> Tensor:
            return self.loss(phi, support)

        hessian = vjp(grad(support_loss), phi)[1]  # symmetric: H^T v is H v

        def operator(v: Theta) -> Theta:
            return plus(scaled(1 + self.shift, v), 1 / (self.proximal + self.damping), hessian(v)[0])

        return conjugate_gradient(operator, gradient, self.cg_steps)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The query loss L_Q(phi*), with the implicit gradient as its gradient (Algorithm 2)."""

        def query_loss(phi: Theta) -> tuple[Tensor, tuple[Tensor, Metrics]]:
            value, metrics = judged(self.spec, self.predict(theta, phi, episode.query.x), episode.query.y)
            return value, (value, metrics)

        with torch.no_grad():
            phi = self.adapt(theta, episode.support)
            gradient, (value, metrics) = grad(query_loss, has_aux=True)(phi)
            implicit = self.implicit(phi, episode.support, gradient)
        return value + slope(theta, implicit), metrics

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)


def conjugate_gradient(operator: Callable[[Theta], Theta], b: Theta, steps: int) -> Theta:
    """An approximate x of operator(x) = b, from x = 0; `operator` symmetric.

    It ends where it meets a direction along which the operator is not positive; where that is the first, with b itself
    (Nocedal & Wright, Numerical Optimization, 2nd edition, Algorithm 7.1).
    """
    x, residual, direction = scaled(0.0, b), b, b
    square = dot(b, b)
    for _ in range(steps):
        image = operator(direction)
        step = ratio(square, dot(direction, image))
        x, residual = plus(x, step, direction), plus(residual, -step, image)
        before, square = square, torch.where(step > 0, dot(residual, residual), 0.0)  # 0 ends it
        direction = plus(residual, ratio(square, before), direction)
    unmoved = (dot(x, x) == 0).to(square.dtype)
    return plus(x, unmoved, b)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 where b is not positive."""
    return torch.where(b > 0, a / b, 0.0)


def dot(a: Theta, b: Theta) -> Tensor:
    return torch.stack([(p * b[c][name]).sum() for c, params in a.items() for name, p in params.items()]).sum()


def scaled(factor: float, a: Theta) -> Theta:
    return {c: {name: factor * p for name, p in params.items()} for c, params in a.items()}


def plus(a: Theta, factor: float | Tensor, b: Theta) -> Theta:
    """a + factor * b."""
    return {c: {name: p + factor * b[c][name] for name, p in params.items()} for c, params in a.items()}
