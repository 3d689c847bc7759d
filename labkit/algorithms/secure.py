"""Secure: the mean becomes known, and nothing else that any peer sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.algorithms.base import Peer
from labkit.algorithms.wrapper import Exchange, Wrapper, change, require_finite, restored
from labkit.checks import whole
from labkit.errors import ExchangeError, SettingError
from labkit.exchange import Gather, Mean, ModularSum
from labkit.exchange.secure import from_fixed, masks, to_fixed


@dataclass(frozen=True)
class Secure(Wrapper):
    """yᵢ = ⌊2²⁴ wᵢxᵢ⌉ + Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) mod 2⁶⁴, so that Σ yᵢ = ⌊2²⁴ Σ wᵢxᵢ⌉: the masks cancel.

    Bonawitz et al. 2017, doi:10.1145/3133956.3133982, Sec. 4. Each yᵢ by itself is uniform on all 64-bit numbers. The
    weights wᵢ travel masked as well. 8 bytes for each number, twice the plain mean's; where not everybody takes part,
    those who do first tell their numbers to each other. Masks are drawn among those who take part, and labkit's peers
    do not drop out between masking and sending; the paper's secret shares, which repair that, are left out.
    With one peer there is nobody to hide from, with two each knows the other's.

    Pair seeds follow from the run's seed, in place of the key agreement that `lk.join` has. Masking takes m(m−1)/2 · P
    draws; `neighbours` masks with so many others only (Bell et al. 2020, doi:10.1145/3372297.3417885), m · neighbours/2
    · P.
    Raises SettingError for an odd number of neighbours, ExchangeError for numbers beyond the fixed point.

    >>> import labkit as lk, torch
    >>> digits, model = lk.data.load("digits"), lambda: torch.nn.Linear(64, 10)
    >>> lk.train(model, digits, Secure(lk.algorithms.AllReduce()), peers=4, rounds=100).result()
    History: Secure, 4 peers, after 100 rounds test accuracy 8...%, 0.78 MB sent per peer
    """

    neighbours: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.neighbours
        if count is not None and whole(count, "neighbours", least=2) % 2:
            raise SettingError(
                f"neighbours={count} is not an even number of at least 2, one half on either side: give "
                "neighbours=20, say, or None for all."
            )

    @property
    def sends_mean(self) -> bool:
        return False

    def exchange(self, mean: Mean, peer: Peer, index: int) -> Exchange:
        mean = replace(mean, start=None)  # the mean of parameters is as good as that of changes, wherever they began
        everyone = torch.arange(peer.peers)
        if peer.present < peer.peers:
            everyone = yield Gather(peer.ids)
        numbers = self._weighed(mean, peer)
        own = self.masks(peer, everyone, index, numbers.shape[-1])
        masked = to_fixed(numbers, peer.present) + own.to(numbers.device)
        sums = from_fixed((yield ModularSum(masked, mean.form)))
        if mean.weight is None:
            return restored(sums / peer.present, mean, peer)
        if not bool((sums[..., -1] > 0).all()):
            raise ExchangeError(
                "The weights of a secure mean add up to nothing: give weights of which at least one is above zero."
            )
        return restored(sums[..., :-1] / sums[..., -1:], mean, peer)

    def masks(self, peer: Peer, everyone: Tensor, index: int, size: int) -> Tensor:
        """mᵢ of this exchange [..., size], int64."""
        return masks(peer.ids, everyone, self.key(peer, index), size, self.neighbours)

    def _weighed(self, mean: Mean, peer: Peer) -> Tensor:
        """wᵢxᵢ and wᵢ side by side [..., P+1], or xᵢ [..., P] where nothing is weighed."""
        moved = change(mean, peer)
        require_finite(moved, peer)
        if mean.weight is None:
            return moved
        weight = torch.as_tensor(mean.weight).to(moved.device, torch.float64).expand(peer.ids.shape).unsqueeze(-1)
        return torch.cat([weight * moved, weight], dim=-1)
