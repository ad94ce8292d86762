"""The chunked scan, the step and the convolution, against recurrences written out here in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlmamba.ssd import causal_conv, selective_step, ssd, ssd_recurrence

B, H, P, N = 2, 3, 4, 5


def inputs(length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(B, length, H, P, generator=g),
        "dt": F.softplus(torch.randn(B, length, H, generator=g)),
        "A": -torch.rand(H, generator=g) * 2,
        "B": torch.randn(B, length, N, generator=g),
        "C": torch.randn(B, length, N, generator=g),
        "D": torch.randn(H, generator=g),
    }


def by_hand(x, dt, A, B, C, D, state):
    """h = exp(dt A) h + dt x Bᵀ, y = h C + D x, one number at a time in numpy."""
    x, dt, A, B, C, D, h = (t.double().numpy() for t in (x, dt, A, B, C, D, state))
    h, ys = h.copy(), np.zeros_like(x)
    for b, t, head in np.ndindex(*x.shape[:3]):
        h[b, head] = np.exp(dt[b, t, head] * A[head]) * h[b, head] + dt[b, t, head] * np.outer(x[b, t, head], B[b, t])
        ys[b, t, head] = h[b, head] @ C[b, t] + D[head] * x[b, t, head]
    return torch.from_numpy(ys), torch.from_numpy(h)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 50])
@pytest.mark.parametrize("carried", [False, True])
def test_chunked_scan_is_the_recurrence(length, carried):
    given = inputs(length)
    state = torch.randn(B, H, P, N) if carried else torch.zeros(B, H, P, N)
    y, final = ssd(**given, state=state if carried else None, chunk=16)
    expected_y, expected_state = by_hand(**given, state=state)
    torch.testing.assert_close(y.double(), expected_y, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(final.double(), expected_state, atol=1e-4, rtol=1e-4)


def test_the_reference_is_the_recurrence():
    given = inputs(20)
    expected_y, expected_state = by_hand(**given, state=torch.zeros(B, H, P, N))
    y, states = ssd_recurrence(**given)
    torch.testing.assert_close(y.double(), expected_y, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[:, -1].double(), expected_state, atol=1e-4, rtol=1e-4)
    assert states.shape == (B, 20, H, P, N)


def test_steps_of_a_whole_scan_are_convolution_and_recurrence():
    """Token by token on states that are written over, against sums over all that came before."""
    length, channels = 9, H * P + 2 * N
    projected = torch.randn(B, length, H * P + channels + H)
    weight, bias, dt_bias, D = torch.randn(4, channels), torch.randn(channels), torch.randn(H), torch.randn(H)
    A, conv, ssm = -torch.rand(H), torch.randn(B, 3, channels), torch.randn(B, H, P, N)
    seen = torch.cat([conv, projected[..., H * P : -H]], 1).double()
    mixed = torch.stack([(seen[:, t : t + 4] * weight).sum(1) + bias for t in range(length)], 1)
    mixed = mixed * mixed.sigmoid()
    x = mixed[..., : H * P].reshape(B, length, H, P)
    dt = torch.log1p(torch.exp(projected[..., -H:].double() + dt_bias))
    expected_y, expected_state = by_hand(x, dt, A, mixed[..., H * P : -N], mixed[..., -N:], D, ssm)
    for t in range(length):
        y = selective_step(projected[:, t], weight, bias, dt_bias, A, D.repeat_interleave(P), conv, ssm)
        torch.testing.assert_close(y.view(B, H, P).double(), expected_y[:, t], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ssm.double(), expected_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conv.double(), seen[:, -3:])


def test_a_strong_decay_gives_no_nan_and_gradients_stay_finite():
    given = inputs(40)
    given["A"] = given["A"] * 100
    given["x"].requires_grad_()
    y, _ = ssd(**given, chunk=16)
    y.sum().backward()
    assert y.isfinite().all() and given["x"].grad.isfinite().all()


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_convolution_is_causal_and_goes_on_from_its_state(cut):
    x, weight, bias = torch.randn(2, 8, 6), torch.randn(6, 4), torch.randn(6)
    padded = F.pad(x, (0, 0, 3, 0)).double()
    taps = weight.double()
    expected = torch.stack([(padded[:, t : t + 4] * taps.T).sum(1) + bias for t in range(8)], 1)
    whole, _ = causal_conv(x, weight, bias)
    torch.testing.assert_close(whole.double(), F.silu(expected), atol=1e-5, rtol=1e-5)
    first, state = causal_conv(x[:, :cut], weight, bias)
    second, _ = causal_conv(x[:, cut:], weight, bias, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-5)
