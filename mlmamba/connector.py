"""The Mamba-2 Scan Connector: patches → MLP → 2D selective scan (MVSS) with SwiGLU → projector."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlmamba.config import ConnectorConfig
from mlmamba.errors import UserError
from mlmamba.mamba2 import RMSNorm, SelectiveScan, projected_size
from mlmamba.ssd import Scan

DIRECTIONS = {"bsm": 2, "csm": 4}  # BSM: bidirectional scan; CSM: cross scan
DIRECTION_NAMES = ("rows →", "rows ←", "columns ↓", "columns ↑")


def scan_orders(kind: str, rows: int, cols: int) -> tuple[Tensor, ...]:
    """The order in which each direction visits the patches of a rows x cols grid, numbered row by row.

    One (rows * cols,) permutation a direction: rows →, rows ← and, for "csm", columns ↓, columns ↑. `order[t]` is
    the patch seen at step t; `inverse(order)[i]` the step at which patch i is seen.
    """
    if kind not in DIRECTIONS:
        raise UserError(f'There is no scan "{kind}"; use {" or ".join(DIRECTIONS)}.')
    by_rows = torch.arange(rows * cols)
    by_columns = by_rows.view(rows, cols).T.flatten()
    return (by_rows, by_rows.flip(0), by_columns, by_columns.flip(0))[: DIRECTIONS[kind]]


@cache
def orders_on(device: torch.device, kind: str, rows: int, cols: int) -> tuple[Tensor, ...]:
    """`scan_orders` on a device, brought there once."""
    with torch.inference_mode(False):  # what is made within it can't be trained with
        return tuple(order.to(device) for order in scan_orders(kind, rows, cols))


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`."""
    return torch.argsort(order)


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x)."""

    def __init__(self, d: int):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(d, d) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class MVSS(nn.Module):
    """Mamba-2 Visual Selective Scan: shared projections, one selective scan a direction, their mean."""

    def __init__(self, config: ConnectorConfig, kind: str):
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, projected_size(config), bias=False)
        self.directions = nn.ModuleList(SelectiveScan(config) for _ in range(DIRECTIONS[kind]))
        self.gated_norm = RMSNorm(config.d_inner)
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    def forward(self, x: Tensor, orders: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Scan, ...]]:
        """x: (b, n_patches, d_model) → the same shape, and what each direction scanned.

        More orders than directions borrow the directions' weights in turn: a look at a scan that was never trained.
        """
        projected = self.in_proj(x)  # (b, n_patches, d_projected)
        total, scans = torch.zeros_like(x[..., :1], dtype=torch.float32), []
        for direction, order in zip(cycle(self.directions), orders, strict=False):
            along = projected[:, order]
            y, _, scan = direction(along)
            y = self.gated_norm(y, along[..., : y.shape[-1]])
            total = total + y[:, inverse(order)]
            scans.append(replace(scan, order=order))
        mean = total / len(orders)  # (b, n_patches, d_inner)
        return self.out_proj(mean.to(x.dtype)), tuple(scans)


class ScanLayer(nn.Module):
    """h + MVSS(h), then h + SwiGLU(LayerNorm(h)); no norm before the scan, as published."""

    def __init__(self, config: ConnectorConfig, kind: str):
        super().__init__()
        self.mvss = MVSS(config, kind)
        self.norm = nn.LayerNorm(config.d_model) if config.swiglu else None
        self.swiglu = SwiGLU(config.d_model) if config.swiglu else None

    def forward(self, h: Tensor, orders: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Scan, ...]]:
        mixed, scans = self.mvss(h, orders)
        h = h + mixed
        if self.norm is not None and self.swiglu is not None:
            h = h + self.swiglu(self.norm(h))
        return h, scans


class ScanStack(nn.Module):
    """The scan layers of one connector kind and their final norm."""

    def __init__(self, config: ConnectorConfig, kind: str):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(ScanLayer(config, kind) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model)

    def forward(
        self, h: Tensor, grid: tuple[int, int], kind: str | None = None
    ) -> tuple[Tensor, tuple[tuple[Scan, ...], ...]]:
        """h: (b, n_patches, d_model) → the same shape, scans[layer][direction]; `kind` if not the one trained for."""
        orders = orders_on(h.device, kind or self.kind, *grid)
        scans = []
        for layer in self.layers:
            h, layer_scans = layer(h, orders)
            scans.append(layer_scans)
        return self.norm_f(h), tuple(scans)


@dataclass(frozen=True)
class ConnectorOutput:
    """features: (b, n_patches, d_model) for the language model; scans[layer][direction].

    `trained` is False for an exploratory scan, in orders that its weights were not trained for.
    """

    features: Tensor
    scans: tuple[tuple[Scan, ...], ...]
    trained: bool = True


class Connector(nn.Module):
    """Patch features → language model. One MLP and one projector serve every kind of scan with weights."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        d = config.d_model
        self.kinds = config.kinds
        self.mlp = nn.Sequential(nn.Linear(config.d_features, d), nn.GELU())
        self.scan = nn.ModuleDict({kind: ScanStack(config, kind) for kind in config.kinds if kind != "mlp"})
        self.projector = nn.Sequential(
            nn.Linear(d, config.d_projector),
            nn.GELU(),
            nn.Linear(config.d_projector, d),
            nn.GELU(),
            nn.Linear(d, d),
        )

    def forward(self, patches: Tensor, grid: tuple[int, int], kind: str | None = None) -> ConnectorOutput:
        """patches: (b, rows * cols, d_features), row by row. `kind` is by default the config's first."""
        kind = kind or self.kinds[0]
        if kind not in self.kinds:
            raise UserError(f'This model has no weights for the connector "{kind}"; use {" or ".join(self.kinds)}.')
        if patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{patches.shape[1]} patches do not fill a grid of {grid[0]} x {grid[1]}")
        h, scans = self.mlp(patches.to(next(self.parameters()).dtype)), ()
        if kind != "mlp":
            h, scans = self.scan[kind](h, grid)
        return ConnectorOutput(self.projector(h), scans)

    def explore(self, patches: Tensor, grid: tuple[int, int], kind: str) -> ConnectorOutput:
        """As `forward`, but a kind without weights borrows those of the first kind that has them.

        So the published 3B, which has BSM alone, shows what CSM's orders would do: rows and columns forward with
        BSM's forward parameters, backward with its backward ones. Raises UserError where there is no scan at all.
        """
        if kind in self.scan:
            return self(patches, grid, kind)
        if not len(self.scan):
            raise UserError("This model's connector is an MLP alone: there is no scan to see.")
        h = self.mlp(patches.to(next(self.parameters()).dtype))
        h, scans = next(iter(self.scan.values()))(h, grid, kind)
        return ConnectorOutput(self.projector(h), scans, trained=False)
