"""Gradient weighting: methods that compute each task's factor from the inner products of the tasks' gradients.

The methods are torchjd's, except for ``nash`` and ``gradnorm`` (decision 005). They run on the host in float64: the
matrix has one entry for each pair of tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_cloud.errors import MissingExtraError
from mtl_cloud.jobspec.job import LossWeightingSpec
from mtl_cloud.tasks import Task
from mtl_cloud.train.optim.loss_weighting import TaskWeighting

__all__ = ["GradientWeighting", "build_gradient_weighting"]

_TINY = 1e-12
_CAGRAD_RADIUS = 0.5  # c of Liu et al. 2021, as in their experiments on images and in LibMTL
_PROJECTOR_EPS = 1e-4  # norm_eps and reg_eps of torchjd's projector


class GradientWeighting(TaskWeighting):
    """Base of all gradient methods."""

    scales_unshared: ClassVar[bool] = False
    """Whether the factors also scale parameters that only one task reaches. If not, these take the plain gradient."""

    def factors(self, gramian: Tensor, losses: Tensor, present: Sequence[int]) -> Tensor:
        """Factors [P] of the gradients of the P tasks whose indices are ``present``; all on the host, in float64.

        ``gramian`` [P, P] holds the inner products of their gradients on the shared parameters, ``losses`` [P] their
        values, both of the global batch, so that every process computes the same factors. If a gradient is not finite,
        all factors are 1 and the method's state does not change: the loss scaler skips such a step.
        """
        if not gramian.isfinite().all():
            return torch.ones_like(losses)
        factors = self._factors(gramian, losses, list(present))
        self.latest[list(present)] = factors.to(self.latest)
        return factors

    @abstractmethod
    def _factors(self, gramian: Tensor, losses: Tensor, present: list[int]) -> Tensor: ...


class _TorchJD(GradientWeighting):
    """One of torchjd's weightings of the Gramian, with a random generator of its own.

    PCGrad projects in random order, which must be the same in every process.
    """

    def __init__(self, tasks: Sequence[Task], method: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__(tasks)
        self.method = method
        self.generator_state = torch.Generator().manual_seed(seed).get_state()

    def _factors(self, gramian: Tensor, losses: Tensor, present: list[int]) -> Tensor:  # noqa: ARG002  # not their values
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.set_rng_state(self.generator_state)
            factors = self.method(gramian)
            self.generator_state = torch.get_rng_state()
        return factors

    def get_extra_state(self) -> Tensor:
        return self.generator_state

    def set_extra_state(self, state: Tensor) -> None:
        self.generator_state = state.cpu()


class _Nash(GradientWeighting):
    """Nash-MTL (Navon et al. 2022): the bargaining solution, factors a > 0 with G a = 1 / a for the Gramian G.

    That is the minimum of a'Ga / 2 - sum(log a), a self-concordant function: Newton's method with steps of
    1 / (1 + decrement) converges to it from any start. The paper solves a sequence of convex programs instead. As in
    the paper's code, the norm of the combined gradient is at most 1; it is less only for tiny gradients.
    """

    def _factors(self, gramian: Tensor, losses: Tensor, present: list[int]) -> Tensor:  # noqa: ARG002  # not their values
        scale = gramian.norm().clamp(min=_TINY)
        # The diagonal term keeps the factor of a task without a gradient finite.
        unit = gramian / scale + _TINY * torch.eye(len(present), dtype=gramian.dtype)
        factors = _bargain(unit)
        return factors / (factors @ gramian @ factors).sqrt().clamp(min=1)


def _bargain(gramian: Tensor) -> Tensor:
    """The positive a [P] with G a = 1 / a, for a positive definite G [P, P]."""
    a = gramian.diagonal().rsqrt()
    for _ in range(200):
        slope = gramian @ a - 1 / a
        step = torch.linalg.solve(gramian + torch.diag(a**-2), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        a = a - step / (1 + decrement)
        if decrement < 1e-10:
            break
    return a


class _GradNorm(GradientWeighting):
    """GradNorm (Chen et al. 2018): loss weights that are learned so that all tasks train at similar rates.

    Adam (learning rate 0.025) moves the norm of each weighted gradient towards the mean norm * (relative inverse
    training rate) ** 1.5, where a task's inverse training rate is its loss divided by its first loss. The weights sum
    to the number of tasks. They weight losses, so they scale all parameters. The paper takes the norms on the last
    shared layer, this method on all shared parameters.
    """

    first: Tensor
    factor: Tensor
    momentum: Tensor
    variance: Tensor
    updates: Tensor

    scales_unshared = True
    _LR, _BETA1, _BETA2, _ALPHA, _MIN_WEIGHT = 0.025, 0.9, 0.999, 1.5, 1e-3

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self._add_buffers(first=torch.nan, factor=1.0, momentum=0.0, variance=0.0, updates=0.0)
        self.double()

    def _factors(self, gramian: Tensor, losses: Tensor, present: list[int]) -> Tensor:
        factors = self.factor[present].cpu().double()
        first = self.first[present].cpu().double()
        self.first[present] = first.where(~first.isnan(), losses).to(self.first)
        if len(present) > 1:
            self._learn(self._slopes(gramian, losses / first.where(~first.isnan(), losses), factors), present)
        return factors

    def _slopes(self, gramian: Tensor, rates: Tensor, factors: Tensor) -> Tensor:
        """Gradient [P] of sum |weighted norm - target| with respect to the factors; the targets are constants."""
        norms = gramian.diagonal().sqrt()
        weighted = factors * norms
        targets = weighted.mean() * (rates / rates.mean().clamp(min=_TINY)) ** self._ALPHA
        return (weighted - targets).sign() * norms

    def _learn(self, slopes: Tensor, present: list[int]) -> None:
        """Do one step of Adam, then rescale the factors so that the sum over these tasks does not change."""
        slopes, n = slopes.to(self.factor), self.updates[present] + 1
        self.updates[present] = n
        self.momentum[present] = self.momentum[present].lerp(slopes, 1 - self._BETA1)
        self.variance[present] = self.variance[present].lerp(slopes**2, 1 - self._BETA2)
        momentum = self.momentum[present] / (1 - self._BETA1**n)
        variance = self.variance[present] / (1 - self._BETA2**n)
        moved = (self.factor[present] - self._LR * momentum / (variance.sqrt() + _TINY)).clamp(min=self._MIN_WEIGHT)
        self.factor[present] = moved * self.factor[present].sum() / moved.sum()


def build_gradient_weighting(spec: LossWeightingSpec, tasks: Sequence[Task], *, seed: int = 0) -> GradientWeighting:
    """Build the gradient method that ``spec`` names for ``tasks``. ``seed`` must be the same in all processes.

    Raises
    ------
    MissingExtraError
        torchjd, or the solver that it needs for the method, is not installed.
    """
    if spec.name == "gradnorm":
        return _GradNorm(tasks)
    if spec.name == "nash":
        return _Nash(tasks)
    return _TorchJD(tasks, _from_torchjd(spec.name), seed)


def _from_torchjd(name: str) -> Callable[[Tensor], Tensor]:
    """A method of torchjd. Raises ``MissingExtraError`` if torchjd or the method's solver is not installed."""
    extra = "cagrad" if name == "cagrad" else "jd"
    try:
        from torchjd import aggregation

        makers: dict[str, Callable[[], Any]] = {
            "pcgrad": aggregation.PCGradWeighting,
            "cagrad": lambda: aggregation.CAGradWeighting(c=_CAGRAD_RADIUS),
            "mgda": aggregation.MGDAWeighting,
            "imtl_g": aggregation.IMTLGWeighting,
            "aligned": aggregation.AlignedMTLWeighting,
            "upgrad": lambda: aggregation.UPGradWeighting(projector=_dual_cone_projector()),
        }
        method: Callable[[Tensor], Tensor] = makers[name]()
    except ImportError as error:  # from importing torchjd, or from a constructor whose solver is missing
        raise MissingExtraError(extra, f"training.loss_weighting.name: {name}") from error
    return method


def _dual_cone_projector() -> Any:
    """A projector with the interface and result of torchjd's ``QuadprogProjector``, whose solver is under the GPL.

    A row u of the weights [P, P] becomes the v >= u with the least v'Gv (Quinton and Rey 2024, proposition 1). With
    G = R'R and v = u + w this is non-negative least squares: the w >= 0 with the least |Rw + Ru|.
    """
    from scipy.optimize import nnls

    def project(weights: Tensor, gramian: Tensor) -> Tensor:
        trace = gramian.trace()
        normal = gramian / trace if trace >= _PROJECTOR_EPS else torch.zeros_like(gramian)
        root = torch.linalg.cholesky(normal + _PROJECTOR_EPS * torch.eye(len(gramian)).to(gramian)).T
        return torch.stack([u + torch.from_numpy(nnls(root.numpy(), -(root @ u).numpy())[0]) for u in weights])

    return project
