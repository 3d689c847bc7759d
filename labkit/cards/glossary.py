"""The key terms of the course, English and Chinese: what each means here, and the lesson that shows it.

>>> import labkit as lk
>>> lk.glossary["all-reduce"].zh, lk.glossary["全归约"].en
('全归约', 'all-reduce')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from labkit.cards.cards import formulas
from labkit.cards.lessons import LESSONS
from labkit.translation.translate import tr

__all__ = ["Glossary", "Term", "glossary"]


@dataclass(frozen=True)
class Term:
    """A term of the course: English, Chinese, what it means here, the number of a lesson that shows it."""

    en: str
    zh: str
    said: str
    lesson: int

    def __repr__(self) -> str:
        return f"{self.en} · {self.zh}: {self.said} (lesson {self.lesson:02d})"


class Glossary(Mapping[str, Term]):
    """The terms by their English names; `glossary["梯度"]` finds one by its Chinese name, too. KeyError for others."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self._terms = {term.en: term for term in sorted(terms, key=lambda it: it.en.lower())}
        self._chinese = {term.zh: term for term in terms}

    def __getitem__(self, key: str) -> Term:
        term = self._terms.get(key) or self._chinese.get(key)
        if term is None:
            raise KeyError(f"{key!r} is not in the glossary: list(lk.glossary) has what is")
        return term

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._terms)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.values()))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        rows = [f"| {it.en} | {it.zh} | {it.said} | [{it.lesson:02d}]({LESSONS[it.lesson]}) |" for it in self.values()]
        head = f"| {' | '.join(map(tr, ('term', '中文', 'what it is here', 'lesson')))} |\n| :-- | :-- | :-- | :-- |"
        return {"text/markdown": "\n".join([head, *rows, ""]), "text/plain": repr(self)}


