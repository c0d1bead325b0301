"""The track of encoder-decoders: a document is encoded behind a prefix that the decoder does not see."""

from kvguard.studies.directed.encdec.bench import opened

__all__ = ["opened"]
