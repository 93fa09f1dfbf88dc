import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pbp_search.errors import InputError, TaskError, UnsupportedModuleError
from pbp_search.training import ClassificationTask, Data, Direction, Split, Task, check_task, run_chain
from tests.training.tiny_tasks import Bowl, NegatedBowl, Rings, config


def broken(**changes: Any) -> Task:
    """A bowl with some attributes changed; None takes one away."""

    class Broken:
        name, metric, widths = "broken", "error", (1, 4)
        direction: Direction = "minimize"
        data, model, loss, score = Bowl.data, Bowl.model, Bowl.loss, Bowl.score

    for attribute, value in changes.items():
        if value is None:
            delattr(Broken, attribute)
        else:
            setattr(Broken, attribute, value)
    return Broken()


def with_data(change: Callable[[Data], object]) -> Task:
    return broken(data=lambda self: change(Bowl().data()))


def with_part(part: str, change: Callable[[Split], Any]) -> Task:
    return with_data(lambda data: dataclasses.replace(data, **{part: change(getattr(data, part))}))


def poisoned(values: Tensor, bad: float) -> Tensor:
    values = values.clone()
    values[3:5] = bad
    return values


def raising(error: BaseException) -> Callable[..., Any]:
    def method(*args: object) -> Any:
        raise error

    return method


class Wired(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.wire = forward

    def forward(self, x: Tensor) -> Any:
        return self.wire(self.linear(x))


def with_output(forward: Callable[[Tensor], Any]) -> Task:
    return broken(model=lambda self, width: Wired(forward))


class OnlyOnce:
    """A model that can be built once. Takes no ``self``: it is no function."""

    def __init__(self) -> None:
        self.left = 1

    def __call__(self, width: int) -> nn.Module:
        self.left -= 1
        if self.left < 0:
            raise LookupError("built already")
        return Bowl().model(width)


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(x)))


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Shifting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        return x


SHARED = Bowl().model(2)
NAN, INFINITE = float("nan"), float("inf")

