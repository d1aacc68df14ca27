"""What is penalised. A loss is stateless and knows one equation; its weight scales it in the total only."""

from typing import ClassVar

from torch import Tensor, nn

from vqkit.base import Selection
from vqkit.config import Configured
from vqkit.functional import row_mean_square


class Loss(Configured, nn.Module):
    """A penalty on a selection.

    Class attributes:
        name: its key in `QuantizerOutput.losses`.
        trains_codebook: whether its gradient reaches the codebook.

    Args:
        weight: factor in the total; at least 0.

    Raises:
        ValueError: `weight` is negative or not a number.
    """

    name: ClassVar[str]
    trains_codebook: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"{type(self).__name__} weight={weight}: expected a number of at least 0")
        self.weight = weight

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """The unweighted loss, scalar.

        Args:
            selection: what was chosen, before the estimator.
            quantized: (N, D) the estimator's output.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The weight."""
        return f"weight={self.weight}"


class Commitment(Loss):
    """Pulls the encoder's vectors towards their codes: mse(z, sg(e)), the mean over valid vectors and dimensions.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017 (arXiv 1711.00937), eq. 3, third term, with beta = 0.25 as its
    weight.
    Differs: the paper sums over dimensions; the mean makes the weight independent of D (as later code does).
    """

    name = "commitment"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(z, sg(e))."""
        return selection.mean(row_mean_square(selection.z - selection.selected.detach()))


class CodebookLoss(Loss):
    """Pulls the codes towards the vectors that chose them: mse(sg(z), e), the mean over valid vectors and dimensions.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 3, second term, weight 1.
    Differs: the quantizer of taming-transformers (Esser et al. 2021) puts beta on this term by default; for that,
    `losses=[Commitment(1.0), CodebookLoss(0.25)]`.
    """

    name = "codebook"
    trains_codebook = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(sg(z), e)."""
        return selection.mean(row_mean_square(selection.z.detach() - selection.selected))
