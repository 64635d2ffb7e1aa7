"""Models into pyllama's own files and back: execution order, pages, 12 bits a weight, a checksum per block."""

from pyllama.packing.pack import pack
from pyllama.packing.pull import pull_packed
from pyllama.packing.unpack import unpack
from pyllama.packing.verify import verify

__all__ = ["pack", "pull_packed", "unpack", "verify"]
