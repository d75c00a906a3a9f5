"""Triton reads this when it is imported, which tests of models may do before those of the kernels."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