_OF_CARDS = {  # key of a formula card, whose Chinese name it has: English, what it is, lesson
    "T": ("splitting", "cutting work into parts that together hold every item once", 2),
    "S": ("scheduling", "who does which task when", 3),
    "T_sync": ("synchronisation", "what all have finished, and who may run ahead of it", 4),
    "M": ("cooperation of models", "many models, each with its own parameters, that learn at the same time", 13),
    "P": ("strategy", "what a participant tells the others, and how it uses what it hears", 14),
    "O": ("cooperative optimisation", "each participant's own optimiser, and the one that joins their changes", 15),
    "tau": ("staleness", "how many changes a worker has missed when it sends its own", 8),
    "b": ("traffic", "the bytes that a peer sends", 9),
    "w": ("lost work", "what has to be done again after a failure", 18),
}
_MORE = """
activations | 激活值 | what the layers computed on the way forward, and need again on the way back | 1
adjoint | 伴随 | the message that takes gradients back along the way another message came | 10
all-gather | 全收集 | each gives its share, and everybody gets all of them | 6
all-reduce | 全归约 | each gives its numbers, and everybody gets the sum of all | 6
Amdahl's law | 阿姆达尔定律 | a fixed job: what cannot be shared limits the speed-up | 5
bandwidth | 带宽 | bytes that a link carries in a second | 6
bubble | 气泡 | the share of a pipeline's time in which stages wait | 11
Byzantine peer | 拜占庭节点 | a peer that may send anything, a lie too | 17
certificate | 证书 | what a program shows to prove, with its key, that it belongs to a cluster | 19
checkpoint | 检查点 | what has to be kept so that a run can go on from there | 18
co-learning | 协同学习 | models that learn at the same time and help each other | 13
co-teaching | 协同教学 | two peers that pick the examples for each other | 14
codistillation | 协同蒸馏 | peers that are each other's teachers | 14
computation | 计算量 | the floating-point operations of a training | 1
control variate | 控制变量 | a memory that corrects the direction of a client's own data | 15
data-parallel training | 数据并行 | whole copies of a model, each with its part of the data | 1
degree | 度 | how many neighbours a peer has | 16
differential privacy | 差分隐私 | clipped and noisy messages that bound what the result tells of anybody | 17
distillation | 蒸馏 | a student learns what a teacher says about inputs | 14
distributed computing | 分布式计算 | one job, cut into parts that several machines do at the same time | 21
divergence | 散度 | how far one prediction is from another | 13
efficiency | 效率 | the speed-up for each worker | 5
encryption | 加密 | what travels is noise to whoever lacks the key | 19
ensemble | 集成 | models that learn alone and answer together | 13
error feedback | 误差反馈 | what a message leaves out is kept, and sent later | 9
federated learning | 联邦学习 | data stay at home, and models travel | 15
proximal term | 近端项 | what pulls FedProx's local steps back to where the round began | 15
gossip | 流言传播 | in each round everybody averages with its neighbours | 16
gradient | 梯度 | for each parameter, how the loss changes with it | 1
gradient leakage | 梯度泄露 | the example that can be read from its gradient | 17
Gustafson's law | 古斯塔夫森定律 | a fixed time: with more workers the job grows | 5
independent | 独立 | each model learns alone | 13
key | 密钥 | the secret behind a certificate: whoever has a copy is let in | 19
latency | 延迟 | what a message costs however short it is | 6
memorisation effect | 记忆效应 | networks learn right labels first, and wrong ones by heart later | 14
memory | 显存 | the bytes that must lie on a device | 1
mesh | 网格 | ranks in rows and columns, one way of splitting along each | 12
microbatch | 微批次 | a part of a batch that goes through a pipeline by itself | 11
mixture of experts | 混合专家 | layers of which each token uses one part only | 12
mutual learning | 互学习 | each learns from the labels and from what the others say | 13
no centre | 去中心化 | nobody through whom all messages go | 16
objective inconsistency | 目标不一致 | an average that ends at the minimum of another sum | 15
open | 未完成 | forward is done and backward is not: the activations are held | 11
optimiser | 优化器 | makes a step of a gradient, and remembers earlier ones | 1
parameters | 参数 | the numbers that a model is made of | 1
number of parameters | 参数量 | how many of them there are | 1
Pareto frontier | 帕累托前沿 | what nobody beats in both cost and quality | 20
pipeline | 流水线 | layers on different workers, through which microbatches follow each other | 11
rank | 进程号 | a worker's number within a process group | 6
reduce-scatter | 归约散射 | the sum of all, of which each gets its share | 6
ring | 环 | each sends to the next one only | 6
scheduler | 调度器 | the program that hands tasks to workers | 19
secure aggregation | 安全聚合 | masks that cancel in the sum, and hide everything else | 17
sequence parallelism | 序列并行 | each peer holds a part of the text | 12
share | 分片 | the part of parameters, gradients and states that one worker keeps | 10
spectral gap | 谱间隙 | one less the second eigenvalue of the mixture: how fast neighbours come to agree | 16
speed-up | 加速比 | the time of one worker over the time of n | 5
stage | 阶段 | the layers of a pipeline that one worker holds | 11
strong scaling | 强扩展 | more workers for the same job | 5
tensor parallelism | 张量并行 | each worker holds a slice of every matrix | 12
time | 时间 | what most people think is the only reason to distribute | 1
token | 词元 | a piece of text, of which models read billions | 1
topology | 拓扑 | who talks to whom | 16
tunnel | 隧道 | one encrypted line below all others, between two machines | 19
weak scaling | 弱扩展 | a larger job for more workers | 5
worker | 工作节点 | a process that computes what it is sent | 19
ZeRO | 零冗余优化器 | data-parallel training in which nothing is kept twice | 10
"""


def _term(line: str) -> Term:
    en, zh, said, lesson = line.split(" | ")
    return Term(en, zh, said, int(lesson))


glossary = Glossary(
    (
        *(Term(en, formulas[key].name.zh, said, lesson) for key, (en, said, lesson) in _OF_CARDS.items()),
        *map(_term, _MORE.strip().splitlines()),
    )
)
