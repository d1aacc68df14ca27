"""Published methods by name. Adding one: a file here that returns `Parts`, its line in `METHODS`, its name in
`Method`.
"""

from collections.abc import Callable
from typing import Literal

from vqkit.methods.cascaded import cascaded
from vqkit.methods.coda import coda
from vqkit.methods.cvq import cvq
from vqkit.methods.diveq import diveq
from vqkit.methods.factorized import factorized
from vqkit.methods.fvq import fvq
from vqkit.methods.gumbel import gumbel
from vqkit.methods.ibq import ibq
from vqkit.methods.nsvq import nsvq
from vqkit.methods.seeded import seeded
from vqkit.methods.simvq import simvq
from vqkit.methods.vq import ema, vq
from vqkit.methods.vqgan_lc import vqgan_lc
from vqkit.parts import Parts

Method = Literal[
    "vq",
    "ema",
    "simvq",
    "ibq",
    "coda",
    "gumbel",
    "nsvq",
    "diveq",
    "cvq",
    "factorized",
    "vqgan_lc",
    "fvq",
    "cascaded",
    "seeded",
]

METHODS: dict[str, Callable[[], Parts]] = {
    "vq": vq,
    "ema": ema,
    "simvq": simvq,
    "ibq": ibq,
    "coda": coda,
    "gumbel": gumbel,
    "nsvq": nsvq,
    "diveq": diveq,
    "cvq": cvq,
    "factorized": factorized,
    "vqgan_lc": vqgan_lc,
    "fvq": fvq,
    "cascaded": cascaded,
    "seeded": seeded,
}
