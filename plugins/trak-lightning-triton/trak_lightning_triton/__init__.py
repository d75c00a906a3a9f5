"""Projectors as Triton kernels: random numbers are drawn inside the kernels, and no table of signs is in memory."""

from trak_lightning_triton.rademacher import RademacherTriton
from trak_lightning_triton.sparse_jl import SparseJLTriton

__all__ = ["RademacherTriton", "SparseJLTriton"]
