"""Balancing of losses by the size of their gradients, so that a weight is a share and not a unit conversion."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainers.core.adversary import ADVERSARIAL
from trainers.core.optimization import weighted_sum
from vqkit.backbones.protocol import properties_of
from vqkit.distributed import all_reduce_sum, world_size
from vqkit.precision import FullPrecisionModule

_PREFIX = "gradient_norm_"


class Balancer(FullPrecisionModule, ABC):
    """Weighs losses by their gradients at one tensor of the generator.

    Attributes:
        figures: detached scalars of the last call, to log.
    """

    figures: Mapping[str, Tensor] = {}

    @contextmanager
    def watching(self, decoder: nn.Module) -> Iterator[None]:
        """Open while the decoder makes the reconstruction of which `point` is asked."""
        yield

    @abstractmethod
    def point(self, reconstruction: Tensor) -> Tensor:
        """The tensor at which gradients are compared: an output of the generator, or one of its kernels."""

    @abstractmethod
    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], point: Tensor) -> Tensor:
        """The loss () of terms by name, each a scalar and a function of `point`, with the weights of their names."""


class LossBalancer(Balancer):
    """Replaces the gradients of several losses by shares of a fixed length.

    With g_i the gradient of loss i to the reconstruction, and <|g_i|> a moving average of its size:

        g = sum_i  R * w_i / (sum_j w_j) * g_i / <|g_i|>

    The average is corrected for its start (the first gradient is divided by its own size), is kept for each name in a
    buffer, and is that of all ranks. A gradient of zero stays zero. A size that is not finite (float16 overflowed, or a
    batch is broken) does not enter the average, but the returned loss is not finite then, for the loss scaler or a
    guard to see.

    Terms that are not functions of the reconstruction, above all the quantizer's losses and the discriminators', stay
    outside and are added to what this returns.

    Source: Défossez et al. 2022 (EnCodec, arXiv:2210.13438), sec. 3.4, "Balancer".
    Differs: |g_i| is the sum over the batch of the Euclidean norms of the items, where EnCodec's code takes their mean.
        Norms of items, as there, since they add up over ranks, which the norm of a whole batch does not; their sum,
        since then g is the gradient of a mean over the batch, of items of length R, as that of every other loss here:
        its share beside the quantizer's loss depends neither on the batch size, nor on the number of ranks or
        accumulated batches. With the mean it grows with the batch size. EnCodec's g is ours with `total_norm`
        multiplied by the batch size of one process.

    Args:
        decay: beta of the moving average, in [0, 1).
        total_norm: R, the length of the balanced gradient for each item, when all terms point the same way.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> balancer = LossBalancer()
        >>> reconstruction = torch.zeros(1, 1, 4, requires_grad=True)
        >>> terms = {"a": (reconstruction - 2).square().sum(), "b": 1000 * (reconstruction + 1).square().sum()}
        >>> balancer(terms, {"a": 3.0, "b": 1.0}, reconstruction).backward()
        >>> reconstruction.grad.flatten()
        tensor([-0.2500, -0.2500, -0.2500, -0.2500])
    """

    def __init__(self, decay: float = 0.999, total_norm: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1), such as 0.999")
        if not total_norm > 0:
            raise ValueError(f"total_norm={total_norm}: expected a positive length")
        self.decay = decay
        self.total_norm = total_norm

    def point(self, reconstruction: Tensor) -> Tensor:
        """The reconstruction: nothing behind it is entered."""
        return reconstruction

    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], reconstruction: Tensor) -> Tensor:
        """A loss whose gradient to `reconstruction` is the balanced one.

        Every term is differentiated once as far as `reconstruction`; nothing behind it, such as the decoder, is
        entered before the caller's one backward. The terms keep their graph for that long.

        Args:
            terms: name -> scalar, a function of `reconstruction`; all ranks pass the same names in the same order.
            weights: name -> w_i, at least 0, for each of the terms; others are ignored.
            reconstruction: (B, C, T) in float32: cast it before the terms are computed from it, since gradients of a
                mean over samples underflow in float16.

        Returns:
            scalar; its value is the weighted sum of the terms, for logging, and its gradient the balanced one. Under
            `torch.no_grad` it is the weighted sum.

        Raises:
            ValueError: there is no term, a weight is missing or negative, or `reconstruction` is in low precision.
        """
        self._check(terms, weights, reconstruction)
        value = torch.stack([weights[name] * term.detach().float() for name, term in terms.items()]).sum()
        if not reconstruction.requires_grad:
            return value
        gradients = {
            name: torch.autograd.grad(term, reconstruction, retain_graph=True, materialize_grads=True)[0]
            for name, term in terms.items()
        }
        sizes = self._averaged_sizes(gradients)
        total = sum(weights[name] for name in terms) or 1.0
        balanced = sum(
            self.total_norm * weights[name] / total / sizes[name] * gradient for name, gradient in gradients.items()
        )
        surrogate = (balanced * reconstruction).sum()
        return value + (surrogate - surrogate.detach())

    @torch.no_grad()
    def _averaged_sizes(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take this step's sizes into the averages, and return these."""
        local = torch.stack([gradient.flatten(1).norm(dim=1).sum() for gradient in gradients.values()])
        sizes = all_reduce_sum(local.float()) / world_size()
        averaged = {}
        for name, size in zip(gradients, sizes, strict=True):
            average = self._average(_PREFIX + name, size)
            added = torch.stack([size, torch.ones_like(size)])
            average.copy_(torch.where(size.isfinite(), self.decay * average + added, average))
            averaged[name] = (average[0] / average[1].clamp_min(1e-30)).clamp_min(1e-12)
        return averaged

    def _average(self, buffer: str, like: Tensor) -> Tensor:
        """(2,): discounted sums of sizes and of ones; their ratio is the average, free of the bias of its start."""
        if buffer not in self._buffers:
            self.register_buffer(buffer, like.new_zeros(2))
        return self.get_buffer(buffer)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # Names of terms are known from the first step on; those of a checkpoint from here on.
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and name.startswith(_PREFIX):
                self._average(name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _check(terms: Mapping[str, Tensor], weights: Mapping[str, float], reconstruction: Tensor) -> None:
        if not terms:
            raise ValueError("terms is empty: there is nothing to balance")
        for name in terms:
            if "." in name or not weights.get(name, -1.0) >= 0:
                raise ValueError(
                    f"term {name!r} has the weight {weights.get(name)}: expected a number of at least 0, "
                    "and a name without dots"
                )
        if reconstruction.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"reconstruction is {reconstruction.dtype}: expected torch.float32; cast it with "
                "reconstruction.float() before the terms are computed from it"
            )


