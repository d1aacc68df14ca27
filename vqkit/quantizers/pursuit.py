"""Matching pursuit: a vector as a few atoms of one dictionary, each with a coefficient; as tokens, too."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.clustering.kmeans import kmeans
from vqkit.functional import unit
from vqkit.kernels import nearest
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import straight_through
from vqkit.parts.losses import CodebookLoss, Commitment, Loss
from vqkit.parts.selection import Selection
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.several import SeveralCodesQuantizer
from vqkit.runtime import autocast_disabled

DEAD = 0.01
"""An atom is dead when its running usage is below this share of the mean."""
WITHIN_RANGE = 0.999
"""Of the coefficients of a step `initialize` makes this share lie within their range."""
RANGE_SAMPLES = 16_384
"""Vectors from which it finds the ranges."""


class SparseCodes(NamedTuple):
    """A sum of atoms for each of N vectors.

    Attributes:
        indices: (N, m) int64, the atom of each step. One atom may come twice; its coefficients then add up.
        coefficients: (N, m).
        residual: (N, D) what is left: the vector minus sum_t coefficients_t atoms[indices_t].
    """

    indices: Tensor
    coefficients: Tensor
    residual: Tensor


Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From residuals (N, D) and unit atoms (K, D) to the best atom of each (N,), and its coefficient (N,)."""