CASES: dict[str, tuple[Callable[[], Task], str]] = {
    "no data": (lambda: broken(data=None), r"has no data: see docs/writing-a-task\.md"),
    "no model and no loss": (lambda: broken(model=None, loss=None), r"has no model, loss"),
    "score is no method": (lambda: broken(score=0.5), r"has no score"),
    "no name and no widths": (lambda: broken(name=None, widths=None), r"has no name, widths"),
    "no direction": (lambda: broken(direction=None), r"has no direction"),
    "wrong direction": (lambda: broken(direction="up"), r"direction 'up': it must be 'maximize' or 'minimize'"),
    "widths are one number": (lambda: broken(widths=4), r"widths 4: they must be two whole numbers"),
    "three widths": (lambda: broken(widths=(1, 2, 3)), r"widths \(1, 2, 3\): they must be two"),
    "widths upside down": (lambda: broken(widths=(8, 2)), r"widths \(8, 2\): .*smallest <= largest"),
    "width of zero": (lambda: broken(widths=(0, 2)), r"widths \(0, 2\): .*1 <= smallest"),
    "fractional width": (lambda: broken(widths=(1.0, 2.5)), r"widths \(1\.0, 2\.5\): .*whole numbers"),
    "a name that raises": (
        lambda: broken(name=property(raising(RuntimeError("nameless")))),
        r"name failed: RuntimeError: nameless",
    ),
    "data raise something that cannot be said": (
        lambda: broken(data=raising(UnsayableError())),
        r"data\(\) failed: UnsayableError$",
    ),
    "data raise what is not an Exception": (lambda: broken(data=raising(GeneratorExit())), r"data\(\) failed: Gen"),
    "sparse inputs": (
        lambda: with_part("train", lambda part: Split(part.inputs.to_sparse(), part.targets)),
        r"the train inputs are sparse: make them dense\.$",
    ),
    "inputs with a gradient": (
        lambda: with_part("test", lambda part: Split(part.inputs.clone().requires_grad_(), part.targets)),
        r"the test inputs require a gradient: detach them\.$",
    ),
    "test targets of another shape": (
        lambda: with_part("test", lambda part: Split(part.inputs, part.targets.flatten())),
        r"the test targets have the shape \(\d+,\) and type torch\.float32, the training targets",
    ),
    "a Linear without neurons": (
        lambda: broken(model=lambda self, width: nn.Sequential(nn.Linear(2, 0), nn.Linear(0, 1))),
        r"0  Linear  no: it has no inputs or no outputs",
    ),
    "data raise": (lambda: broken(data=raising(OSError("no file"))), r"data\(\) failed: OSError: no file"),
    "data end the program": (
        lambda: broken(data=raising(SystemExit("no licence"))),
        r"data\(\) failed: SystemExit: no licence$",
    ),
    "data are something else": (lambda: with_data(lambda data: (1, 2)), r"data\(\) returned tuple: it must return"),
    "a part is no split": (
        lambda: with_part("test", lambda part: None),
        r"the test data are NoneType: they must be a .*Split .*DataLoader",
    ),
    "inputs are no tensor": (
        lambda: with_part("train", lambda part: Split(part.inputs.numpy(), part.targets)),  # type: ignore[arg-type]
        r"the train data must be a .*Split of two tensors",
    ),
    "no rows": (
        lambda: with_part("validation", lambda part: Split(part.inputs[:0], part.targets[:0])),
        r"the validation data have 0 rows: at least 1",
    ),
    "one row to train on": (
        lambda: with_part("train", lambda part: Split(part.inputs[:1], part.targets[:1])),
        r"the train data have 1 rows: at least 2",
    ),
    "no axis of rows": (
        lambda: with_part("test", lambda part: Split(torch.tensor(1.0), torch.tensor(1.0))),
        r"the test data have 0 rows",
    ),
    "rows differ": (
        lambda: with_part("validation", lambda part: Split(part.inputs, part.targets[:-1])),
        r"the validation data have 200 inputs but 199 targets",
    ),
    "NaN in inputs": (
        lambda: with_part("test", lambda part: Split(poisoned(part.inputs, NAN), part.targets)),
        r"the test inputs hold 4 values that are NaN or infinite: clean them first",
    ),
    "infinite targets": (
        lambda: with_part("train", lambda part: Split(part.inputs, poisoned(part.targets, INFINITE))),
        r"the train targets hold 2 values that are infinite",
    ),
    "columns of validation inputs differ": (
        lambda: with_part("validation", lambda part: Split(part.inputs[:, :1], part.targets)),
        r"validation",
    ),
    "types of test inputs differ": (
        lambda: with_part("test", lambda part: Split(part.inputs.double(), part.targets)),
        r"test",
    ),
    "model raises": (lambda: broken(model=raising(ValueError("odd"))), r"model\(1\) failed: ValueError: odd"),
    "only wide models raise": (
        lambda: broken(model=lambda self, width: Bowl().model(3 // (4 - width))),
        r"model\(4\) failed: ZeroDivisionError",
    ),
    "only the width in the middle raises": (
        lambda: broken(model=lambda self, width: Bowl().model(width + 0 // (width - 2))),
        r"model\(2\) failed: ZeroDivisionError",
    ),
    "only the second model raises": (lambda: broken(model=OnlyOnce()), r"model\(1\) failed the second time: Lookup"),
    "the same model twice": (
        lambda: broken(model=lambda self, width: SHARED),
        r"model\(1\) returned the same network twice: it must build a new one\.$",
    ),
    "all parameters are frozen": (
        lambda: broken(model=lambda self, width: Bowl().model(width).requires_grad_(False)),
        r"model\(1\) has no parameter to train: all are frozen, or there are none\.$",
    ),
    "no parameters": (
        lambda: broken(model=lambda self, width: nn.Sequential(nn.Tanh())),
        r"model\(1\) has no parameter to train",
    ),
    "inputs are changed in place": (
        lambda: broken(model=lambda self, width: nn.Sequential(Shifting(), Bowl().model(width))),
        r"the forward pass changes its inputs in place: work on a copy",
    ),
    "a hidden buffer is trained": (
        lambda: broken(model=lambda self, width: nn.Sequential(Counting(), Bowl().model(width))),
        r"training changes the buffer '0\.seen', which is not part of the network's state: .* persistent=True",
    ),
    "model is no module": (lambda: broken(model=lambda self, width: torch.relu), r"model\(1\) returned .*nn\.Module"),
    "forward raises": (
        lambda: broken(model=lambda self, width: nn.Sequential(nn.Linear(3, 1))),
        r"the forward pass of model\(1\) failed: RuntimeError",
    ),
    "forward returns a pair": (lambda: with_output(lambda y: (y, y)), r"must return one tensor with a row for each"),
    "forward returns one number": (lambda: with_output(lambda y: y.mean()), r"must return one tensor with a row"),
    "forward loses rows": (lambda: with_output(lambda y: y[:1]), r"must return one tensor with a row"),
    "nothing for dendrites": (
        lambda: broken(model=lambda self, width: nn.Sequential(nn.LayerNorm(2))),
        r"The network Sequential has no module .* attached to:\n0  LayerNorm  no: a normalisation is never",
    ),
    "a Linear alone": (lambda: broken(model=lambda self, width: nn.Linear(2, 1)), r"network itself is a Linear"),
    "loss raises": (lambda: broken(loss=raising(TypeError("what?"))), r"loss failed: TypeError: what\?"),
    "loss of the whole batch": (
        lambda: broken(loss=lambda self, outputs, targets: (outputs - targets).square().mean()),
        r'loss returned \(\) for 2 samples: .*one loss per sample.*reduction="none"',
    ),
    "loss with columns": (
        lambda: broken(loss=lambda self, outputs, targets: (outputs - targets).square()),
        r"loss returned \(2, 1\) for 2 samples",
    ),
    "loss is a number": (lambda: broken(loss=lambda self, outputs, targets: 0.5), r"loss returned float for 2"),
    "loss without gradient": (
        lambda: broken(loss=lambda self, outputs, targets: (outputs - targets).detach().square().sum(1)),
        r"the loss does not depend on the network: it has no gradient",
    ),
    "score raises": (lambda: broken(score=raising(KeyError("k"))), r"score failed: KeyError: 'k'"),
    "score is no number": (lambda: broken(score=lambda self, outputs, targets: "good"), r"score failed: ValueError"),
    "score is NaN": (
        lambda: broken(score=lambda self, o, t: NAN),
        r"score returned nan for the validation data: .*finite",
    ),
    "score is infinite": (lambda: broken(score=lambda self, o, t: INFINITE), r"score returned inf"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_broken_task_is_refused_in_a_sentence(case: str) -> None:
    build, sentence = CASES[case]
    with pytest.raises((TaskError, UnsupportedModuleError), match=sentence) as caught:
        check_task(build())
    assert isinstance(caught.value, InputError)
    if isinstance(caught.value, TaskError):
        assert str(caught.value).startswith("The task Broken")


@pytest.mark.parametrize("task", [Rings(), Bowl(), NegatedBowl(), broken(), broken(widths=[3, 3])])
def test_a_sound_task_passes_and_its_data_are_returned(task: Task) -> None:
    state = torch.get_rng_state()
    data, expected = check_task(task), task.data()
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).inputs, getattr(expected, part).inputs)
        assert torch.equal(getattr(data, part).targets, getattr(expected, part).targets)


class Floating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_a_network_may_call_a_module_twice() -> None:
    check_task(broken(model=lambda self, width: Repeated()))


def test_a_network_may_be_frozen_in_part() -> None:
    def model(self: object, width: int) -> nn.Module:
        network = Bowl().model(width)
        network.get_submodule("0").requires_grad_(False)
        return network

    check_task(broken(model=model))


def test_ctrl_c_in_a_tasks_method_is_no_defect_of_the_task() -> None:
    with pytest.raises(KeyboardInterrupt):
        check_task(broken(data=raising(KeyboardInterrupt())))


def test_inputs_may_be_whole_numbers() -> None:
    def counted(data: Data) -> Data:
        return Data(*(Split(part.inputs.long(), part.targets) for part in (data.train, data.validation, data.test)))

    task = broken(
        data=lambda self: counted(Bowl().data()),
        model=lambda self, width: nn.Sequential(Floating(), *Bowl().model(width).children()),
    )
    assert check_task(task).train.inputs.dtype == torch.int64


def test_a_task_is_known_by_its_members_not_by_a_base_class() -> None:
    assert isinstance(broken(), Task)
    assert not isinstance(broken(score=None), Task)
    chain = run_chain(broken(), config(), 1)
    assert [checkpoint.milestone.requested for checkpoint in chain] == [0, 1]


def test_classification_has_the_usual_loss_and_accuracy() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [0.5, 0.5, 0.6], [1.0, 0.0, 0.0]])
    targets = torch.tensor([0, 1, 2, 2])
    task = ClassificationTask()
    expected = [float(torch.logsumexp(row, 0) - row[target]) for row, target in zip(logits, targets, strict=True)]
    assert task.loss(logits, targets).tolist() == pytest.approx(expected)
    assert task.score(logits, targets) == 0.5
    assert (task.metric, task.direction) == ("accuracy", "maximize")


class OneClassFirst(ClassificationTask):
    """A score that needs both classes, and data whose first rows have only one."""

    name = "one_class_first"
    metric = "auc"
    widths = (1, 2)

    def data(self) -> Data:
        x = torch.arange(20.0).unsqueeze(1) / 20
        return Data(*(Split(x, (x[:, 0] > 0.4).long()) for _ in range(3)))

    def model(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 2))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return float(roc_auc_score(targets, outputs[:, 1]))


def test_a_score_that_needs_many_samples_gets_them() -> None:
    assert len(check_task(OneClassFirst()).train.inputs) == 20


def test_a_label_out_of_range_is_found_wherever_it_is() -> None:
    class OutOfRange(OneClassFirst):
        def data(self) -> Data:
            data = super().data()
            data.validation.targets[-1] = 2
            return data

    with pytest.raises(
        TaskError, match=r"the validation data failed in the loss: IndexError: Target 2 is out of bounds"
    ):
        check_task(OutOfRange())


def test_a_network_that_fails_in_training_mode_only_is_refused() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ArithmeticError("not today")
            return x

    class InTraining(OneClassFirst):
        def model(self, width: int) -> nn.Module:
            return nn.Sequential(super().model(width), Moody())

    with pytest.raises(TaskError, match=r"the forward pass in training mode failed: ArithmeticError: not today"):
        check_task(InTraining())