class AdaptiveWeight(Balancer):
    """Weighs the adversarial term so that the decoder's last layer gets as much gradient from it as from the rest.

        loss = L_rec + w * lambda * L_GAN,  lambda = min(|grad L_rec| / (|grad L_GAN| + epsilon), maximum)

    with gradients to the kernel of the last layer, L_rec the weighted sum of all other terms (objectives, and feature
    matching if there is any) and w the adversary's weight, 0.8 in VQGAN. lambda is a constant of the step: nothing is
    averaged over steps or kept. `train/adaptive_weight` is lambda. The kernel is what the layer applies: where weight
    norm or another parametrization makes it, not one of the parameters that it is made of.

    Costs one more backward of each term than training without it, from the objectives and through the discriminators
    to the last layer, and none of what lies before that layer; graphs of the terms are kept for the backward proper.

    Source: Esser et al. 2021 (VQGAN, arXiv:2012.09841), eq. 7; epsilon and maximum from its code (1e-6 in the paper).
    Differs: gradients are averaged over processes before their lengths are taken, one all-reduce of two kernels, so
        that N processes train as one with the joined batch; in VQGAN's code each has a lambda of its own. Of
        accumulated batches each has its own, here as there.

    Args:
        last_layer: name of the layer in the decoder, such as `layers.5`; None is the one that the decoder names as its
            `output_layer`, and where it names none the one that was registered last of those with a kernel or matrix.
        maximum: of lambda.
        epsilon: added to the length of the adversarial gradient.

    Raises:
        ValueError: an argument is out of its range; at `watching` if the decoder has no such layer, or it is frozen; at
            `point` if the decoder did not use it.

    Examples:
        >>> decoder, balancer = torch.nn.Conv1d(1, 1, 3, padding=1), AdaptiveWeight()
        >>> with balancer.watching(decoder):
        ...     reconstruction = decoder(torch.ones(1, 1, 8))
        >>> terms = {"l2": reconstruction.square().mean(), "adversarial": 100 * reconstruction.mean()}
        >>> loss = balancer(terms, {"l2": 1.0, "adversarial": 0.8}, balancer.point(reconstruction))
        >>> loss.backward()
    """

    def __init__(self, *, last_layer: str | None = None, maximum: float = 1e4, epsilon: float = 1e-4) -> None:
        super().__init__()
        for name, value in {"maximum": maximum, "epsilon": epsilon}.items():
            if not value > 0:
                raise ValueError(f"{name}={value}: expected a positive number")
        self.last_layer = last_layer
        self.maximum = maximum
        self.epsilon = epsilon
        self._kernels: list[Tensor] = []

    @contextmanager
    def watching(self, decoder: nn.Module) -> Iterator[None]:
        """See `Balancer`."""
        path, _, name = self._weight_name(decoder).rpartition(".")
        owner, parametrized, tensor = f".{path}".partition(".parametrizations.")
        layer: Any = decoder.get_submodule(owner[1:])
        self._kernels = []
        if parametrized:

            def keep(module: nn.Module, arguments: tuple[Tensor, ...], kernel: Tensor) -> Tensor:
                self._kernels = self._kernels or [kernel]
                return self._kernels[0]  # the same for each use, so that gradients of all of them meet in it

            handle = layer.parametrizations[tensor].register_forward_hook(keep)
            try:
                yield
            finally:
                handle.remove()
        else:
            yield
            # The older torch.nn.utils.weight_norm and spectral_norm have set it in the forward.
            made = getattr(layer, name.removesuffix("_v").removesuffix("_orig"), None)
            self._kernels = [made if isinstance(made, Tensor) else getattr(layer, name)]

    def point(self, reconstruction: Tensor) -> Tensor:
        """The kernel of the decoder's last layer."""
        if not self._kernels:
            raise ValueError(f"last_layer={self.last_layer}: the decoder did not use its kernel; name another one")
        return self._kernels.pop()  # nothing of its graph is kept

    def _weight_name(self, decoder: nn.Module) -> str:
        """The name of the parameter that is the kernel of the last layer, or of the last that it is made of."""
        names = [name for name, parameter in decoder.named_parameters() if parameter.ndim > 1]
        last_layer = self.last_layer or properties_of(decoder).output_layer
        if last_layer is not None:
            names = [name for name in names if name.startswith(f"{last_layer}.")]
        if not names:
            layers = ", ".join(name for name, layer in decoder.named_modules() if hasattr(layer, "weight"))
            raise ValueError(
                f"last_layer={last_layer}: expected a layer of {type(decoder).__name__} with a kernel or matrix; "
                f"those with weights are {layers or 'none'}"
            )
        if not decoder.get_parameter(names[-1]).requires_grad:
            raise ValueError(
                f"the decoder's {names[-1]} is frozen, so it has no gradients to compare: name another last_layer of "
                "AdaptiveWeight, or leave the balancer out"
            )
        return names[-1]

    def forward(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], point: Tensor) -> Tensor:
        """The weighted sum, with the adversarial term multiplied by lambda.

        Args:
            terms: name -> scalar; without "adversarial" the plain sum is returned.
            weights: name -> weight for each of the terms.
            point: the kernel of the last layer.

        Returns:
            scalar.
        """
        others = {name: term for name, term in terms.items() if name != ADVERSARIAL}
        reconstruction = weighted_sum(others, weights)
        if ADVERSARIAL not in terms:
            self.figures = {}
            return reconstruction
        adversarial = terms[ADVERSARIAL]
        gradients = [
            torch.autograd.grad(term, point, retain_graph=True, materialize_grads=True)[0].float()
            for term in (reconstruction, adversarial)
        ]
        ours, theirs = (all_reduce_sum(torch.stack(gradients)) / world_size()).flatten(1).norm(dim=1)
        adaptive = (ours / (theirs + self.epsilon)).clamp(max=self.maximum)
        self.figures = {"adaptive_weight": adaptive}
        return reconstruction + weights[ADVERSARIAL] * adaptive * adversarial
