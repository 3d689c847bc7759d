"""One peer on trial: two steps and an evaluation of an ordinary model, in stages, so that it is known what failed."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labkit.algorithms import Algorithm
from labkit.algorithms.base import Batch
from labkit.algorithms.predictions import outputs_of
from labkit.algorithms.wrapper import Wrapper
from labkit.data.inputs import Inputs
from labkit.data.thread_generator import ThreadGenerator
from labkit.engines.experiment import Experiment
from labkit.engines.peer import OnePeer, Place
from labkit.errors import LabkitError, ModelError
from labkit.text import a, in_words

IGNORED = -100  # no class, but what torch's losses leave out


@dataclass(frozen=True)
class Step:
    """What came of one peer's first batch: loss, gradients, buffers, and what happened on the way."""

    loss: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    each: Tensor | None  # the loss of each example, where the algorithm asks for it
    changed: tuple[str, ...]  # buffers
    counted: tuple[str, ...]  # numbers that forward keeps in attributes of its module
    drew: bool  # random numbers of torch's
    drew_elsewhere: bool  # of Python's or NumPy's
    changes_inputs: bool
    changes_targets: bool


class Single:
    """Peer `k` of an experiment on trial. Raises ModelError where it cannot be trained.

    With `quiet` a function may put layers into other modes before anything runs.
    """

    def __init__(self, experiment: Experiment, k: int, quiet: Callable[[nn.Module], object] = lambda net: None) -> None:
        self._experiment, self._k = experiment, k
        self._model, self._data = type(experiment.model_of(k)).__name__, experiment.dataset.name
        with self._told(
            "{model} cannot be copied ({said}), and every peer has a copy: leave out what is no part of a model, such "
            "as locks, files and generators."
        ):
            experiment.fresh_model(k)
        place = Place.of(experiment, torch.device("cpu"), archived=False)
        with self._told("The optimizer function fails on the parameters of {model} ({said}): let it take them all."):
            self.peer = OnePeer(experiment, k, place)
        quiet(self.peer.net)

    @contextmanager
    def _told(self, sentence: str) -> Iterator[None]:
        """Whatever is raised within is told in this sentence."""
        try:
            yield
        except LabkitError:
            raise
        except Exception as error:
            said = in_words(error).removeprefix(f"{type(error).__name__}: ")
            raise ModelError(sentence.format(model=self._model, data=self._data, said=said)) from error

    # -- steps

    def first(self, batch: Batch) -> Step:
        """The loss, the gradients and the buffers of one batch; no step is taken."""
        peer, (inputs, targets) = self.peer, (batch[0].clone(), batch[1].clone())
        before = {name: buffer.clone() for name, buffer in peer.net.named_buffers()}
        counts, drawn = _counts(peer.net), random_states()
        loss = self._loss(inputs, targets)
        drew, *elsewhere = (now != then for now, then in zip(random_states(), drawn, strict=True))
        with self._told(
            "The gradient of the loss of {model} cannot be computed ({said}): let forward and loss change no tensor in "
            "place that it needs."
        ):
            gradients = peer.gradients(loss)
        self._try_algorithm(batch)
        buffers = {name: buffer.detach().clone() for name, buffer in peer.net.named_buffers()}
        changed = tuple(name for name, old in before.items() if not same(old, buffers[name]))
        counted = tuple(name for name, value in _counts(peer.net).items() if counts.get(name, value) != value)
        asked = asks_for_each_loss(self._experiment.algorithm_of(self._k))
        return Step(
            loss.detach(),
            gradients,
            buffers,
            self._each_loss(batch) if asked else None,
            changed,
            counted,
            drew,
            any(elsewhere),
            not same(inputs, batch[0]) or bool(inputs._version),
            not same(targets, batch[1]) or bool(targets._version),
        )

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One number with a gradient; raises ModelError for all else."""
        with self.peer.casting():
            with self._told(f"{{model}} and the loss do not fit {{data}} ({{said}}): {self._takes(inputs)}."):
                out = self.peer.net(inputs)
            outputs = outputs_of(out)
            try:
                loss = self._experiment.loss(out, targets)
            except Exception:
                remedy = self._other_numbers(out, outputs, targets) or _compares(outputs, targets)
                with self._told(f"{{model}} and the loss do not fit {{data}} ({{said}}): {remedy}."):
                    raise
            self._require_paired(outputs, targets, loss, out is outputs)
        if not isinstance(loss, Tensor):
            what = a(type(loss).__name__)
        elif loss.dim() or not loss.is_floating_point():
            what = f"{list(loss.shape)}" if loss.dim() else f"a number of type {_word(loss.dtype)}"
        elif not loss.requires_grad:
            what = "a number without a gradient"
        else:
            return loss
        raise ModelError(
            f"loss gives {what}: let it return one number of the whole batch that the model's outputs lead to, as "
            'losses of torch do with reduction="mean".'
        )

    def _try_algorithm(self, batch: Batch) -> None:
        """Let an algorithm that has models of its own say whether they fit."""
        try_on = getattr(self._experiment.algorithm_of(self._k), "try_on", None)
        if try_on is not None:
            with self.peer.evaluating():
                try_on(batch[0].clone(), self.peer.logits(batch[0].clone()))

    def _require_paired(self, outputs: Tensor, targets: Tensor, loss: Any, plain: bool) -> None:
        """Raise ModelError where outputs [B, 1] beside targets [B] are compared as [B, B], each with all."""
        alike = outputs.shape == (*targets.shape, 1) and targets.is_floating_point() and len(targets) > 1
        if not (plain and alike and isinstance(loss, Tensor) and not loss.dim()):
            return
        try:
            paired = self._experiment.loss(outputs.squeeze(-1), targets)
        except Exception:  # noqa: BLE001  a loss that wants them as they are
            return
        if not torch.allclose(loss, paired, rtol=1e-4, equal_nan=True):
            raise ModelError(
                f"Outputs of shape {list(outputs.shape)} and targets of shape {list(targets.shape)} are compared each "
                "with all others: give targets of the outputs' shape, such as y[:, None]."
            )

    def _other_numbers(self, out: Any, outputs: Tensor, targets: Tensor) -> str:
        """What helps where the loss takes the same targets as numbers of another kind; nothing where it does not."""
        real = targets.is_floating_point()
        if real and not torch.equal(targets, targets.round()):
            return ""
        other = targets.long() if real else targets.to(outputs.dtype)
        if targets.dim() > 1 and targets.shape[-1] == 1 and self._compares_with(out, targets.squeeze(-1)):
            return "this loss takes one number for each example and not a column of them, such as y[:, 0]"
        for shape in (targets.shape, *([outputs.shape] if outputs.numel() == targets.numel() else [])):
            if self._compares_with(out, other.reshape(shape)):
                kind = "class numbers as integers, y.long()" if real else "real numbers, y.float()"
                shaped = "" if shape == targets.shape else ", of the outputs' shape, such as y[:, None]"
                return f"this loss compares with {kind}{shaped}: give such targets"
        return ""

    def _compares_with(self, out: Any, targets: Tensor) -> bool:
        try:
            return isinstance(self._experiment.loss(out, targets), Tensor)
        except Exception:  # noqa: BLE001  whatever a loss says to what it does not take
            return False

    def takes(self, inputs: Tensor) -> None:
        """Inputs that lie farthest out, such as the largest token number of all."""
        with (
            self._told(f"{{model}} does not fit {{data}} ({{said}}): {self._takes(inputs)}."),
            self.peer.evaluating(),
        ):
            self.peer.logits(inputs.clone())

    def _takes(self, inputs: Tensor) -> str:
        """What the model has to take."""
        if too_few := self._vocabulary(inputs):
            return too_few
        if len(inputs) == 1 and any(isinstance(it, _BatchNorm) for it in self.peer.net.modules()):
            return "BatchNorm needs batches of two examples or more, or use GroupNorm or LayerNorm in its place"
        remedy = f"let the model take inputs of shape {tuple(inputs.shape[1:])} and type {_word(inputs.dtype)}"
        own = {p.dtype for p in self.peer.params.values()}
        if inputs.is_floating_point() and inputs.dtype not in own:
            remedy += f", as model.to({inputs.dtype}) does" if len(own) == 1 else ""
        return remedy

    def _vocabulary(self, inputs: Any) -> str:
        """What helps where token numbers lie outside of an embedding's rows; nothing where they do not."""
        tokens = [it for it in (inputs.tensors if isinstance(inputs, Inputs) else [inputs]) if it.dtype == torch.int64]
        rows = [it.num_embeddings for it in self.peer.net.modules() if isinstance(it, nn.Embedding)]
        if not tokens or not rows:
            return ""
        least, most = min(int(it.min()) for it in tokens), max(int(it.max()) for it in tokens)
        if least < 0:
            return f"its Embedding counts tokens from 0, and the data have {least}: number them so"
        if most < max(rows):
            return ""
        return (
            f"the data have token numbers up to {most}, and its Embedding {max(rows)} rows: give it {most + 1} or more"
        )

    def second(self, batch: Batch) -> None:
        """A whole step, as an algorithm takes it."""
        peer, copies = self.peer, (batch[0].clone(), batch[1].clone())
        name = type(peer.optimizer_step.optimizer).__name__
        with self._told(
            "{model} fails in its second step ({said}): let forward and loss keep nothing from step to step but what "
            "is detached, and change no tensor in place that a gradient needs."
        ):
            loss = peer.loss(copies)
            loss.backward()  # type: ignore[no-untyped-call]  # what it raises is no matter of the optimiser
        with self._told(
            f"{name} cannot step {{model}} ({{said}}): take an optimiser that steps from gradients alone, such as SGD "
            "or Adam."
        ):
            peer.update()

    def _each_loss(self, batch: Batch) -> Tensor:
        """The loss of each example, for algorithms that ask for it."""
        with self._told(
            f"{type(self._experiment.algorithm_of(self._k)).__name__} asks for the loss of each example, which the "
            "loss of {model} cannot give ({said}): give one that is good for a batch of one, and uses functions of "
            "torch alone."
        ):
            copies = batch[0].clone(), batch[1].clone()
            logits = self.peer.logits(copies[0])
            self.peer.counted(copies, logits)
            return self.peer.losses(copies, logits).detach()

    def rest(self, batch: Batch) -> None:
        """A batch as small as the last one of an epoch."""
        inputs, targets = batch
        size = f"{len(inputs)} example" + "s" * (len(inputs) > 1)
        with (
            self._told(
                f"{{model}} does not take the last batch of an epoch, of {size} ({{said}}): choose a batch_size that "
                "leaves more, or use GroupNorm or LayerNorm in the place of BatchNorm."
            ),
            torch.no_grad(),
        ):
            self._experiment.loss(self.peer.net(inputs.clone()), targets.clone())

    def evaluated(self, inputs: Tensor) -> tuple[Tensor, bool]:
        """The outputs in evaluation mode, and whether that changed the inputs."""
        copies = inputs.clone()
        told = self._told("{model} fails in evaluation mode ({said}): let forward work there too.")
        with told, self.peer.evaluating():
            out = self.peer.logits(copies)
        return out, not same(copies, inputs) or bool(copies._version)

    def keeps_more(self, inputs: Tensor, outputs: Tensor) -> bool:
        """Whether parameters and buffers, put into a fresh model, do not do what the trained one does."""
        if all(is_torchs(module) for module in self.peer.net.modules()):
            return False
        fresh = self._experiment.fresh_model(self._k)
        with self._told("{model} changes the shapes of its parameters or buffers ({said}): let it keep them."):
            fresh.load_state_dict(self.peer.net.state_dict())
        with torch.no_grad():
            again = outputs_of(fresh.eval()(inputs.clone()))
            if same(outputs, again):
                return False
            with ThreadGenerator(0):  # it may draw, in evaluation mode too: let both draw the same
                again = outputs_of(fresh(inputs.clone()))
        with ThreadGenerator(0):
            return not same(self.evaluated(inputs)[0], again)


