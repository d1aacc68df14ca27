"""What is measured of quantizers: how their codes are used, and what they could do at best."""

from vqkit.metrics.usage import CodebookUsage as CodebookUsage
from vqkit.metrics.usage import countable as countable
