"""Files of indices: any quantizer's, in few bytes, safe to open. `docs/bitstream.md` has the format byte by byte."""

from vqkit.bitstream.codec import Missing as Missing
from vqkit.bitstream.codec import Packed as Packed
from vqkit.bitstream.codec import TokenCodec as TokenCodec
from vqkit.bitstream.codec import Unpacked as Unpacked
from vqkit.bitstream.coder import Coder as Coder
from vqkit.bitstream.coder import Context as Context
from vqkit.bitstream.coders import CODERS as CODERS
from vqkit.bitstream.concealment import CodebookMean as CodebookMean
from vqkit.bitstream.concealment import NearestNeighbour as NearestNeighbour
from vqkit.bitstream.container import Header as Header
from vqkit.bitstream.container import Picture as Picture
from vqkit.bitstream.container import Sound as Sound
from vqkit.bitstream.container import inspect as inspect
