"""Exercises on the size of a model, and on a plan for many machines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from labkit.check.answers import Passed, exercise, graded, near, wrong
from labkit.costs.planner import Layout, Machines, layout as layout_of, plan
from labkit.costs.transformer import Transformer
from labkit.errors import CheckFailed, SettingError
from labkit.text import a, amount, duration


@exercise
def transformer_parameters(fn: Callable[[int, int, int, int], int], *, seed: int | None = None) -> Passed:
    """fn(layers, hidden, vocab, seq) → the parameters of a GPT whose head is the embedding: L (12h² + 13h), (V + s) h
    and the last norm's 2h."""

    def right(layers: int, hidden: int, vocab: int, seq: int) -> int:
        return Transformer(layers, hidden, 1, vocab, seq).parameters

    def explain(got: float, expected: float, layers: int, hidden: int, vocab: int, seq: int) -> tuple[str, str, str]:
        if near(got + 2 * hidden, expected):
            hint = "the norm after the last layer has a scale and a shift"
        elif near(got + seq * hidden, expected) or near(got + (seq + 2) * hidden, expected):
            hint = "positions have an embedding too, a vector for each of them"
        elif near(got - vocab * hidden, expected):
            hint = "the head is the embedding once more: count it once"
        elif near(got + 13 * hidden * layers, expected):
            hint = "a layer has biases and two norms besides its matrices: 13 h numbers"
        else:
            hint = "add the layers, the two embeddings and the last norm"
        return f"{got:,.0f}", f"{expected:,.0f}", hint

    cases = [(12, 768, 50257, 1024), (1, 8, 10, 4), (96, 12288, 50257, 2048), (48, 1600, 50257, 1024)]

    def fresh(rng: np.random.Generator) -> tuple[int, int, int, int]:
        return (
            int(rng.integers(1, 99)),
            int(rng.integers(8, 9999)),
            int(rng.integers(99, 10**5)),
            int(rng.integers(9, 9999)),
        )

    return graded("transformer_parameters({}, {}, {}, {})", fn, cases, right, explain, fresh=fresh, seed=seed)


@exercise
def devices_needed(fn: Callable[[float, float, float, float], int], *, seed: int | None = None) -> Passed:
    """fn(parameters, tokens, days, achieved) → the fewest devices that do 6ΨD operations in so many days, if each does
    `achieved` operations a second."""

    def right(parameters: float, tokens: float, days: float, achieved: float) -> int:
        return math.ceil(6 * parameters * tokens / (86_400 * days * achieved))

    def explain(got: float, expected: float, parameters: float, tokens: float, *_: float) -> tuple[str, str, str]:
        if expected - 1 <= got < expected:
            hint = "there is no part of a device: round up"
        elif near(got, expected * 86_400) or got > 10_000 * expected:
            hint = "a day has 86,400 seconds"
        elif 2.5 < expected / max(got, 1e-9) < 6.5:
            hint = "forward and back together take 6 operations for each parameter and token"
        else:
            hint = "divide all operations by those that one device does in that time"
        return f"{got:g}", f"{expected:g}", hint

    cases = [
        (175e9, 300e9, 30, 1.25e14),
        (1.5e9, 10e9, 1, 1.25e14),
        (7e9, 1.4e12, 90, 1.5e14),
        (405e9, 15e12, 54, 4e14),
    ]

    def fresh(rng: np.random.Generator) -> tuple[float, float, float, float]:
        return (
            10 ** rng.uniform(9, 12),
            10 ** rng.uniform(10, 13),
            float(rng.integers(1, 99)),
            10 ** rng.uniform(13, 15),
        )

    return graded("devices_needed({:g}, {:g}, {:g}, {:g})", fn, cases, right, explain, fresh=fresh, seed=seed)