def same(one: Any, other: Any) -> bool:
    """Whether two tensors, or several, hold the same, NaN included."""
    if isinstance(one, Inputs):
        return all(map(same, one.tensors, other.tensors))
    return torch.equal(one, other) or (
        one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    )


def asks_for_each_loss(algorithm: Algorithm) -> bool:
    """Whether an algorithm's code speaks of `peer.losses`."""
    if isinstance(algorithm, Wrapper) and asks_for_each_loss(algorithm.algorithm):
        return True
    methods = (value for cls in type(algorithm).__mro__ for value in vars(cls).values() if inspect.isfunction(value))
    return any("losses" in method.__code__.co_names for method in methods)


def _compares(outputs: Tensor, targets: Tensor) -> str:
    """What the loss has to take."""
    shape = f"the model's outputs, of shape {tuple(outputs.shape)},"
    if targets.is_floating_point():
        return f"let the loss take {shape} beside {_word(targets.dtype)} targets of shape {tuple(targets.shape)}"
    classes = targets[targets != IGNORED]
    if classes.numel() and int(classes.min()) < 0:
        return f"map the class numbers, which begin with {int(classes.min())}, to 0…C−1"
    largest = int(classes.max()) if classes.numel() else 0
    if outputs.dim() == 2 and largest >= outputs.shape[1] > 1:
        return (
            f"the class numbers go from {int(classes.min())} to {largest}, and the model has {outputs.shape[1]} "
            "outputs: map them to 0…C−1, and let it have one for each class"
        )
    return f"let the loss take {shape} beside class numbers up to {largest}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.", "")


def _counts(net: nn.Module) -> dict[str, Any]:
    """The numbers that modules of the user's own keep in attributes."""
    return {
        f"{where}.{name}".strip("."): value
        for where, module in net.named_modules()
        if not is_torchs(module)
        for name, value in vars(module).items()
        if isinstance(value, int | float | str) and name != "training"
    }


def random_states() -> Sequence[Any]:
    """How torch's, Python's and NumPy's generators stand."""
    numpys: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (numpys[1].tobytes(), *numpys[2:])


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers, which keep nothing but parameters and buffers."""
    return type(module).__module__.startswith("torch.")
