"""Compression widget: what a shorter message leaves out, and what error feedback makes up for over the rounds.

A gradient of 64 numbers is sent round by round, its parts from large to small, with noise; the messages are those of
`labkit.exchange`'s compressors. Error feedback: Karimireddy et al., arXiv:1901.09847, Alg. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from labkit.checks import Floats, number, one_of, whole
from labkit.errors import SettingError
from labkit.exchange import QSGD, Compressor, Half, RandomK, Sign, TopK
from labkit.plots.curves import curves
from labkit.plots.panel import Panel, Picture
from labkit.plots.style import ALARM, CYCLE, HOLLOW, INK
from labkit.text import amount
from labkit.widgets.view import Computed, View, choice, frames, lines, percent, size, slider_over, whole_slider

NUMBERS, NOISE = 64, 0.3  # in a gradient; of each number, as a share of it
MODEL = 1_000_000  # numbers of the model whose bytes are told beside
CLOSE = 0.25  # of the sum: no farther off than this it is good
METHODS: dict[str, Callable[[float, int], Compressor]] = {
    "top-k": lambda share, levels: TopK(share),
    "random-k": lambda share, levels: RandomK(share),
    "signs": lambda share, levels: Sign(),
    "QSGD": lambda share, levels: QSGD(levels),
    "16 bits": lambda share, levels: Half(),
}


@dataclass(frozen=True)
class Compression(Computed):
    """What was to be sent, `wanted` [rounds, 64], and what arrived, `sent`; both also of the other choice of feedback.

    `off` [rounds] is how far the sum of what arrived is from the sum of what was wanted after each round, as a share of
    it, by whether there is feedback; nothing is there for feedback that the compressor cannot bear. `error` is the mean
    error of a message, as a share of what it stands for.
    """

    compressor: Compressor
    feedback: bool
    wanted: Floats
    sent: Floats
    off: dict[bool, Floats]
    error: float

    @property
    def nbytes(self) -> int:
        """Bytes of a message."""
        return self.compressor.nbytes(NUMBERS)

    @property
    def silent(self) -> int:
        """Numbers that have never been sent."""
        return int((self.sent == 0).all(axis=0).sum())

    @property
    def left(self) -> float:
        """How far the sum is off in the end."""
        return float(self.off[self.feedback][-1])

    @property
    def ok(self) -> bool:
        return self.left < CLOSE

    @property
    def latex(self) -> str:
        """What is sent, what is kept, and how far the sums are apart."""
        what = (
            r"c_t = C(x_t + e_t), \qquad e_{t+1} &= x_t + e_t - c_t, \qquad \textstyle\sum_t c_t + e = \sum_t x_t"
            if self.feedback
            else r"c_t &= C(x_t)"
        )
        return lines(
            what,
            rf"|c_t| &= {size(self.nbytes)} \;\text{{ of }}\; {size(4 * NUMBERS)}, \qquad "
            rf"\frac{{\| \sum_t c_t - \sum_t x_t \|}}{{\| \sum_t x_t \|}} = {percent(self.left)}",
        )

    @property
    def sentence(self) -> str:
        said = (
            f"A message takes {self.nbytes} of {4 * NUMBERS} bytes ({amount(self.compressor.nbytes(MODEL))} of "
            f"{amount(4 * MODEL)} for a million numbers) and is off by {self.error:.0%}. "
            f"After {len(self.sent)} rounds the sum of what was sent is off by {self.left:.1%}. "
        )
        if self.silent:
            return f"{said}{self.silent} of {NUMBERS} numbers have never been sent, however often they said the same."
        return f"{said}Each number has been sent."


def compute(
    method: str = "top-k",
    share: float = 0.05,
    levels: int = 1,
    feedback: bool = False,
    rounds: int = 100,
    seed: int = 0,
) -> Compression:
    """Send a gradient in so many rounds by one of `METHODS`, with or without error feedback.

    `share` is that of top-k and random-k, `levels` those of QSGD. Raises SettingError for what cannot be, also for
    feedback of an error that may be larger than what is compressed.

    >>> made = compute("top-k", share=0.05)
    >>> made.nbytes, made.silent, compute("top-k", share=0.05, feedback=True).silent
    (24, 43, 0)
    """
    one_of(method, "method", METHODS), whole(rounds, "rounds"), number(share, "share", most=1, above=True)
    compressor = METHODS[method](share, levels)
    bears = compressor.contraction(NUMBERS) > 0
    if feedback and not bears:
        raise SettingError(
            f"The error of {compressor} may be larger than the {NUMBERS} numbers it compresses, so feeding it back "
            "would let it grow: give more levels, or leave feedback off."
        )
    rng = np.random.default_rng(seed)
    steady = np.geomspace(1.0, 0.2, NUMBERS) * rng.choice((-1.0, 1.0), NUMBERS)
    wanted = torch.from_numpy(steady * (1 + NOISE * rng.normal(size=(rounds, NUMBERS)))).float()
    ways = {back: _send(compressor, wanted, back) for back in ((False, True) if bears else (False,))}
    total = wanted.double().cumsum(0)
    off = {
        back: ((sent.double().cumsum(0) - total).norm(dim=1) / total.norm(dim=1)).numpy()
        for back, (sent, _) in ways.items()
    }
    sent, errors = ways[feedback]
    return Compression(compressor, feedback, wanted.double().numpy(), sent.double().numpy(), off, float(errors.mean()))


def _send(compressor: Compressor, wanted: torch.Tensor, feedback: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What arrives in each round [rounds, P], and each message's error as a share of what it stands for [rounds]."""
    error, sent, missed = torch.zeros(NUMBERS), [], []
    for key, x in enumerate(wanted):
        whole_of_it = x + error if feedback else x
        arrived = compressor.decode(compressor.encode(whole_of_it, key), NUMBERS, key)
        if feedback:
            error = whole_of_it - arrived
        sent.append(arrived)
        missed.append((arrived - whole_of_it).norm() / whole_of_it.norm())
    return torch.stack(sent), torch.stack(missed)


