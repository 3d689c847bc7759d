"""Split widget, 𝒯 = ∪ 𝒯ᵢ: cut work into parts, break the partition, and see what training makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from labkit.cards.judges import Verdict, judge_partition, named
from labkit.checks import one_of
from labkit.errors import PartitionError
from labkit.plots.bars import ownership
from labkit.plots.panel import Picture
from labkit.tasks.split import Partition, split as cut
from labkit.translation.translate import spoken
from labkit.widgets.consequence import ORDERS, Effect, train_on
from labkit.widgets.pictures import columns
from labkit.widgets.view import Computed, View, braces, chain, choice, frames, lines, slider, whole_slider

WAYS = ("block", "cyclic", "weighted", "random")
DAMAGES = ("nothing", "lose an item", "lose a part", "repeat an item")


@dataclass(frozen=True)
class Splitting(Computed):
    """A partition, perhaps broken; whether 𝒯 = ∪ 𝒯ᵢ holds; and what training on it gives."""

    partition: Partition
    verdict: Verdict
    effect: Effect

    @property
    def latex(self) -> str:
        """The union with the actual sets, and the sizes, which tell what is lost or repeated."""
        partition, found = self.partition, self.partition.check()
        n, sizes = len(partition.items), partition.sizes
        union = rf"\bigcup_{{i=0}}^{{{len(partition) - 1}}} \mathcal{{T}}_i"
        sets = chain([braces(mine) for mine in partition.indices], r"\cup", most=4)
        whole = rf"= \mathcal{{T}} \setminus {braces(found.lost)}" if found.lost else r"= \mathcal{T}"
        joined = chain([str(size) for size in sizes], "+")
        equal = "=" if sum(sizes) == n else r"\ne"
        rows = [
            rf"{union} &= {sets} {whole}",
            rf"\textstyle\sum_i |\mathcal{{T}}_i| &= {joined} = {sum(sizes)} {equal} {n} = |\mathcal{{T}}|",
        ]
        holders = sorted({part for item in found.repeated for part in partition.owners(item)})
        if len(holders) > 1:
            a, b = holders[:2]
            rows.append(
                rf"\mathcal{{T}}_{{{a}}} \cap \mathcal{{T}}_{{{b}}} &= {braces(found.repeated)} \ne \varnothing"
            )
        return lines(*rows)

    @property
    def ok(self) -> bool:
        return bool(self.verdict)

    @property
    def sentence(self) -> str:
        effect, hit = self.effect, self.effect.hardest_hit
        reached = f"A classifier trained on what the workers hold reads {effect.accuracy:.1%} of unseen digits"
        if self.verdict:
            return f"Holds: {self.verdict.sentence}. {reached}, exactly as if one worker held all the data."
        before, after = effect.whole_by_class[hit], effect.by_class[hit]
        worst = f", and digit {hit} suffers most: {before:.0%} before, {after:.0%} now" if after < before else ""
        return (
            f"Broken: {self.verdict.sentence}{self._of_digits()}. {reached} ({effect.whole:.1%} with all){worst}. "
            f"The first gradient is off by {effect.bias:.0%}."
        )

    def _of_digits(self) -> str:
        found = self.partition.check()
        broken = {digit for item in (*found.lost, *found.repeated) for digit in self.effect.digits[item]}
        return f" ({named(sorted(broken), 'digit')})" if len(broken) <= 5 else ""


def compute(
    items: int = 20,
    parts: int = 4,
    how: str = "block",
    weight: float = 1.0,
    order: str = "sorted",
    damage: str = "nothing",
    which: int = 0,
    copies: int = 9,
    seed: int = 0,
) -> Splitting:
    """Split `items` packets of digits into `parts`, damage the partition, and train on what the workers then hold.

    `weight` is the share of part 0 beside 1 for each other part (only how="weighted"); `order` deals the digits into
    the packets sorted or shuffled; `damage` is one of `DAMAGES` and strikes item or part `which`; a repeated item is
    held `copies` more times, by the parts after its owner in turn. Raises PartitionError and SettingError for what
    cannot be.

    >>> compute(items=10, parts=2, damage="lose an item", which=3).verdict
    ✗ item 3 is in no part
    """
    weights = [weight, *[1.0] * (parts - 1)] if how == "weighted" else None
    partition = cut(items, parts, how, weights=weights, seed=seed)
    partition = _damaged(partition, damage, which, copies)
    return Splitting(partition, judge_partition(partition, None), train_on(partition.indices, items, order))


def _damaged(partition: Partition, damage: str, which: int, copies: int) -> Partition:
    if one_of(damage, "damage", DAMAGES) == "nothing":
        return partition
    if damage == "lose a part":
        if not 0 <= which < len(partition):
            raise PartitionError(f"there is no part {which} to lose: the parts are 0 to {len(partition) - 1}.")
        kept = tuple(mine[:0] if i == which else mine for i, mine in enumerate(partition.indices))
        return Partition(partition.items, kept, "broken")
    if damage == "lose an item":
        return partition.without(which)
    owner = partition.owner(which)
    for copy in range(1, copies + 1):
        partition = partition.repeating(which, (owner + copy) % len(partition))
    return partition


def split(
    items: int = 20, parts: int = 4, how: str = "block", *, order: str = "sorted", damage: str = "nothing"
) -> View:
    """Sliders over a partition of real handwritten digits: break it, and watch what training loses.

    The items are packets of training examples; a linear classifier is trained on the union of what the workers hold.

    >>> view = split(items=10, parts=2)
    >>> view.controls["damage"].value = "lose an item"
    >>> "item 0 is in no part" in view.sentence.value
    True
    """
    controls = {
        "items": whole_slider(items, 1, 60, "items", "How many packets the digits are cut into"),
        "parts": whole_slider(parts, 1, 12, "parts", "One part for each worker"),
        "how": choice(WAYS, how, "how", "Who gets which items"),
        "weight": slider(2.0, 0.0, 5.0, 0.25, "weight 0", "Share of part 0 where each other part has 1"),
        "order": choice(ORDERS, order, "digits", "Sorted: neighbouring items hold the same digit"),
        "damage": choice(DAMAGES, damage, "break it", "What goes wrong when the items are dealt"),
        "which": whole_slider(0, 0, items - 1, "which", "The item or part that is struck"),
        "copies": whole_slider(9, 1, 30, "copies", "How many times more the item is held"),
        "seed": whole_slider(0, 0, 20, "seed", "Another seed, another shuffle"),
    }

    def adjust() -> None:
        now = {name: control.value for name, control in controls.items()}
        controls["which"].max = max(0, (now["parts"] if now["damage"] == "lose a part" else now["items"]) - 1)
        controls["weight"].disabled = now["how"] != "weighted"
        controls["seed"].disabled = now["how"] != "random"
        controls["which"].disabled = now["damage"] == "nothing"
        controls["copies"].disabled = now["damage"] != "repeat an item"

    return View("split", controls, frames(compute, _owners, _accuracies), pictures=2, adjust=adjust)


def _owners(made: Splitting) -> Picture:
    partition, labels = made.partition, list(map(str, made.partition.items))
    return ownership(partition.indices, len(labels), labels=labels, title="Who holds what", alt=repr(partition))


def _accuracies(made: Splitting) -> Picture:
    return _columns(made.effect.by_class, made.effect.whole_by_class, spoken())


@lru_cache(maxsize=8)
def _columns(by_class: tuple[float, ...], whole: tuple[float, ...], language: str) -> Picture:
    """Every true partition trains alike: their picture is drawn once in each language."""
    return columns(
        by_class,
        whole,
        list(map(str, range(len(by_class)))),
        names=("what the workers hold", "all the data"),
        xlabel="digit",
        ylabel="accuracy",
        title="What a classifier trained on it can read",
        note="measured on unseen digits",
    )
