"""The kernels are the CPU projectors. Without a GPU they run in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported; plugins/conftest.py is earlier still

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from trak_lightning_triton import RademacherTriton, SparseJLTriton  # noqa: E402
from trak_lightning_triton.stream import gather_signs, runs_on  # noqa: E402

from trak_lightning.gradients import DenseBlock, ParameterSlot, RowSparseBlock  # noqa: E402
from trak_lightning.projectors.dense import Rademacher  # noqa: E402
from trak_lightning.projectors.philox import philox  # noqa: E402
from trak_lightning.projectors.sparse_jl import SparseJL  # noqa: E402
from trak_lightning.testing import ProjectorConformance  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
PAIRS = [
    (SparseJLTriton(64), SparseJL(64)),
    (SparseJLTriton(600), SparseJL(600)),
    (SparseJLTriton(64, nnz=3), SparseJL(64, nnz=3)),
    (RademacherTriton(256), Rademacher(256)),
    (RademacherTriton(100), Rademacher(100)),
]


def project(projector, grad, device, seed=2**62 + 12345):
    slot = ParameterSlot("w", tuple(grad.shape[1:]), 0)
    out = torch.zeros(len(grad), projector.dim, device=device)
    projector.block(slot, seed=seed, device=device)(grad.flatten(1).to(device), out)
    return out.cpu()


def test_kernels_are_what_is_tested():
    assert runs_on(DEVICE)


def test_signs_are_those_of_the_cpu_stream():
    positions = torch.randint(0, 2**40, (300,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = gather_signs(2**62 + 12345, positions).cpu()
    words = philox(2**62 + 12345, positions.cpu() // 128)[torch.arange(300), positions.cpu() % 128 // 32]
    assert torch.equal(found, ((words >> positions.cpu() % 32 & 1) * 2 - 1).to(torch.int8))


def pairs_and_types():
    """Each pair with one type, and both kernels with two of them; the others are slow."""
    for number, (kernel, cpu) in enumerate(PAIRS):
        for each, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
            marks = [] if each == number % 2 else [pytest.mark.slow]
            name = f"{type(kernel).__name__}-{kernel.dim}-{dtype}"
            yield pytest.param(kernel, cpu, dtype, marks=marks, id=name)


@pytest.mark.parametrize(("kernel", "cpu", "dtype"), [*pairs_and_types()])
def test_the_kernel_has_the_matrix_of_the_cpu_projector(kernel, cpu, dtype):
    # Small integers: sums are exact in any order, so that one wrong sign would be seen.
    grad = torch.randint(-8, 9, (3, 30, 37), generator=torch.Generator().manual_seed(0)).to(dtype)
    found, expected = project(kernel, grad, DEVICE), project(cpu, grad, CPU)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert found.dtype == torch.float32


def test_embedding_rows_get_the_same_signs_and_features():
    rows = torch.tensor([[3, 1, 3], [0, 8, 2]])
    block = RowSparseBlock("w", rows.to(DEVICE), torch.ones(2, 3, 7, device=DEVICE), 9)
    found = torch.zeros(2, 24, device=DEVICE)
    slot = ParameterSlot("w", (9, 7), 0)
    SparseJLTriton(24).block(slot, seed=4, device=DEVICE).row_sparse(block, found)
    expected = torch.zeros(2, 24)
    dense = DenseBlock("w", block.dense().cpu())
    SparseJL(24).block(slot, seed=4, device=CPU)(dense.grad.flatten(1), expected)
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize(("kernel", "cpu"), PAIRS[::3])
def test_a_run_may_be_resumed_with_the_other(kernel, cpu):
    assert kernel.state == cpu.state


@pytest.mark.slow
class TestSparseJLTriton(ProjectorConformance):
    projector = SparseJLTriton


@pytest.mark.slow
class TestRademacherTriton(ProjectorConformance):
    projector = RademacherTriton


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests have compiled them")
def test_the_kernels_compile_for_a_gpu_that_is_not_there():
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trak_lightning_triton.rademacher import _multiply
from trak_lightning_triton.sparse_jl import _sparse_jl

for kernel, constants in (
    (_sparse_jl, {"BLOCK_B": 16, "BLOCK_K": 512}),
    (_multiply, {"ALIGNED": True, "IN_FLOAT32": False, "BLOCK_B": 32, "BLOCK_E": 32, "BLOCK_K": 128}),
):
    types = {"grad": "*bf16", "partial": "*fp32", "seed": "i64", "offset_seed": "i64"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
