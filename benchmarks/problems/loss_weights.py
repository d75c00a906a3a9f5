"""Other rules by which the loss of each chosen sample might be weighted, 1 on average: for `benchmarks/selection.py --weighted true`."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from trak_lightning import TRAK
from trak_lightning.decisions.select import _Pool
from trak_lightning.scoring.score_run import load_features


@dataclass(frozen=True)
class Chosen:
    """What the features say about b chosen samples, n of the pool and m targets; all in the units of `trak select`."""

    gradients: np.ndarray
    """|q|·y·φ of the chosen samples (b, K)."""
    features: np.ndarray
    losses: np.ndarray
    """|q| of the chosen samples (b,)."""
    responses: np.ndarray
    targets: np.ndarray
    wanted: np.ndarray
    """The sign of the output that each target should have (m,)."""
    pool: np.ndarray
    """Σ |q|·y·φ over the pool (K,)."""
    stands_for: np.ndarray
    """How many samples of the pool are nearest to each chosen one, by the cosine of y·φ (b,)."""

    @classmethod
    def of(cls, trak: TRAK, split: str, chosen: np.ndarray, num_targets: int) -> "Chosen":
        checkpoints = load_features(trak.run, trak.store, targets=split, train="train")
        pool = _Pool(checkpoints, trak.run.read().meaning, "auto", np.arange(num_targets), len(chosen))
        features, losses, responses = pool.samples(np.arange(checkpoints[0].train.spec.num_samples), 1.0)
        signed = features * responses[:, None].astype(features.dtype)
        units = signed / np.linalg.norm(signed, axis=1, keepdims=True)
        nearest = (units @ units[chosen].T).argmax(1)
        return cls(
            signed[chosen] * losses[chosen, None],
            features[chosen],
            losses[chosen],
            responses[chosen],
            pool.targets,
            -np.sign(pool.slopes(np.zeros(num_targets))[0]),
            losses.astype(signed.dtype) @ signed,
            np.bincount(nearest, minlength=len(chosen)),
        )

    def rules(self) -> dict[str, np.ndarray]:
        """Weights (b,) by every rule."""
        of_targets = self.wanted.astype(self.targets.dtype) @ self.targets
        counts = np.minimum(self.stands_for / self.stands_for.mean(), 5)
        return {
            "gradient of the targets, ridge 0.3": self.matching(of_targets, 0.3),
            "gradient of the pool, ridge 1": self.matching(self.pool, 1),
            "gradient of the pool, ridge 0.3": self.matching(self.pool, 0.3),
            "loss of the targets, entropy 0.1": self.refitting(0.1),
            "loss of the targets, entropy 0.01": self.refitting(0.01),
            "a quarter by numbers stood for": 0.75 + 0.25 * counts / counts.mean(),
        }

    def matching(self, gradient: np.ndarray, ridge: float) -> np.ndarray:
        """The v ≥ 0 with the smallest ``‖Σ v_i·g_i − c·gradient‖² + ridge·mean‖g_i‖²·‖v − 1‖²``; c gives both sums one length at v = 1."""
        gram = (self.gradients @ self.gradients.T).astype(float)
        length, penalty = np.sqrt(gram.sum()) / np.linalg.norm(gradient), ridge * np.trace(gram) / len(gram)
        factor = np.linalg.cholesky(gram + penalty * np.eye(len(gram)))
        right = length * (self.gradients @ gradient).astype(float) + penalty
        found = nnls(factor.T, np.linalg.solve(factor, right))[0]
        return found / found.mean()

    def refitting(self, entropy: float, steps: int = 300) -> np.ndarray:
        """The weights with which the refitted linear model has the smallest mean loss of the targets, plus entropy·mean(v·log v)."""
        kernel, cross, losses, responses, wanted = (
            torch.tensor(each, dtype=torch.float64)
            for each in (
                self.features @ self.features.T,
                self.targets @ self.features.T,
                self.losses,
                self.responses,
                self.wanted,
            )
        )
        b = len(kernel)
        free = torch.zeros(b, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=0.05)
        for _ in range(steps):
            weights = b * torch.softmax(free, 0)
            root = (weights * losses).sqrt()
            system = torch.eye(b, dtype=torch.float64) + root[:, None] * kernel * root
            outputs = cross @ (root * torch.linalg.solve(system, root * responses))
            loss = torch.nn.functional.softplus(-wanted * outputs).mean()
            loss = loss + entropy * torch.special.entr(weights).mean().neg()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return weights.detach().numpy()
