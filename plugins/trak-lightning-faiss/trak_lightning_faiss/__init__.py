"""The best training samples of a target through an index of FAISS, without scoring all of them."""

from trak_lightning_faiss.search import Search

__all__ = ["Search"]
