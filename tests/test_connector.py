"""Scan orders, both connectors, and what they say of their scans."""

import pytest
import torch

from mlmamba import UserError, scan_orders
from mlmamba.config import ConnectorConfig
from mlmamba.connector import MVSS, Connector, inverse
from mlmamba.ssd import ssd_recurrence

CONFIG = ConnectorConfig(d_features=24, d_model=32, kinds=("bsm", "csm"), d_state=8, head_dim=16, d_projector=64)


def test_orders_on_a_grid_that_is_not_square():
    # 0 1 2
    # 3 4 5
    orders = [order.tolist() for order in scan_orders("csm", 2, 3)]
    assert orders == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]
    assert [order.tolist() for order in scan_orders("bsm", 2, 3)] == orders[:2]


@pytest.mark.parametrize("kind", ["bsm", "csm"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (3, 4), (27, 27)])
def test_each_order_visits_every_patch_once_and_its_inverse_undoes_it(kind, grid):
    patches = torch.randn(grid[0] * grid[1], 2)
    for order in scan_orders(kind, *grid):
        assert sorted(order.tolist()) == list(range(len(patches)))
        assert torch.equal(patches[order][inverse(order)], patches)


def test_an_unknown_scan_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="bsm or csm"):
        scan_orders("zigzag", 2, 2)


@pytest.fixture(scope="module")
def connector() -> Connector:
    torch.manual_seed(0)
    return Connector(CONFIG).eval().requires_grad_(False)


def test_bsm_and_csm_differ_and_a_grid_need_not_be_square(connector):
    patches = torch.randn(2, 12, 24)
    bsm, csm = (connector(patches, (3, 4), kind) for kind in ("bsm", "csm"))
    assert bsm.features.shape == csm.features.shape == (2, 12, 32)
    assert not torch.allclose(bsm.features, csm.features, atol=1e-3)
    assert [len(layer) for layer in bsm.scans] == [2, 2] and [len(layer) for layer in csm.scans] == [4, 4]
    # the grid matters to the columns of CSM, and to nothing in BSM
    assert torch.equal(connector(patches, (4, 3), "bsm").features, bsm.features)
    assert not torch.allclose(connector(patches, (4, 3), "csm").features, csm.features, atol=1e-4)


def test_scanning_the_turned_grid_swaps_rows_and_columns():
    """CSM of a transposed picture, its row and column directions exchanged, is the transposed result."""
    torch.manual_seed(1)
    mvss = MVSS(CONFIG, "csm").eval().requires_grad_(False)
    swapped = MVSS(CONFIG, "csm").eval().requires_grad_(False)
    swapped.load_state_dict(mvss.state_dict())
    swapped.directions = torch.nn.ModuleList([mvss.directions[i] for i in (2, 3, 0, 1)])
    x = torch.randn(1, 3, 4, 32)
    result, _ = mvss(x.flatten(1, 2), scan_orders("csm", 3, 4))
    turned, _ = swapped(x.transpose(1, 2).flatten(1, 2), scan_orders("csm", 4, 3))
    torch.testing.assert_close(turned.view(1, 4, 3, 32).transpose(1, 2).flatten(1, 2), result, atol=1e-5, rtol=1e-5)


def test_a_scan_replays_to_what_the_layer_gave(connector):
    """The mean over directions of norm(y * silu(gate)), with y replayed from `Scan` alone, is MVSS's output."""
    mvss, x = connector.scan["csm"].layers[0].mvss, torch.randn(2, 12, 32)
    expected, scans = mvss(x, scan_orders("csm", 3, 4))
    total = torch.zeros(2, 12, CONFIG.d_inner)
    for scan in scans:
        y, _ = ssd_recurrence(scan.x, scan.dt, scan.A, scan.B, scan.C, scan.D)
        gated = y.flatten(2) * torch.nn.functional.silu(scan.gate.flatten(2))
        normed = gated / (gated.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * mvss.gated_norm.weight
        back = torch.zeros_like(normed)
        back[:, scan.order] = normed
        total += back
    torch.testing.assert_close(mvss.out_proj(total / 4), expected, atol=1e-5, rtol=1e-5)


def test_mlp_alone_and_no_swiglu():
    plain = Connector(ConnectorConfig(d_features=24, d_model=32, kinds=("mlp",), d_projector=64))
    output = plain(torch.randn(1, 12, 24), (3, 4))
    assert output.scans == () and output.features.shape == (1, 12, 32)
    assert not any("scan" in name for name in plain.state_dict())
    bare = Connector(ConnectorConfig(d_features=24, d_model=32, d_state=8, head_dim=16, swiglu=False, d_projector=64))
    assert not any("swiglu" in name for name in bare.state_dict())
    assert bare(torch.randn(1, 12, 24), (3, 4)).features.shape == (1, 12, 32)


def test_a_kind_without_weights_and_a_wrong_grid_are_refused(connector):
    with pytest.raises(UserError, match="bsm or csm"):
        connector(torch.randn(1, 12, 24), (3, 4), "mlp")
    with pytest.raises(ValueError, match="12 patches do not fill a grid of 3 x 5"):
        connector(torch.randn(1, 12, 24), (3, 5))
