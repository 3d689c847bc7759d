"""The formulas of the course as cards: what each says, what it means in labkit, and a test of whether it holds.

>>> import labkit as lk
>>> lk.formulas["T"].holds(lk.split(7, parts=3))
✓ all 7 items are in exactly one of 3 parts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from labkit.cards import judges
from labkit.cards.judges import Judge, Verdict
from labkit.translation.translate import spoken, tr

__all__ = ["Card", "Formulas", "Verdict", "Words", "formulas"]


class Words(NamedTuple):
    """A formula said in words, once in each language of the course."""

    en: str
    zh: str

    @property
    def shown(self) -> tuple[str, ...]:
        """What a card shows of them: both, or in Chinese the Chinese alone."""
        return (self.zh,) if spoken() == "zh" else (self.en, self.zh)

    @property
    def said(self) -> str:
        """A name in both languages, that of the reader first."""
        return " · ".join(self[::-1] if spoken() == "zh" else self)


@dataclass(frozen=True, repr=False)
class Card:
    """One formula: how it is written, what it says (English, 中文), which object of labkit it is, and where it is from.

    `latex` and `plain` write the formula, `condition` (LaTeX) is what `holds` demands beyond it.
    """

    key: str
    symbol: str
    name: Words
    latex: str
    plain: str
    condition: str
    words: Words
    here: str
    source: str
    judge: Judge = field(compare=False)

    def holds(self, obj: Any, *, peers: int | None = None) -> Verdict:
        """Whether the formula holds for `obj`, with a sentence that names the item, task, step or peer that breaks it.

        `peers` is how many peers there must be; only 𝓜, 𝓟 and 𝓞 use it. Raises SettingError for an object that the
        formula does not speak of.

        >>> import labkit as lk
        >>> lk.formulas["M"].holds(["a CNN", "an MLP"], peers=3)
        ✗ there are 2 models for 3 peers
        """
        return self.judge(obj, peers)

    def __repr__(self) -> str:
        first = f"{self.symbol:<8}{self.name.said}"
        about = (f"{tr('here')}: {tr(self.here)}", f"{tr('source')}: {self.source}")
        return ("\n" + " " * 8).join([first, self.plain, *self.words.shown, *about])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        formula = f"$$\n{self.latex} \\qquad {self.condition}\n$$"
        parts = [f"**{self.symbol} · {self.name.said}**", formula, *self.words.shown]
        about = [f"*{tr('Here')}:* {tr(self.here)}", f"*{tr('Source')}:* {self.source}\n"]
        return {"text/markdown": "\n\n".join(parts + about), "text/latex": formula, "text/plain": repr(self)}


class Formulas(Mapping[str, Card]):
    """The cards by key or by symbol: `formulas["T"]` and `formulas["𝒯"]` are the same card; KeyError for others."""

    def __init__(self, cards: tuple[Card, ...]) -> None:
        self._cards = {card.key: card for card in cards}
        self._keys = {card.symbol: card.key for card in cards}

    def __getitem__(self, key: str) -> Card:
        card = self._cards.get(self._keys.get(key, key))
        if card is None:
            raise KeyError(f"there is no formula {key!r}: choose one of {', '.join(self._cards)}")
        return card

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._cards)

    def __repr__(self) -> str:
        return "\n".join(f"{card.key:<8}{card.plain:<28}{card.name.said}" for card in self.values())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        rows = [
            f'| `formulas["{card.key}"]` | ${card.latex}$ | {card.name.said} | {tr(card.here)} |'
            for card in self.values()
        ]
        head = f"| {' | '.join(map(tr, ('card', 'formula', 'what', 'here')))} |\n| --- | --- | --- | --- |"
        return {"text/markdown": "\n".join([head, *rows, ""]), "text/plain": repr(self)}


formulas = Formulas(
    (
        Card(
            key="T",
            symbol="𝒯",
            name=Words("splitting", "任务分解"),
            latex=r"\mathcal{T} = \bigcup_{i=1}^{n} \mathcal{T}_i",
            plain="𝒯 = 𝒯₁ ∪ 𝒯₂ ∪ … ∪ 𝒯ₙ",
            condition=r"\mathcal{T}_i \cap \mathcal{T}_j = \varnothing \quad (i \ne j)",
            words=Words(
                "Cut the work into n parts, one for each worker: put together they give back the whole work, "
                "and no item lies in two of them.",
                "把工作切成 n 份，每个节点拿一份：拼在一起恰好还原全部工作，既不少一项，也没有一项被分到两处。",
            ),
            here="a `Partition`, made by `lk.split`; its `.check()` names every lost and every repeated item",
            source="I. Foster, Designing and Building Parallel Programs, 1995, section 2.2",
            judge=judges.judge_partition,
        ),
        Card(
            key="S",
            symbol="𝒮",
            name=Words("scheduling", "任务调度"),
            latex=r"\mathcal{S} = \bigcup_{i=1}^{n} \mathcal{S}_i",
            plain="𝒮 = 𝒮₁ ∪ 𝒮₂ ∪ … ∪ 𝒮ₙ",
            condition=r"[s_a, f_a) \cap [s_b, f_b) = \varnothing \quad (a \ne b \in \mathcal{S}_i)",
            words=Words(
                "A schedule says who does each task and when: it is the union of the workers' own timetables, every "
                "task stands in exactly one of them, and a worker does one thing at a time.",
                "调度要回答“谁在什么时候做哪一件”：每个节点各有一张时间表，所有时间表合起来就是整个调度，"
                "每个任务只出现一次，同一个节点同一时刻只做一件事。",
            ),
            here="a `Schedule`: predicted by `lk.schedule`, or measured as `lab.map(...).schedule`",
            source="R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17(2), 1969",
            judge=judges.judge_schedule,
        ),
        Card(
            key="T_sync",
            symbol="𝒯_sync",
            name=Words("synchronisation", "任务同步"),
            latex=r"\mathcal{T}_{sync} = \bigcap_{i=1}^{n} \mathcal{T}_i",
            plain="𝒯_sync = 𝒯₁ ∩ 𝒯₂ ∩ … ∩ 𝒯ₙ",
            condition=r"k_i \le \left|\mathcal{T}_{sync}\right| + s",
            words=Words(
                "What is safely behind everybody is what every worker has finished: the intersection of the sets of "
                "finished steps. A barrier waits for it; bounded staleness allows s steps past it.",
                "只有每个节点都已做完的步骤才算真正同步：它是各节点已完成步骤的交集。"
                "栅栏要求等到交集跟上，有界陈旧则允许最多领先 s 步。",
            ),
            here="the `.frontier` of a `Timeline`, made by `lk.synchronize`; 𝒯ᵢ is what worker i has finished so far",
            source="L. G. Valiant, CACM 33(8), 1990 (barrier); Q. Ho et al., NIPS 2013 (bounded staleness)",
            judge=judges.judge_timeline,
        ),
        Card(
            key="M",
            symbol="𝓜",
            name=Words("models", "模型协同"),
            latex=r"\mathcal{M} = \bigcup_{i=1}^{n} \mathcal{M}_i",
            plain="𝓜 = 𝓜₁ ∪ 𝓜₂ ∪ … ∪ 𝓜ₙ",
            condition=r"\mathcal{M}_i \ne \mathcal{M}_j \quad (i \ne j)",
            words=Words(
                "Many models learn at once, one at each peer; each keeps parameters of its own, and what the group "
                "knows is what its members know together.",
                "许多模型同时学习，每个参与者各有一个、各管自己的参数；整个群体的知识来自所有成员。",
            ),
            here="the models of a run, one for each peer: `run.result().models`",
            source="Y. Zhang et al., Deep Mutual Learning, arXiv:1706.00384",
            judge=judges.judge_models,
        ),
        Card(
            key="P",
            symbol="𝓟",
            name=Words("strategies", "协同策略"),
            latex=r"\mathcal{P} = \bigcup_{i=1}^{n} \mathcal{P}_i",
            plain="𝓟 = 𝓟₁ ∪ 𝓟₂ ∪ … ∪ 𝓟ₙ",
            condition=r"\forall i \; \exists\, \mathcal{P}_i",
            words=Words(
                "A strategy is what a peer sends, whom it listens to and how it uses what it hears; every peer has "
                "one, and peers may share the same one.",
                "策略规定一个参与者发送什么、听谁的、听到之后怎么用；人人都要有策略，也可以彼此相同。",
            ),
            here="the algorithm given to `lk.train`: one peer's round, written as a generator that yields its messages",
            source="B. Han et al., Co-teaching, arXiv:1804.06872; R. Anil et al., Codistillation, arXiv:1804.03235",
            judge=judges.judge_strategies,
        ),
        Card(
            key="O",
            symbol="𝓞",
            name=Words("optimisers", "协同优化"),
            latex=r"\mathcal{O} = \bigcup_{i=1}^{n} \mathcal{O}_i",
            plain="𝓞 = 𝓞₁ ∪ 𝓞₂ ∪ … ∪ 𝓞ₙ",
            condition=r"\mathcal{O}_i \ne \mathcal{O}_j \quad (i \ne j)",
            words=Words(
                "Each peer turns its gradients into steps with an optimiser of its own, whose memory (momentum, second "
                "moments) belongs to that peer alone.",
                "每个参与者用自己的优化器把梯度变成更新；动量之类的记忆只属于它自己。",
            ),
            here="the `torch.optim` optimisers of a run, one for each peer",
            source="S. Reddi et al., Adaptive Federated Optimization, arXiv:2003.00295",
            judge=judges.judge_optimizers,
        ),
        Card(
            key="tau",
            symbol="τ",
            name=Words("staleness", "陈旧度"),
            latex=r"\tau = v - v_i",
            plain="τ = v − vᵢ ≤ (2s + 1)(n − 1)",
            condition=r"\tau \le (2s + 1)(n - 1)",
            words=Words(
                "The age of a gradient: how often the server changed its weights since this peer last read them. If "
                "nobody may be more than s rounds ahead of the slowest of n peers, it is bounded.",
                "梯度的“年龄”：从这个节点上次取走参数到它把梯度送来，服务器又更新了多少次。"
                "只要最快的节点最多领先最慢的 s 轮，年龄就有上限。",
            ),
            here="the `.staleness` of a History, one number for each push to a `ParameterServer`",
            source="Q. Ho et al., NIPS 2013 (bounded staleness); J. Dean et al., NIPS 2012 (parameter server)",
            judge=judges.judge_staleness,
        ),
        Card(
            key="b",
            symbol="b",
            name=Words("traffic", "通信量"),
            latex=r"b(H) = \frac{2(n-1)}{n} \cdot \frac{S}{H}",
            plain="b(H) = 2(n − 1)/n · S/H",
            condition=r"b(H) = b(1) / H",
            words=Words(
                "To average S bytes among n peers costs each of them 2(n − 1)/n · S bytes. Who averages only every H "
                "steps pays that once for H steps.",
                "n 个节点平均一份 S 字节的参数，每个节点至少要发送 2(n−1)/n·S 字节。"
                "每走 H 步才平均一次，每一步分摊到的通信量就只有 1/H。",
            ),
            here="the `.bytes` of a History, counted on the wire; `holds` takes histories by their H",
            source="S. U. Stich, Local SGD, arXiv:1805.09767; P. Patarasuk & X. Yuan, JPDC 69(2), 2009 (all-reduce)",
            judge=judges.judge_traffic,
        ),
        Card(
            key="w",
            symbol="w",
            name=Words("lost work", "损失的工作"),
            latex=r"w(k) = \frac{C}{k} + \frac{k}{2M}",
            plain="w(k) = C/k + k/(2M), least at k* = √(2CM)",
            condition=r"k^* = \sqrt{2CM}",
            words=Words(
                "Saving every k seconds costs C each time, and a failure, once in M seconds, takes back half an "
                "interval on average. Save too often and you only save; too seldom and you only repeat.",
                "每 k 秒存一次档，每次花 C 秒；平均每 M 秒出一次故障，每次平均丢掉半个间隔的工作。"
                "存得太勤，时间都花在存档上；存得太少，时间都花在重做上。",
            ),
            here="`lk.Cluster(lab, checkpoint_every=k)`, k in rounds; a History's `.events` say what was lost",
            source="J. W. Young, Comm. ACM 17(9), 1974; J. T. Daly, Future Gener. Comput. Syst. 22(3), 2006",
            judge=judges.judge_lost_work,
        ),
    )
)
