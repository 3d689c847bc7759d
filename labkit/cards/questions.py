"""Questions on the whole course, with what is to be said of each answer, right or wrong, and where it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.cards.lessons import LESSONS
from labkit.errors import SettingError

__all__ = ["QUESTIONS", "Choice", "Question"]


@dataclass(frozen=True)
class Choice:
    """An answer that may be chosen, and what is to be said of it: `why` it is right, or is not."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question, its answers, of which one is right, and the number of the lesson whose experiment shows it.

    Raises SettingError where it has fewer than two answers, two of one text, not one right one, or no such lesson.
    """

    text: str
    choices: Sequence[Choice]
    lesson: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len({it.text for it in self.choices}) < len(self.choices):
            raise SettingError(f"{self.text!r}: give at least two answers, each of another text.")
        if sum(it.right for it in self.choices) != 1:
            raise SettingError(f"{self.text!r}: exactly one of the answers has to be right=True.")
        if self.lesson not in LESSONS:
            raise SettingError(f"{self.text!r}: there is no lesson {self.lesson!r}; give its number, 0 to 21.")

    @property
    def right(self) -> Choice:
        """The right answer."""
        return next(it for it in self.choices if it.right)


QUESTIONS = (
    Question(
        "Four workers average their gradients at every step. Is that distributed computing, or co-learning?",
        (
            Choice(
                "Distributed computing: there is one model, and its work is split",
                "All four hold copies of one model, and take the step that one machine would have taken on all the "
                "data: one job, cut into parts.",
                right=True,
            ),
            Choice(
                "Co-learning: four workers learn together",
                "They do learn together, but only one model comes out. In co-learning (协同学习) there are many "
                "models, and they may stay different.",
            ),
            Choice(
                "Both: the two words mean the same",
                "They do not. One splits a job; the other lets several models learn from each other. Data-parallel "
                "training is the first without the second, and two models on one laptop that teach each other are the "
                "second with hardly any of the first.",
            ),
        ),
        7,
    ),
    Question(
        "Which of these is co-learning although nothing is averaged, neither weights nor gradients?",
        (
            Choice(
                "Local SGD with an average every 32 steps",
                "It averages weights, only seldom. At the end there is one model.",
            ),
            Choice(
                "Three networks of different shape that learn from each other's predictions",
                "Mutual learning: weights of different shapes have no average at all. What travels is what each model "
                "says about the same inputs.",
                right=True,
            ),
            Choice(
                "An ensemble whose members never exchange a word",
                "Nobody learns from anybody here; they only vote in the end. It is what co-learning has to beat.",
            ),
            Choice(
                "A pipeline of four stages",
                "Its stages are parts of one model. What travels are activations and gradients: one job, split.",
            ),
        ),
        13,
    ),
    Question(
        "Co-learning is said to give better models. When does it not?",
        (
            Choice(
                "Never: more models know more",
                "Measure it: with one peer that lies, a mean follows the liar, and everybody reads digits worse than "
                "alone.",
            ),
            Choice(
                "When somebody lies and the others believe the mean",
                "One peer in eight is enough to ruin a mean. A median or a trimmed mean bears it, and learning "
                "together pays again.",
                right=True,
            ),
            Choice(
                "When the peers' data are very different",
                "That is where it helps most: who has seen two kinds of digits alone cannot read the other eight. The "
                "average becomes harder, not useless.",
            ),
            Choice(
                "When the models have different shapes",
                "Then weights cannot be averaged, but predictions can be compared, and that is enough to learn from.",
            ),
        ),
        17,
    ),
    Question(
        "Co-learning is said to take less time. What is true of that on a slow link?",
        (
            Choice(
                "It is always faster, because the work is shared",
                "Sharing costs messages. On 20 Mbit/s an exchange after every step takes many times as long as the "
                "step itself.",
            ),
            Choice(
                "It is never faster there",
                "It is, as soon as peers meet seldom: every 32 steps instead of every step costs next to no accuracy.",
            ),
            Choice(
                "It depends on how often, and how much, the peers tell each other",
                "Steps between two meetings and bytes of each meeting decide. The frontier of lesson 20 has them all.",
                right=True,
            ),
        ),
        9,
    ),
    Question(
        "“It uses the hardware better”: two workers finish a job in 0.6 of one worker's time. Then …",
        (
            Choice(
                "each of them did more useful work in a second than the one",
                "The other way round: two workers for 0.6 of the time are 1.2 workers' times for a job that took 1.",
            ),
            Choice(
                "both were idle, or busy with talking, for a sixth of their time",
                "The speed-up is 1/0.6 = 1.67, the efficiency 0.83. One sixth of what you pay for is gone: "
                "distributing saves time, and costs work.",
                right=True,
            ),
            Choice(
                "the job cost less than before",
                "It ended sooner and cost more: 1.2 times the worker-seconds.",
            ),
        ),
        5,
    ),
    Question(
        "𝒯 = 𝒯₁ ∪ … ∪ 𝒯ₙ holds for your parts, and yet training is wrong. What may be the reason?",
        (
            Choice(
                "An item is in no part",
                "Then the union would lack it, and the formula would not hold.",
            ),
            Choice(
                "An item is in two parts",
                "A union does not count twice, but a gradient does. So the card of this course demands a second "
                "thing: no two parts share an item.",
                right=True,
            ),
            Choice(
                "The parts are not equally large",
                "That costs time, or needs a weighted mean. It loses no item and counts none twice.",
            ),
        ),
        2,
    ),
    Question(
        "𝒯_sync = 𝒯₁ ∩ … ∩ 𝒯ₙ: one of eight workers is slow, and all wait at a barrier. What grows?",
        (
            Choice(
                "The intersection grows as fast as the average worker",
                "An intersection has only what *everybody* has: it grows as fast as the slowest.",
            ),
            Choice(
                "The intersection grows as fast as the slowest worker",
                "And so does everything that waits for it. Bounded staleness lets the fast run a few steps ahead; it "
                "does not make the slow one faster.",
                right=True,
            ),
            Choice(
                "Nothing, until the slow one is removed",
                "It grows, slowly. A worker that has *stopped* is another matter: that is a failure, and lesson 18.",
            ),
        ),
        4,
    ),
    Question(
        "How do the two belong together? Distributed computing gives co-learning …",
        (
            Choice(
                "its speed, without which it would not work",
                "It works in one process, too, only later: the simulator of this course gives the same models to the "
                "last digits that matter.",
            ),
            Choice(
                "places to run, messages and barriers; what is said in the messages is co-learning's own",
                "One round has one form: compute, exchange a message, wait. Splitting decides where it runs, the "
                "strategy decides what is sent. Compare the two rounds above.",
                right=True,
            ),
            Choice(
                "nothing: they are two different fields",
                "Look at the code: a round of all-reduce and one of mutual learning differ in what they send, and in "
                "nothing else.",
            ),
        ),
        13,
    ),
    Question(
        "A quantum computer of a thousand qubits arrives. What does it do to the training of a large model today?",
        (
            Choice(
                "It trains it a thousand times as fast",
                "No algorithm is known that does this. Training moves many large matrices through memory, and a "
                "quantum computer is slow at reading and writing ordinary numbers.",
            ),
            Choice(
                "Nobody can measure it here, or anywhere yet",
                "This course shows only what it has measured or can derive. What stays true of any new hardware: "
                "Amdahl's law, and the link between the machines.",
                right=True,
            ),
            Choice(
                "It makes distributing superfluous",
                "Data lie where people are, machines fail, and a law of Amdahl's limits any fast part beside a slow "
                "one. Faster machines have never yet made models smaller.",
            ),
        ),
        5,
    ),
)
