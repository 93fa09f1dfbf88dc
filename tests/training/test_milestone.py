import json
import random
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from pbp_search.dendrites import dendritic_modules
from pbp_search.errors import CheckpointError
from pbp_search.training import Checkpoint, Data, EpochRecord, GrowthRecord, Milestone, Size, build_network, milestone
from pbp_search.training.milestone import FORMAT, UNITS, _digest, macs_of, weights_of
from tests.training.tiny_tasks import Bowl, BowlWithDropout, Rings, assert_same_checkpoint, config, weight_bits


def described(**changes: object) -> Milestone:
    values = {
        "config": config(width=2),
        "requested": 2,
        "dendrites": 2,
        "parameters": 61,
        "weight_bytes": 244,
        "macs": 48,
        "score": -0.1 + 0.2,  # has no short decimal form
        "train_score": -1e-300,
        "epochs": 12,
        "seconds": 1.23456789012345678,
        "growth": (
            GrowthRecord(module="0", generation=2, attempt=1, score=0.3, floor=1 / 3, noise=0.0, above_floor=False),
        ),
    }
    return Milestone(**{**values, **changes})


@pytest.fixture
def checkpoint() -> Checkpoint:
    history = (
        EpochRecord(phase="dendrite", generation=2, attempt=1, epoch=0, values={"correlation/0": 2 / 3}),
        EpochRecord(phase="neuron", generation=2, attempt=1, epoch=0, values={"train_loss": 1e300, "score": -0.0}),
    )
    return Checkpoint(described(), weights_of(build_network(BowlWithDropout(), config(width=2), 2)), history)


def test_a_milestone_is_the_same_after_a_trip_through_its_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "milestone"
    checkpoint.save(path)
    loaded = Checkpoint.load(path)
    assert_same_checkpoint(loaded, checkpoint)
    assert loaded.milestone == checkpoint.milestone  # seconds too
    assert loaded.history == checkpoint.history
    assert [entry.name for entry in path.parent.iterdir()] == ["milestone"]
    loaded.save(path)
    assert_same_checkpoint(Checkpoint.load(path), checkpoint)


def test_weights_of_any_layout_and_value_are_kept(tmp_path: Path) -> None:
    weights = {
        "transposed": torch.randn(3, 4).T,
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "empty": torch.zeros(0, 3),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
    }
    kept = Checkpoint(described(), weights)
    kept.save(tmp_path / "milestone")
    loaded = Checkpoint.load(tmp_path / "milestone")
    assert weight_bits(loaded) == weight_bits(kept)
    (tmp_path / "milestone").unlink()  # the weights are in memory
    assert torch.equal(loaded.weights["transposed"], weights["transposed"])


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_any_type_and_shape_are_kept_and_have_a_checksum(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    value = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)
    kept = Checkpoint(described(), {"value": value})
    kept.save(tmp_path / "milestone")
    loaded = Checkpoint.load(tmp_path / "milestone")
    assert loaded.weights["value"].dtype == dtype
    assert loaded.weights["value"].shape == shape
    assert torch.equal(loaded.weights["value"], value)
    assert _digest(loaded.weights) == _digest(kept.weights)
    if value.numel():
        changed = value.clone()
        changed.view(-1)[-1] = 0
        assert _digest({"value": changed}) != _digest(kept.weights)


def test_the_checksum_is_of_names_types_shapes_and_values() -> None:
    weights = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(4)},
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.zeros(4)},
    ]
    digests = {_digest(other) for other in others}
    assert len(digests) == len(others)
    assert _digest(weights) not in digests
    assert _digest({"b": torch.ones(2), "a": torch.zeros(4)}) == _digest(weights), "the order does not matter"
    assert _digest({"a": torch.zeros(4, 2)[:, 0], "b": torch.ones(2)}) == _digest(weights), "nor the layout"


def test_a_milestone_restores_its_network(checkpoint: Checkpoint) -> None:
    torch.manual_seed(0)
    network, again = checkpoint.network(BowlWithDropout()), checkpoint.network(BowlWithDropout())
    assert weight_bits(Checkpoint(checkpoint.milestone, weights_of(network))) == weight_bits(checkpoint)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert weight_bits(Checkpoint(checkpoint.milestone, weights_of(again))) == weight_bits(checkpoint)
    for module in dendritic_modules(again).values():
        assert len(module.dendrites) == 2
        assert not any(parameter.requires_grad for parameter in module.dendrites.parameters())


def test_whether_a_generation_stayed() -> None:
    assert described().accepted
    assert not described(requested=3).accepted


def test_the_size_of_a_kind() -> None:
    kinds: tuple[Size, ...] = get_args(Size)
    assert [described().size(kind) for kind in kinds] == [61, 244, 48]
    assert list(UNITS) == list(kinds)
    assert described(macs=0).size("macs") == 1, "it has a logarithm"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("half_written", [False, True])