def signed_choice(residual: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """The atom that leaves the least, whatever its sign: j = argmax |<r, d_j>|, c = <r, d_j>."""
    found = nearest(residual, torch.cat([atoms, -atoms]), metric="dot").indices % len(atoms)
    return found, torch.linalg.vecdot(residual, atoms[found])


def nonnegative_choice(residual: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """An atom and its opposite are two features: j = argmax <r, d_j>, c = max(<r, d_j>, 0)."""
    found = nearest(residual, atoms, metric="dot").indices
    return found, torch.linalg.vecdot(residual, atoms[found]).clamp(min=0)


@torch.no_grad()
def matching_pursuit(x: Tensor, atoms: Tensor, steps: int, *, choice: Choice = signed_choice) -> SparseCodes:
    """Take the best atom of what is left, subtract its part, and go on: r <- r - c d_j.

    With unit atoms ||r||^2 falls by c^2 at each step. Over orthonormal atoms the result is the `steps` largest
    |<x, d>|. No gradient.

    Args:
        x: (N, D) floating point.
        atoms: (K, D) of unit length.
        steps: m, at least 1.
        choice: `signed_choice` or `nonnegative_choice`.

    Raises:
        ValueError: `steps` is below 1, or a shape is wrong.

    Source: Mallat, Zhang 1993 (Matching Pursuits with Time-Frequency Dictionaries), eq. 14-16.
    """
    _check_steps(steps)
    residual, indices, coefficients = x, [], []
    for _ in range(steps):
        found, coefficient = choice(residual, atoms)
        residual = residual - coefficient.unsqueeze(-1) * atoms[found]
        indices.append(found)
        coefficients.append(coefficient)
    return SparseCodes(torch.stack(indices, dim=-1), torch.stack(coefficients, dim=-1), residual)


@torch.no_grad()
def orthogonal_matching_pursuit(x: Tensor, atoms: Tensor, steps: int, *, choice: Choice = signed_choice) -> SparseCodes:
    """Matching pursuit whose coefficients are, at each step, the best ones of all atoms taken so far.

    The residual is orthogonal to every atom that was taken, so that none comes twice before nothing is left; after
    that, and for an atom that the others span, the coefficient is 0. Coefficients may be negative whatever the choice.
    Cost beside the search: O(N m^2 D).

    Args:
        x: see `matching_pursuit`.
        atoms: see there.
        steps: see there; more than D take nothing more away.
        choice: see there.

    Raises:
        ValueError: see there.

    Source: Pati, Rezaiifar, Krishnaprasad 1993 (Orthogonal Matching Pursuit), by Gram-Schmidt.
    """
    _check_steps(steps)
    residual, indices = x, []
    basis = x.new_zeros(len(x), steps, x.shape[1])
    triangle = torch.eye(steps, dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
    along = x.new_zeros(len(x), steps)
    smallest = x.shape[1] * torch.finfo(x.dtype).eps
    for step in range(steps):
        found, _ = choice(residual, atoms)
        direction, parts = atoms[found], x.new_zeros(len(x), steps)
        for _ in range(2):  # once more: what rounding left of the others
            part = torch.einsum("nsd,nd->ns", basis, direction)
            direction = direction - torch.einsum("nsd,ns->nd", basis, part)
            parts = parts + part
        length = torch.linalg.vector_norm(direction, dim=-1)
        new = length > smallest
        direction = torch.where(new.unsqueeze(-1), direction / length.clamp(min=smallest).unsqueeze(-1), 0)
        basis[:, step] = direction
        triangle[:, :step, step] = torch.where(new.unsqueeze(-1), parts[:, :step], 0)
        triangle[:, step, step] = torch.where(new, length, 1)
        along[:, step] = torch.linalg.vecdot(residual, direction)
        residual = residual - along[:, step].unsqueeze(-1) * direction
        indices.append(found)
    coefficients = torch.linalg.solve_triangular(triangle, along.unsqueeze(-1), upper=True).squeeze(-1)
    return SparseCodes(torch.stack(indices, dim=-1), coefficients, residual)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1 atom for each vector")


class UnitCodebook(Codebook):
    """K trainable codes of unit length.

    They are read as unit vectors, so that pursuit is exact whatever an optimizer made of the rows, and the rows
    themselves are scaled back at each `step`: otherwise they would grow, and learn ever more slowly.
    """

    def build_vectors(self, generator: torch.Generator) -> None:
        """Random directions; see `Codebook`."""
        directions = torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        self.vectors = nn.Parameter(unit(directions))

    def forward(self) -> Tensor:
        """The unit vectors (K, D)."""
        return unit(self.vectors)

    @torch.no_grad()
    def step(self) -> None:
        """Fold the pending usage in, and scale rows to unit length; those that have it do not move by a bit."""
        if self._pending_batches:
            length = torch.linalg.vector_norm(self.vectors, dim=-1, keepdim=True)
            moved = (length - 1).abs() > self.dim * torch.finfo(self.vectors.dtype).eps
            self.vectors.copy_(torch.where(moved, unit(self.vectors), self.vectors))
        super().step()


class PursuitQuantizer(SeveralCodesQuantizer):
    """m atoms of one dictionary of unit vectors, each with a coefficient of L levels: m (log2 K + log2 L) bits.

    Step t takes the atom that explains most of the residual, rounds its coefficient to a level of step t and subtracts
    what is decoded, so that later steps mend the rounding too: ||r||^2 falls by c^2 - (c - c')^2, of a coefficient c
    that became c'. Indices are (B, *S, 2 m): atom, level, atom, level, ..., most important first. A pair of which one
    is -1 or not there adds nothing; so any prefix decodes.

    The levels of step t lie evenly between -range_t and range_t, both included. `initialize` sets the ranges (and makes
    atoms of the k-means centres of unit residuals, K / m for each step); they stay as they are in training. With
    `levels=2**16` coefficients are continuous for most purposes; `sparse_codes` gives them unrounded.

    Atoms learn by `CodebookLoss` through the atoms that were chosen, with coefficients held constant; vectors get the
    gradient straight through. An atom that fell out of use gets none, so one more step is taken with the dead atoms
    alone (those of a usage below 1 % of the mean), and what it leaves is a loss, "revival": the more a dead atom
    explains of residuals, the smaller it is.

    With m = 1 this is gain-shape quantization. `ResidualQuantizer` has a codebook for each step and no coefficients.

    Args:
        dim: D, size of the input's channel axis and of the atoms.
        codebook_size: K.
        steps: m.
        levels: L of each coefficient, at least 2. An odd number has 0 among them.
        revival: weight of the loss of that name, at least 0. Its extra search costs 1 / m of all.
        losses: None means `[Commitment(0.25), CodebookLoss()]`.
        usage_decay: of the running usage that decides which atoms are dead, in [0, 1).
        channel_dim: see `BaseQuantizer`.
        auto_step: see `Quantizer`.
        seed: of the initial atoms.

    State:
        ranges: (m,) float32 buffer.
        And that of `Codebook`.

    Source: the loop is that of MP-SAE (Costa et al. 2025, arXiv:2506.03093), unrolled matching pursuit as an encoder,
    and of ICFL (Donhauser et al. 2024, arXiv:2412.16247), which finds sparse codes of whitened features and trains the
    dictionary alone (`vqkit.quantizers.whitening.PCAWhitening`).
    Differs: coefficients are rounded. ICFL's rule of the step and MP-SAE's gradient through coefficients are unseen by
    us: here none passes. The term for dead atoms follows the description of a maintained library (weight 1e-2, atoms of
    an activation below 1e-2); its exact form is unseen.

    Raises:
        IncompatibleParts: see `SeveralCodesQuantizer`.
        ValueError: an argument is out of its range.
    """

    lowest: ClassVar[float] = -1.0
    """The lowest level, in units of the range."""

    ranges: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        steps: int = 4,
        *,
        levels: int = 16,
        revival: float = 1e-2,
        losses: Sequence[Loss] | None = None,
        usage_decay: float = 0.99,
        channel_dim: int = -1,
        auto_step: bool = True,
        seed: int = 0,
    ) -> None:
        _check_steps(steps)
        if levels < 2:
            raise ValueError(f"levels={levels}: expected at least 2 for each coefficient; TopKQuantizer has none")
        if not 0 <= revival < float("inf"):
            raise ValueError(f"revival={revival}: expected a weight of at least 0, such as 0.01")
        super().__init__(
            dim,
            UnitCodebook(codebook_size, dim, usage_decay=usage_decay, seed=seed),
            losses=[Commitment(), CodebookLoss()] if losses is None else losses,
            channel_dim=channel_dim,
            auto_step=auto_step,
        )
        self.steps, self.levels, self.revival = steps, levels, revival
        self.num_codebooks = 2 * steps
        self.codebook_size = max(codebook_size, levels)
        self.register_buffer("ranges", torch.ones(steps, dtype=torch.float32))

    @classmethod
    def default_parts(cls, *args: Any, **kwargs: Any) -> Sequence[type]:
        """The losses; see `Configured`."""
        return Commitment, CodebookLoss

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Atoms and levels in turns."""
        return (self.codebook.codebook_size, self.levels) * self.steps

    @property
    def level_books(self) -> tuple[int, ...]:
        """All steps choose from one dictionary, and round to levels of their own."""
        return tuple(number for step in range(self.steps) for number in (0, step + 1))

    def best_atoms(self, residual: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """`signed_choice`: the `Choice` of each step."""
        return signed_choice(residual, atoms)

    def sparse_codes(self, x: Tensor) -> SparseCodes:
        """Atoms and unrounded coefficients of vectors (N, D), as `matching_pursuit` finds them."""
        with autocast_disabled(x.device):
            return matching_pursuit(x.to(self.dtype), self.codebook().detach(), self.steps, choice=self.best_atoms)

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Pursue each row of `latents` (N, D); see `VectorQuantizer`."""
        if self.learning:
            self.refresh(latents, valid)
        atoms = self.codebook()
        total, tokens = torch.zeros_like(latents), []
        for step in range(self.steps):
            found, coefficient = self.best_atoms((latents - total).detach(), atoms.detach())
            level = self._level(coefficient, step)
            total = self._added(total, atoms, found, level, step)
            tokens += [found, level]
        indices = torch.where(valid.unsqueeze(-1), torch.stack(tokens, dim=-1), -1)
        selection = self.selection(latents, valid, total, indices, indices[:, ::2])
        return straight_through(total, latents) if torch.is_grad_enabled() else total, selection

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Sums (N, D) of `indices` (N, levels), for any prefix of the levels."""
        atoms = self.codebook()
        total = atoms.new_zeros(indices.shape[0], self.dim)
        pairs = zip(indices.unbind(-1)[::2], indices.unbind(-1)[1::2], strict=False)
        for step, (found, level) in enumerate(pairs):
            more = self._added(total, atoms, found.clamp(min=0), level.clamp(min=0), step)
            total = torch.where(((found >= 0) & (level >= 0)).unsqueeze(-1), more, total)
        return total

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, in training also that of dead atoms; see `BaseQuantizer`."""
        total, losses = super().penalize(quantized)
        if self.training and self.revival and quantized.selection is not None:
            losses["revival"] = value = self.revived(quantized.selection)
            total = total + self.revival * value
        return total, losses

    def revived(self, selection: Selection) -> Tensor:
        """Scalar: the mean square of what one more step with the dead atoms alone would leave of the residual."""
        usage = self.codebook.usage
        dead = usage < DEAD * usage.mean()
        atoms = torch.where(dead.unsqueeze(-1), self.codebook(), 0)  # an atom of zeros explains nothing
        residual = (selection.z - selection.selected).detach()
        found, coefficient = self.best_atoms(residual, atoms.detach())
        return selection.mean_square(residual - coefficient.unsqueeze(-1) * nn.functional.embedding(found, atoms))

    def fit(self, rows: Tensor, vectors_per_step: int, seed: int) -> None:
        """Atoms from the residuals of each step, then the ranges of the coefficients; see `SeveralCodesQuantizer`."""
        book, residual, first = self.codebook, rows, 0
        atoms = book().clone()
        for step in range(self.steps):
            last = book.codebook_size * (step + 1) // self.steps
            if last > first:
                directions = kmeans(unit(residual), last - first, seed=seed + step, constrain=unit).centers
                atoms[first:last] = unit(directions)
            if last:
                found, coefficient = self.best_atoms(residual, atoms[:last])
                residual = residual - coefficient.unsqueeze(-1) * atoms[found]
            first = last
        book.vectors.copy_(distributed.from_first_rank(atoms))
        book.assume_uniform_usage(self.steps * vectors_per_step)
        sizes = self.sparse_codes(rows[:: -(-len(rows) // RANGE_SAMPLES)]).coefficients.abs()
        ranges = sizes.quantile(WITHIN_RANGE, dim=0).clamp(min=torch.finfo(sizes.dtype).tiny)
        self.ranges.copy_(distributed.from_first_rank(ranges))

    def _level(self, coefficient: Tensor, step: int) -> Tensor:
        """The nearest level (N,) int64; any number where the coefficient is none."""
        spacing = (1 - self.lowest) * self.ranges[step] / (self.levels - 1)
        place = (coefficient / spacing - self.lowest * (self.levels - 1) / (1 - self.lowest)).round()
        return place.nan_to_num(0).clamp(0, self.levels - 1).long()

    def _added(self, total: Tensor, atoms: Tensor, found: Tensor, level: Tensor, step: int) -> Tensor:
        """`total` (N, D) and what a step decodes to."""
        share = self.lowest + (1 - self.lowest) * level.to(total.dtype) / (self.levels - 1)
        return total + (self.ranges[step] * share).unsqueeze(-1) * nn.functional.embedding(found, atoms)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"steps={self.steps}, levels={self.levels}, dim={self.dim}, channel_dim={self.channel_dim}"


class NonnegativePursuitQuantizer(PursuitQuantizer):
    """`PursuitQuantizer` whose coefficients are 0 or more, as the activations of a sparse autoencoder: an atom and its
    opposite are two features. Levels lie evenly between 0 and range_t, both included. A step that finds no atom on the
    side of the residual takes the level 0, and adds nothing.
    """

    lowest = 0.0

    def best_atoms(self, residual: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """`nonnegative_choice`."""
        return nonnegative_choice(residual, atoms)
