import torch

from pbp_search.tasks.digits import DigitsMLP


def test_the_parts_are_stratified_and_share_no_image() -> None:
    data = DigitsMLP().data()
    parts = {"train": (data.train, 1077), "validation": (data.validation, 360), "test": (data.test, 360)}
    for part, rows in parts.values():
        assert part.inputs.shape == (rows, 64)
        assert part.inputs.dtype == torch.float32
        assert part.targets.shape == (rows,)
        assert 0.0 <= float(part.inputs.min()) < float(part.inputs.max()) <= 1.0
        shares = torch.bincount(part.targets, minlength=10) / rows
        assert float((shares - 0.1).abs().max()) < 0.01
    images = torch.cat([part.inputs for part, _ in parts.values()])
    assert len(torch.unique(images, dim=0)) == len(images) == 1797


def test_the_split_is_the_same_every_time() -> None:
    one, other = DigitsMLP().data(), DigitsMLP().data()
    for left, right in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
        assert torch.equal(left.inputs, right.inputs)
        assert torch.equal(left.targets, right.targets)


def test_the_network_has_one_hidden_layer() -> None:
    task = DigitsMLP()
    for width in task.widths:
        network = task.model(width)
        assert sum(value.numel() for value in network.parameters()) == 64 * width + width + 10 * width + 10
        assert network(torch.zeros(3, 64)).shape == (3, 10)


def test_the_start_is_drawn_from_the_global_stream() -> None:
    def start(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return next(DigitsMLP().model(2).parameters()).detach()

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
