"""One token for each of many rows at once, as fast as the weights can be read."""

from retnet.decoding.decoder import Decoder, KernelName

__all__ = ["Decoder", "KernelName"]
