"""Published methods by name. Adding one: a file here that returns `Parts`, its line in `METHODS`, its name in
`Method`.
"""

from collections.abc import Callable
from typing import Literal

from vqkit.methods.ibq import ibq
from vqkit.methods.simvq import simvq
from vqkit.methods.vq import ema, vq
from vqkit.parts import Parts

Method = Literal["vq", "ema", "simvq", "ibq"]

METHODS: dict[str, Callable[[], Parts]] = {"vq": vq, "ema": ema, "simvq": simvq, "ibq": ibq}