def test_a_save_that_fails_leaves_the_old_file(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    half_written: bool,
) -> None:
    path = tmp_path / "milestone"
    checkpoint.save(path)
    old = path.read_bytes()

    def fail(weights: object, beside: Path, metadata: object) -> None:
        if half_written:
            Path(beside).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(milestone, "save_file", fail)
    with pytest.raises(type(error)):
        Checkpoint(described(epochs=13), {}).save(path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["milestone"]
    monkeypatch.undo()
    Checkpoint(described(epochs=13), {}).save(path)
    assert Checkpoint.load(path).milestone.epochs == 13


def test_a_full_disk_is_a_sentence_and_leaves_nothing_beside(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(weights: object, beside: Path, metadata: object) -> None:
        Path(beside).write_bytes(b"half a file")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(milestone, "save_file", fail)
    path = tmp_path / "milestone"
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoint.save(path)
    assert str(caught.value).startswith(f"The milestone {path} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "milestone"
    checkpoint.save(path)
    old = path.read_bytes()
    with path.open("rb") as reader:  # someone who has opened the old file goes on reading the old file
        Checkpoint(described(epochs=13), {}).save(path)
        assert reader.read() == old
    assert path.read_bytes() != old


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no milestone file .*nowhere"):
        Checkpoint.load(tmp_path / "nowhere")


def test_a_folder_is_no_milestone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"format": "pt"}, {"format": FORMAT + "0"}, {"milestone": "{}", "history": "[]"}]
)
def test_a_foreign_format_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "file", metadata)
    with pytest.raises(CheckpointError, match=rf"has the format .*: this version reads '{FORMAT}'"):
        Checkpoint.load(tmp_path / "file")


GOOD = {"format": FORMAT, "milestone": described().model_dump_json(), "history": "[]"}
WITHOUT_SCORE = described().model_dump(mode="json", exclude={"score"})


@pytest.mark.parametrize(
    "changes",
    [
        {"milestone": None},
        {"history": None},
        {"milestone": "not JSON"},
        {"milestone": "[]"},
        {"milestone": "3"},
        {"milestone": "{}"},
        {"milestone": json.dumps(WITHOUT_SCORE)},
        {"milestone": json.dumps({**WITHOUT_SCORE, "score": float("nan")})},
        {"milestone": json.dumps({**WITHOUT_SCORE, "score": 1.0, "config": {"width": 0}})},
        {"milestone": json.dumps({**WITHOUT_SCORE, "score": 1.0, "unknown": 1})},
        {"history": "{}x"},
        {"history": "3"},
        {"history": "[3]"},
        {"history": '[{"phase": "other"}]'},
        {"history": "[" * 100_000},
    ],
)
def test_metadata_that_are_not_those_of_a_milestone_are_refused(changes: dict[str, str | None], tmp_path: Path) -> None:
    metadata = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    save_file({"weight": torch.zeros(2)}, tmp_path / "file", metadata)
    with pytest.raises(CheckpointError, match=r"The milestone file .* is damaged"):
        Checkpoint.load(tmp_path / "file")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 5000])
def test_random_bytes_are_refused(size: int, tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / "file").write_bytes(random.Random(seed).randbytes(size))
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint.load(tmp_path / "file")


def test_a_truncated_or_lengthened_file_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.save(path)
    whole = path.read_bytes()
    for length in sorted({0, 1, 8, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 150)}):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoint.load(path)


def test_any_flipped_bit_of_the_weights_is_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - start == sum(value.nbytes for value in checkpoint.weights.values())
    bits = range(8 * start, 8 * len(whole))
    for bit in (bits[0], bits[-1], *random.Random(0).sample(bits, 200)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.load(path)
        assert str(caught.value) == f"The milestone file {path} is damaged: its weights are not those written."
    path.write_bytes(whole)
    assert_same_checkpoint(Checkpoint.load(path), checkpoint)


def test_a_mutated_file_is_refused_or_read_but_never_fails_otherwise(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals: list[str] = []
    for seed in range(500):
        chance = random.Random(seed)
        mutated = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 10))):
            mutated[chance.randrange(header if seed % 2 else len(whole))] = chance.randrange(256)
        path.write_bytes(mutated)
        try:
            loaded = Checkpoint.load(path)
        except CheckpointError as error:
            refusals.append(str(error))
        else:
            assert loaded.weights.keys()
            assert isinstance(loaded.milestone, Milestone)
    assert len(refusals) > 200
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize("task", [Rings(), Bowl()])
def test_weights_that_do_not_fit_the_task_are_refused(task: Rings | Bowl, checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=rf"weights do not fit the task '{task.name}': has its model changed\?"):
        checkpoint.network(task)


@pytest.mark.parametrize("changes", [{"dendrites": 1}, {"dendrites": 3, "requested": 3}, {"config": config(width=3)}])
def test_weights_that_do_not_fit_the_figures_are_refused(changes: dict[str, object], checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="weights do not fit"):
        Checkpoint(described(**changes), checkpoint.weights).network(BowlWithDropout())


def test_a_network_is_built_from_the_seed_alone() -> None:
    first = weights_of(build_network(Bowl(), config(width=3), 1))
    state = torch.get_rng_state()
    torch.rand(3)
    moved = torch.get_rng_state()
    again = weights_of(build_network(Bowl(), config(width=3), 1))
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(state, moved)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = weights_of(build_network(Bowl(), config(width=3, seed=2), 1))
    assert not torch.equal(first["0.module.weight"], other["0.module.weight"])


def test_the_work_of_a_sample_is_counted_on_any_kind_of_data_and_draws_nothing() -> None:
    task = Bowl()
    split = task.data().train
    pairs = TensorDataset(split.inputs, split.targets)
    network = build_network(task, config(width=3), 1)
    state = torch.get_rng_state()
    loader = DataLoader(pairs, 32, shuffle=True, generator=torch.Generator().manual_seed(1))
    for source in (split, pairs, loader):
        assert macs_of(network, Data(source, source, source)) == 2 * (2 * 3 + 3 * 1) + 3 + 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_copy_of_weights_does_not_follow_the_network() -> None:
    network = build_network(Bowl(), config(), 0)
    weights = weights_of(network)
    before = weights["0.module.weight"].clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(weights["0.module.weight"], before)
    assert not any(value.requires_grad for value in weights.values())