def compression(method: str = "top-k", feedback: bool = False) -> View:
    """Sliders over how a gradient is made shorter: bytes and error of a message, and of the sum over many rounds.

    It opens on top-k that forgets what it leaves out: most numbers are never heard.

    >>> view = compression()
    >>> view.controls["feedback"].value = True
    >>> "Each number has been sent" in view.sentence.value
    True
    """
    shares = [(f"{share:.0%}", share) for share in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)]
    controls = {
        "method": choice(METHODS, method, "method", "What a message keeps of a gradient"),
        "share": slider_over(shares, 0.05, "share", "Of the numbers, that top-k and random-k send"),
        "levels": slider_over((1, 3, 7, 31, 127), 1, "levels s", "Of QSGD: steps from zero to the largest number"),
        "feedback": choice(
            {"no: it is forgotten": False, "yes: it is sent later": True}.items(),
            feedback,
            "feedback",
            "What becomes of what a message leaves out",
        ),
        "rounds": whole_slider(100, 1, 100, "rounds", "How often a gradient is sent"),
        "seed": whole_slider(0, 0, 20, "seed", "Another gradient, other noise"),
    }

    def adjust() -> None:
        controls["share"].disabled = controls["method"].value not in ("top-k", "random-k")
        controls["levels"].disabled = controls["method"].value != "QSGD"

    return View("compression", controls, frames(compute, _sums, _off), pictures=2, adjust=adjust)


def _sums(made: Compression) -> Picture:
    """Each number's sum over the rounds, in its own direction: what was wanted in outline, what was sent in colour."""
    wanted, sent = made.wanted.sum(axis=0), made.sent.sum(axis=0)
    sent, wanted = sent * np.sign(wanted), np.abs(wanted)
    never = (made.sent == 0).all(axis=0)
    low, high = min(0.0, float(sent.min())), 1.08 * float(max(wanted.max(), sent.max()))
    title = f"What has arrived after {len(made.sent)} rounds, number by number"
    panel = Panel(1.7, (0, NUMBERS), (low, high), title=title, left=0.62)
    panel.y_axis("sum over the rounds")
    at = np.arange(NUMBERS, dtype=float)
    panel.boxes(at + 0.15, at + 0.85, 0.0, sent, facecolors=CYCLE[0], zorder=2)
    panel.boxes(at + 0.05, at + 0.95, 0.0, wanted, **{**HOLLOW, "linewidths": 0.8})
    for x in at[never]:
        panel.word("×", float(x) + 0.5, 0.0, dy=6, align="centre", colour=ALARM)
    panel.x_axis("numbers of the gradient, the largest first", grid=False)
    panel.legend([(CYCLE[0], False, "sent"), (INK, True, "wanted")], "computed; ×: never sent")
    return panel.finish(f"{title}: {made.silent} of {NUMBERS} numbers have never been sent")


def _off(made: Compression) -> Picture:
    rounds = np.arange(1, len(made.sent) + 1, dtype=float)
    names = {False: "forgets what it leaves out", True: "sends it later"}
    return curves(
        {names[back]: (rounds, 100 * off) for back, off in made.off.items()},
        xlabel="round",
        ylabel="% of the sum",
        title="How far the sum of what was sent is off",
        note="computed",
    )