@exercise
def on_one_device(model: Transformer, *, memory: float = 24e9, parameters: float = 1e9, seq: int = 1024) -> Passed:
    """The puzzle: a Transformer of at least so many parameters and `seq` tokens of context that one device of so many
    bytes of `memory` trains, with a batch of one and nothing computed again."""
    if not isinstance(model, Transformer):
        raise CheckFailed(f"Give a lk.costs.Transformer: this is {a(type(model).__name__)}.")
    call = f"a model of {model.layers} layers of width {model.hidden}"
    if model.seq < seq:
        raise wrong(call, f"a context of {model.seq} tokens", f"at least {seq}", "give it seq=… of that")
    if model.vocab < 50257:
        raise wrong(call, f"{model.vocab:,} tokens to choose from", "at least 50,257", "give it GPT-2's vocab=50257")
    if model.parameters < parameters:
        raise wrong(call, f"{model.parameters:,} parameters", f"at least {parameters:,.0f}", "make it wider or deeper")
    needs = model.memory()
    if needs.total > memory:
        hint = "activations grow as layers times width, parameters as layers times the square of the width"
        raise wrong(call, f"{amount(needs.total)}, {amount(needs.activations)} of it activations",
                    f"at most {amount(memory)}", hint)  # fmt: skip
    return Passed("on_one_device", f"{model.parameters:,} parameters in {amount(needs.total)}")


GPT3 = Transformer(96, 12288, 96, vocab=51200, seq=2048)
FLEET = Machines(1024)


@exercise
def layout(chosen: Layout, *, model: Transformer = GPT3, machines: Machines = FLEET, batch: int = 1536,
           within: float = 1.1) -> Passed:  # fmt: skip
    """The puzzle: a lk.costs.layout of a model (GPT-3) on machines (1,024 A100s) that fits into nine tenths of their
    memory, and whose step takes at most `within` times as long as the best that the planner finds."""
    if not isinstance(chosen, Layout):
        raise CheckFailed(f"Give what lk.costs.layout returns: this is {a(type(chosen).__name__)}.")
    call = f"data {chosen.data} × pipeline {chosen.pipeline} × tensor {chosen.tensor}"
    if chosen.data * chosen.pipeline * chosen.tensor != machines.count:
        raise wrong(call, f"{chosen.data * chosen.pipeline * chosen.tensor} devices", f"{machines.count:,}", "use all")
    sequences = chosen.data * chosen.microbatch * chosen.microbatches
    if sequences != batch:
        raise wrong(call, f"a step of {sequences:,} sequences", f"{batch:,}", "lay out a step of that batch")
    try:  # of this model on these machines, whatever it was laid out for
        chosen = layout_of(
            model, machines, batch, data=chosen.data, pipeline=chosen.pipeline, tensor=chosen.tensor,
            microbatch=chosen.microbatch, zero=chosen.zero, recompute=chosen.recompute,
        )  # fmt: skip
    except SettingError as error:
        raise CheckFailed(str(error)) from None
    room = 0.9 * machines.memory
    if chosen.memory.total > room:
        parts = {"parameters": chosen.memory.parameters, "activations": chosen.memory.activations,
                 "the optimiser": chosen.memory.optimizer}  # fmt: skip
        largest = max(parts, key=lambda part: parts[part])
        hint = f"most of it are {largest}" if largest != "the optimiser" else "most of it is what the optimiser keeps"
        raise wrong(call, f"{amount(chosen.memory.total)} a device", f"at most {amount(room)}", hint)
    best = plan(model, machines, batch).best
    if chosen.seconds > within * best.seconds:
        spent = {f"sending along the axis {axis}": took for axis, took in chosen.sending.items()}
        spent["the bubble"] = chosen.computing / (1 - chosen.bubble) - chosen.computing
        spent["computing what was forgotten"] = chosen.computing * (0.25 if chosen.recompute == "full" else 0.0)
        worst = max(spent, key=lambda what: spent[what])
        hint = f"of a step, {duration(spent[worst])} go into {worst}"
        raise wrong(call, f"{duration(chosen.seconds)} a step", f"{duration(within * best.seconds)} or less", hint)
    return Passed("layout", f"{amount(chosen.memory.total)} a device, {duration(chosen.seconds)} a step")
