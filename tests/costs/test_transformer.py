"""Transformers' costs give the published figures, and those of torch's own modules and of live tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.costs.memory import states
from labkit.costs.pipelines import bubble
from labkit.costs.training import Bill, training_flops
from labkit.costs.transformer import PRESETS, Transformer
from labkit.errors import SettingError

GPT3 = PRESETS["GPT-3"]


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "published"),
    [
        (12, 768, 12, 125e6),
        (24, 1024, 16, 356e6),
        (24, 1536, 16, 760e6),
        (24, 2048, 16, 1320e6),
        (32, 2560, 32, 2650e6),
        (32, 4096, 32, 6660e6),
        (40, 5120, 40, 12850e6),
        (96, 12288, 96, 174600e6),
    ],
)
def test_gpt3s_sizes_are_those_of_its_table(layers: int, hidden: int, heads: int, published: float) -> None:
    """arXiv:2005.14165, table D.1, which gives three to four digits."""
    assert Transformer(layers, hidden, heads, vocab=50257, seq=2048).parameters == pytest.approx(published, rel=0.0035)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("GPT-2", 1_557_611_200), ("Llama-3 8B", 8_030_261_248), ("Llama-3 405B", 405_853_388_800)],
)
def test_published_models_have_exactly_their_parameters(name: str, parameters: int) -> None:
    assert PRESETS[name].parameters == parameters


def test_a_layer_has_as_many_parameters_as_torchs_own() -> None:
    layer = nn.TransformerEncoderLayer(d_model=48, nhead=4, dim_feedforward=100)
    mine = Transformer(1, 48, 4, vocab=1, seq=1, inner=100)
    assert mine.layer == sum(p.numel() for p in layer.parameters())
    assert Transformer(1, 64, 4, vocab=1, seq=1).layer == 12 * 64**2 + 13 * 64


def test_training_flops_are_those_that_the_papers_say() -> None:
    assert training_flops(GPT3.parameters, 300e9) == pytest.approx(3.143e23, rel=1e-3)  # arXiv:2005.14165: 3.14e23
    assert training_flops(70e9, 1.4e12) == pytest.approx(5.88e23)  # arXiv:2203.15556
    assert training_flops(PRESETS["Llama-3 405B"].parameters, 15.6e12) == pytest.approx(3.8e25, rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 2304, 24), (80, 10240, 60), (96, 12288, 96)])
def test_flops_with_recomputation_are_megatrons_formula(shape: tuple[int, int, int]) -> None:
    """arXiv:2104.04473, eq. 3: 96 B s l h² (1 + s/6h + V/16lh)."""
    heads, h, layers = shape
    batch, s, v = 8, 2048, 51200
    model = Transformer(layers, h, heads, vocab=v, seq=s)
    formula = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    assert model.flops(batch * s, recompute="full") == pytest.approx(formula, rel=1e-12)


def test_flops_are_those_that_torch_counts() -> None:
    """Of forward and backward together; torch counts matrix products, of attention too."""
    from torch.utils.flop_counter import FlopCounterMode

    h, heads, seq, batch, vocab = 32, 4, 16, 2, 50

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(h, 3 * h), nn.Linear(h, h)
            self.up, self.down, self.head = nn.Linear(h, 4 * h), nn.Linear(4 * h, h), nn.Linear(h, vocab, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (it.view(batch, seq, heads, -1).transpose(1, 2) for it in self.qkv(x).chunk(3, -1))
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, h))
            return self.head(x + self.down(self.up(x).relu()))

    x = torch.randn(batch, seq, h, requires_grad=True)  # so that the first product has both of its gradients too
    with FlopCounterMode(display=False) as counted:
        Net()(x).sum().backward()
    model = Transformer(1, h, heads, vocab=vocab, seq=seq)
    assert counted.get_total_flops() == model.flops(batch * seq)


@pytest.mark.parametrize(
    ("peers", "published"), [(4, (52.5, 41.3, 30.0)), (64, (31.4, 16.6, 1.9)), (1024, (30.1, 15.1, 0.12))]
)
def test_zero_needs_what_its_paper_says(peers: int, published: tuple[float, float, float]) -> None:
    """arXiv:1910.02054, fig. 1 and table 1: 7.5 B parameters, K = 12; without ZeRO 120 GB."""
    assert states(7.5e9).total == 120e9
    for stage, gigabytes in enumerate(published, start=1):
        assert states(7.5e9, zero=stage, data=peers).total / 1e9 == pytest.approx(gigabytes, abs=0.051)


def test_activations_of_a_layer_are_those_of_the_papers_table() -> None:
    """arXiv:2205.05198, table 2, at t = 1 and 8, with the paper's GPT-3."""
    s, h, a, b = 2048, 12288, 96, 2
    one = Transformer(1, h, a, vocab=1, seq=s)
    ends = lambda t, rest: s * b * (h / rest + 4 * h / rest + 4 / t)  # noqa: E731  what is not the layer's
    sbh, scores = s * b * h, 5 * a * s / h
    kept = lambda t, **how: one.activations(b, t, **how) - ends(t, t if how.get("sequence_parallel") else 1)  # noqa: E731
    for t in (1, 8):
        assert kept(t) == pytest.approx(sbh * (10 + 24 / t + scores / t))
        assert kept(t, sequence_parallel=True) == pytest.approx(sbh / t * (34 + scores))
        assert kept(t, recompute="selective") == pytest.approx(sbh * (10 + 24 / t))
        assert kept(t, recompute="full") == pytest.approx(sbh * 2)
    assert scores == 80  # "80 for GPT-3"


