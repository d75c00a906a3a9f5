"""The leading eigenvectors of a sum Σ M Mᵀ, in one pass and without forming the sum."""

import torch
from torch import Tensor

from trak_lightning.projectors.philox import random_normals


class PrincipalDirections:
    """The leading eigenvectors of ``C = Σ_b M_b M_bᵀ`` (d, d), from ``C Ω`` alone.

    Ω (d, q) is Gaussian, q = 2·rank + 10. The Nyström approximation ``C ≈ (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ`` of Tropp, Yurtsever, Udell
    and Cevher 2017, "Fixed-rank approximation of a positive-semidefinite matrix from streaming data". It is exact if the
    rank of C is at most q. Memory: 8·d·q bytes.
    """

    def __init__(self, size: int, rank: int, seed: int) -> None:
        self._rank = rank
        self._probes = min(size, 2 * rank + 10)
        self._omega = random_normals(seed, 0, size * self._probes, torch.device("cpu")).view(size, self._probes)
        self._sketch = torch.zeros_like(self._omega)

    def add(self, matrices: Tensor) -> None:
        """Add ``M_b M_bᵀ`` for every matrix of ``matrices`` (B, d, e)."""
        self._omega, self._sketch = self._omega.to(matrices.device), self._sketch.to(matrices.device)
        self._sketch += (matrices @ (matrices.transpose(1, 2) @ self._omega)).sum(0)

    def leading(self) -> Tensor:
        """Return orthonormal columns (d, rank), float32 on the CPU. If C has a smaller rank, the rest are random directions."""
        omega, sketch = self._omega.cpu().double(), self._sketch.cpu().double()
        values, vectors = torch.linalg.eigh((omega.T @ sketch + sketch.T @ omega) / 2)
        # Eigenvalues below this are rounding errors of the float32 sums.
        kept = values > values[-1] * self._probes * torch.finfo(torch.float32).eps
        kept &= values > 0
        factor = sketch @ (vectors[:, kept] * values[kept].rsqrt())
        found = torch.linalg.svd(factor, full_matrices=False).U
        return torch.linalg.qr(torch.cat([found, omega], 1)).Q[:, : self._rank].float().contiguous()
