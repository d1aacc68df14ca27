"""What is measured of quantizers: how their codes are used, and what they could do at best."""

from vqkit.metrics.capacity import GaussianCapacity as GaussianCapacity
from vqkit.metrics.capacity import fit_gaussian as fit_gaussian
from vqkit.metrics.capacity import gaussian_capacity as gaussian_capacity
from vqkit.metrics.usage import CodebookUsage as CodebookUsage
from vqkit.metrics.usage import countable as countable