def test_the_first_stage_of_a_pipeline_keeps_what_a_whole_model_would() -> None:
    """arXiv:2205.05198, §4.2.3: 1F1B has p microbatches open; interleaved it keeps 1 + (p−1)/(pv) times as much."""
    masks = 2048 * 12288
    whole = GPT3.activations() - masks - 2048 * (4 * 12288 + 4 * 50257)
    staged = GPT3.activations(pipeline=8) - 8 * masks
    assert staged == pytest.approx(whole)
    assert GPT3.activations(pipeline=8, interleave=3) - 8 * masks == pytest.approx(whole * (1 + 7 / 24))
    assert GPT3.activations(pipeline=8, microbatches=2) == pytest.approx((whole / 8 + masks) * 2)


def test_the_parts_of_all_peers_are_the_whole_and_copies() -> None:
    model = Transformer(8, 64, 4, vocab=1000, seq=32, tied=False)
    copied = 8 * 6 * 64 + 2 * 64 + 32 * 64  # norms, outputs' biases, positions
    assert model.held(tensor=4) * 4 == model.parameters + 3 * copied
    assert model.held(pipeline=8) == model.layer + 1000 * 64 + 32 * 64


def test_pipelines_stand_still_as_gpipe_says() -> None:
    """arXiv:1811.06965: p = m = 4 gives 42.9 %."""
    assert bubble(4, 4) == pytest.approx(3 / 7)
    assert bubble(4, 8, interleave=2) == pytest.approx(3 / 19)
    assert bubble(1, 1) == 0


def test_gpt3s_bill_is_the_published_one() -> None:
    """arXiv:2104.10350, table 4: 14.8 days on 10,000 V100 at 24.6 TFLOP/s, 1,287 MWh, 552 t CO₂."""
    bill = Bill(3.14e23, 10_000, 24.6e12, watts=330)
    assert bill.days == pytest.approx(14.8, abs=0.05)
    assert bill.kwh == pytest.approx(1_287_000, rel=1e-3)
    assert bill.tonnes == pytest.approx(552, rel=1e-3)


@pytest.mark.parametrize(("parameters", "tokens", "devices", "achieved", "days"), [
    (175e9, 300e9, 1024, 140e12, 33.9), (1e12, 450e9, 3072, 163e12, 83.2),
])  # fmt: skip
def test_days_are_megatrons(parameters: float, tokens: float, devices: int, achieved: float, days: float) -> None:
    """arXiv:2104.04473, eq. 4, 8TP/(nX): 34 and 84 days, as the paper rounds them."""
    flops = training_flops(parameters, tokens) * 8 / 6  # the forward pass is computed twice
    assert Bill(flops, devices, achieved).days == pytest.approx(days, abs=0.06)


@pytest.mark.parametrize("refused", [
    lambda: Transformer(1, 10, 3, vocab=5, seq=5),
    lambda: Transformer(0, 8, 2, vocab=5, seq=5),
    lambda: Transformer(1, 8, 4, vocab=5, seq=5, kv_heads=3),
    lambda: GPT3.held(tensor=7),
    lambda: GPT3.held(pipeline=97),
    lambda: GPT3.activations(recompute="some"),
    lambda: GPT3.flops(math.nan),
    lambda: states(1e9, zero=4),
    lambda: states(1e9, precision="int8"),
    lambda: states(1e9, precision=(2, 2)),  # type: ignore[arg-type]
    lambda: bubble(0, 1),
    lambda: Bill(1e20, 8, 0),
])  # fmt: skip
def test_what_cannot_be_is_refused(refused: object) -> None:
    with pytest.raises(SettingError):
        refused()  # type: ignore[operator]
