"""Published weights as tokenizers: one file for each family says its key tree, shapes and the mapping."""

from vqkit.conversion.cache import converted as converted
from vqkit.conversion.converting import convert as convert
from vqkit.conversion.dac import DAC as DAC
from vqkit.conversion.dac import TransformersDAC as TransformersDAC
from vqkit.conversion.diffusers_vq import DiffusersVQModel as DiffusersVQModel
from vqkit.conversion.encodec import EnCodec as EnCodec
from vqkit.conversion.family import Family as Family
from vqkit.conversion.fqgan import FQGAN as FQGAN
from vqkit.conversion.ibq import SeedVokenIBQ as SeedVokenIBQ
from vqkit.conversion.llamagen import LlamaGenVQ as LlamaGenVQ
from vqkit.conversion.maskgit import MaskGITVQGAN as MaskGITVQGAN
from vqkit.conversion.mimi import Mimi as Mimi
from vqkit.conversion.mimi import TransformersMimi as TransformersMimi
from vqkit.conversion.open_magvit2 import OpenMAGVIT2 as OpenMAGVIT2
from vqkit.conversion.simvq import SimVQImage as SimVQImage
from vqkit.conversion.snac import SNAC as SNAC
from vqkit.conversion.taming import TamingGumbelVQGAN as TamingGumbelVQGAN
from vqkit.conversion.taming import TamingVQGAN as TamingVQGAN
from vqkit.conversion.titok import TATiTok as TATiTok
from vqkit.conversion.titok import TiTok as TiTok
from vqkit.conversion.var import VARAutoencoder as VARAutoencoder
from vqkit.conversion.wavtokenizer import TransformersWavTokenizer as TransformersWavTokenizer
from vqkit.conversion.wavtokenizer import WavTokenizer as WavTokenizer
