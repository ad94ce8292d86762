"""What a scan went through, from what it scanned: its states step by step, and its dual form row by row.

Glossary as in `mlmamba.ssd` (b l h p n), and: k scans at once, t the step that reads, s the step that is read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlmamba import Scan

ROWS = 32  # of the dual form at a time


@torch.inference_mode()
def replay(scans: Sequence[Scan]) -> Tensor:
    """Every quantity at every step of scans of one size: (k, h, 6, l), float32, quantities as in QUANTITIES.

    H_t = exp(Δ_t A) H_{t-1} + Δ_t x_t B_tᵀ, step by step from H = 0. The first of a batch is taken.
    """
    dt, x, B, C, gate = (
        torch.stack([getattr(scan, name)[0].float() for scan in scans]) for name in ("dt", "x", "B", "C", "gate")
    )
    A, D = (torch.stack([getattr(scan, name).float() for scan in scans]) for name in ("A", "D"))  # (k, h)
    decay = torch.exp(dt * A[:, None])
    fed = (x * dt[..., None]).contiguous()  # Δ x: (k, l, h, p)
    k, length, h, p = x.shape
    state = x.new_zeros(k, h * p, B.shape[-1])
    norms, y = x.new_empty(k, length, h), torch.empty_like(x)
    for t in range(length):
        state = state.view(k, h, p, -1).mul_(decay[:, t, :, None, None]).view(k, h * p, -1)
        state.baddbmm_(fed[:, t].reshape(k, h * p, 1), B[:, t, None])
        norms[:, t] = torch.linalg.vector_norm(state.view(k, h, -1), dim=-1)
        y[:, t] = torch.bmm(state, C[:, t, :, None]).view(k, h, p)
    y += x * D[:, None, :, None]
    taken = fed.norm(dim=-1) * B.norm(dim=-1)[..., None]  # the norm of an outer product
    passed = torch.nn.functional.silu(gate).norm(dim=-1)
    return torch.stack([dt, decay, taken, norms, y.norm(dim=-1), passed], dim=-1).permute(0, 2, 3, 1)


def transfer(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, t: int) -> Tensor:
    """Row t of Mamba-2's dual form, y_t = Σ_s M[t,s] x_s + D x_t: dt (l, h), A (h,), B and C (l, n) → (h, t + 1).

    M[t,s] = C_t·B_s · exp(Σ_{k=s+1..t} Δ_k A) · Δ_s
    """
    dt = dt[: t + 1]
    decay = (dt.double() * A.double()).cumsum(0)
    kept = torch.exp(decay[t] - decay)  # (t + 1, h)
    return (kept * (B[: t + 1].double() @ C[t].double())[:, None] * dt).T.float()


def reach(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, norms: Tensor, t: int) -> Tensor:
    """|M[t,s]|·‖x_s‖ with norms (l, h): the size of each step's term in y_t, 0 for steps to come, (h, l)."""
    row = transfer(dt, A, B, C, t).abs() * norms[: t + 1].T
    return torch.nn.functional.pad(row, (0, len(dt) - t - 1))


def reach_of_all(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, norms: Tensor) -> Tensor:
    """`reach` of every step, mean over heads: (l, l), row t of step t. Some rows at a time, as a GPU likes it."""
    decay, fed = (dt.double() * A.double()).cumsum(0), dt.double() * norms  # (l, h)
    shared = (C.double() @ B.double().T).abs()  # (l, l)
    rows = []
    for some, row in zip(decay.split(ROWS), shared.split(ROWS), strict=True):
        kept = torch.exp(some[:, None] - decay)  # (ROWS, l, h), of steps to come too, which are left out below
        rows.append(row * (kept * fed).mean(-1))
    return torch.cat(rows).tril().float()
