"""Codebooks of trained quantizers, cut, grown and put in another order, and what was made with them, which follows."""

from vqkit.surgery.followers import carry_embedding as carry_embedding
from vqkit.surgery.followers import carry_head as carry_head
from vqkit.surgery.followers import carry_optimizer as carry_optimizer
from vqkit.surgery.followers import carry_shards as carry_shards
from vqkit.surgery.followers import with_quantizer as with_quantizer
from vqkit.surgery.maps import CodeMap as CodeMap
from vqkit.surgery.operations import grow as grow
from vqkit.surgery.operations import merge as merge
from vqkit.surgery.operations import prune as prune
from vqkit.surgery.operations import reorder as reorder
from vqkit.surgery.operations import shrink as shrink
from vqkit.surgery.operations import shrink_from_latents as shrink_from_latents
from vqkit.surgery.operations import split as split
from vqkit.surgery.operations import transplant as transplant
from vqkit.surgery.orders import chain_order as chain_order
from vqkit.surgery.orders import most_used as most_used
from vqkit.surgery.orders import principal_axis_order as principal_axis_order
from vqkit.surgery.orders import usage_order as usage_order
from vqkit.surgery.orders import used as used
from vqkit.surgery.results import LevelReport as LevelReport
from vqkit.surgery.results import Surgery as Surgery
