"""Queue, bank, momentum and the averaged teacher: order, wrap-around, duplicates, checkpoints, no gradient."""

import copy
import doctest
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gen_core import state
from gen_core.losses.contrastive import info_nce
from gen_core.state import MemoryBank, Queue, cosine_momentum, ema


def gen(seed):
    return torch.Generator().manual_seed(seed)


def numbers(low, high):
    return torch.arange(float(low), float(high))[:, None]


def same_bits(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_examples():
    assert doctest.testmod(state).failed == 0


# --- queue


def test_a_batch_that_crosses_the_end_goes_on_at_the_start():
    queue = Queue(20, 1)
    for start in (0, 8, 16):
        queue.enqueue(numbers(start, start + 8))
    # The third batch fills 16..19 and goes on in 0..3; nothing of it is lost.
    assert queue.keys[:, 0].tolist() == [20.0, 21.0, 22.0, 23.0, *range(4, 20)]
    assert queue.pointer.item() == 4


@pytest.mark.parametrize("cuts", [[5, 5, 5, 5, 5], [25], [7, 18], [1, 24], [24, 1], [6, 6, 13], [12, 13]])
def test_any_cutting_of_a_stream_gives_the_same_queue(cuts):
    stream, one = torch.randn(25, 3, generator=gen(1)), Queue(6, 3, generator=gen(0))
    for row in stream:
        one.enqueue(row[None])
    many = Queue(6, 3, generator=gen(0))
    for part in stream.split(cuts):
        many.enqueue(part)
    same_bits(one.state_dict(), many.state_dict())
    oldest_first = torch.cat([many.keys[many.pointer :], many.keys[: many.pointer]])
    assert torch.equal(oldest_first, stream[-6:])


def test_the_first_rows_are_drawn_and_have_unit_length():
    queue = Queue(50, 8, generator=gen(3))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert torch.equal(queue.keys, Queue(50, 8, generator=gen(3)).keys)
    before = torch.random.get_rng_state()
    Queue(5, 2, generator=gen(0))
    MemoryBank(5, 2, generator=gen(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert queue.keys.mean(0).abs().max() < 0.2


def test_keys_go_in_as_they_are_and_without_gradient():
    encoder, queue = nn.Linear(3, 2), Queue(4, 2, generator=gen(0))
    keys = encoder(5 * torch.randn(3, 3, generator=gen(1)))
    queue.enqueue(keys)
    assert torch.equal(queue.keys[:3], keys)
    assert not queue.keys.requires_grad and queue.keys.grad_fn is None
    assert list(queue.parameters()) == []
    queue.enqueue(keys.half())
    assert queue.keys.dtype == torch.float32


def test_the_loss_may_be_differentiated_after_the_keys_went_in():
    queue = Queue(8, 4, generator=gen(0))
    query = torch.randn(3, 4, generator=gen(1), requires_grad=True)
    scores = query @ queue.keys.T  # the backward pass needs these keys
    wanted = queue.keys.clone().sum(0)
    queue.enqueue(torch.randn(8, 4, generator=gen(2)))
    scores.sum().backward()
    torch.testing.assert_close(query.grad, wanted.expand(3, 4))


def test_moco_learns_from_a_queue():
    """One step of MoCo by hand: logits against the positive key and the queue, gradient to the query alone."""
    queue, query_net, key_net = Queue(16, 4, generator=gen(0)), nn.Linear(5, 4), nn.Linear(5, 4)
    x = torch.randn(6, 5, generator=gen(1))
    q, k = F.normalize(query_net(x)), F.normalize(key_net(x))
    logits = torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ queue.keys.T], 1) / 0.2
    F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)).backward()
    queue.enqueue(k)
    assert query_net.weight.grad.abs().sum() > 0 and key_net.weight.grad is None
    assert info_nce(queue.keys[:6], k.detach()).item() == pytest.approx(info_nce(k, k).item())


# --- bank


def test_bank_worked():
    """Rows and scores of CMC's official modules on the wave inputs."""
    wave = 0.37 * torch.arange(160, dtype=torch.float64)
    rows = lambda n, phase: F.normalize(torch.sin(wave[: 8 * n] + phase).view(n, 8))  # noqa: E731
    bank_l, bank_ab = MemoryBank(20, 8).double(), MemoryBank(20, 8).double()
    bank_l.rows.copy_(rows(20, 0.1))
    bank_ab.rows.copy_(rows(20, 0.2))
    z_l, z_ab, y = rows(3, 0.2).requires_grad_(), rows(3, 0.9), torch.tensor([2, 7, 11])
    index = torch.tensor([[2, 0, 1, 3, 4, 5], [7, 6, 8, 9, 10, 11], [11, 12, 13, 14, 15, 2]])
    losses = []
    for anchor, bank in ((z_l, bank_ab), (z_ab, bank_l)):
        scores = (bank.get(index) * anchor[:, None]).sum(2) / 0.07
        losses.append(F.cross_entropy(scores, torch.zeros(3, dtype=torch.long)))
    assert [v.item() for v in losses] == pytest.approx([4.6394610, 7.5363469], abs=1e-6)
    bank_l.update(y, z_l)
    assert bank_l.rows[2, :3].tolist() == pytest.approx([-0.0162912, 0.1610905, 0.3166693], abs=1e-6)
    losses[0].backward()  # after the update
    assert z_l.grad.abs().sum() > 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_bank_moves_the_rows_of_the_batch_alone(momentum):
    bank = MemoryBank(30, 4, momentum, generator=gen(0))
    old, z = bank.rows.clone(), F.normalize(torch.randn(3, 4, generator=gen(1))).requires_grad_()
    index = torch.tensor([29, 0, 7])
    bank.update(index, z)
    for place, row in zip(index.tolist(), z.tolist(), strict=True):
        mixed = [momentum * a + (1 - momentum) * b for a, b in zip(old[place].tolist(), row, strict=True)]
        length = math.sqrt(sum(v * v for v in mixed))
        assert bank.rows[place].tolist() == pytest.approx([v / length for v in mixed], abs=1e-6)
    others = [i for i in range(30) if i not in (0, 7, 29)]
    assert torch.equal(bank.rows[others], old[others])
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(30))
    assert not bank.rows.requires_grad and bank.rows.grad_fn is None


@pytest.mark.parametrize("seed", range(5))
def test_of_a_sample_that_stands_twice_in_the_batch_the_last_counts(seed):
    index = torch.randint(0, 6, (40,), generator=gen(seed))
    z = F.normalize(torch.randn(40, 3, generator=gen(seed + 10)))
    bank, alone = MemoryBank(8, 3, generator=gen(0)), MemoryBank(8, 3, generator=gen(0))
    bank.update(index, z)
    last = {place: at for at, place in enumerate(index.tolist())}
    for place, at in last.items():
        alone.update(torch.tensor([place]), z[at : at + 1])
    torch.testing.assert_close(bank.rows, alone.rows, rtol=0, atol=0)


def test_get_is_a_copy_of_any_shape():
    bank = MemoryBank(10, 4, generator=gen(0))
    got = bank.get(torch.tensor([[1, 2, 3], [3, 3, 0]]))
    assert got.shape == (2, 3, 4) and not got.requires_grad
    kept = got.clone()
    bank.update(torch.tensor([3, 0]), torch.ones(2, 4) / 2)
    assert torch.equal(got, kept) and not torch.equal(bank.get(torch.tensor([3]))[0], kept[1, 0])
    assert bank.get(torch.tensor([4], dtype=torch.int32)).shape == (1, 4)


# --- checkpoints


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.queue, self.bank, self.student = Queue(5, 3), MemoryBank(7, 3), nn.Linear(3, 3)
            rule = partial(ema, decay=partial(cosine_momentum, steps=10, base=0.5))
            self.teacher = AveragedModel(self.student, multi_avg_fn=rule).requires_grad_(False)
            self.teacher.update_parameters(self.student)

        def step(self, seed):
            x = F.normalize(torch.randn(4, 3, generator=gen(seed)))
            with torch.no_grad():
                self.student.weight.add_(0.1 * x.T @ x)
            self.teacher.update_parameters(self.student)
            self.queue.enqueue(self.teacher(x))
            self.bank.update(torch.tensor([seed % 7, 3]), x[:2])

    straight = Method()
    for seed in range(3):
        straight.step(seed)
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    resumed = Method()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    same_bits(straight.state_dict(), resumed.state_dict())
    assert {"queue.keys", "queue.pointer", "bank.rows", "teacher.n_averaged"} <= straight.state_dict().keys()
    for seed in range(3, 7):
        straight.step(seed)
        resumed.step(seed)
    same_bits(straight.state_dict(), resumed.state_dict())


# --- momentum and the averaged teacher


def test_cosine_momentum_worked():
    found = [cosine_momentum(step, 1000, 0.996) for step in (0, 250, 500, 1000, 1500)]
    assert found == pytest.approx([0.996, 0.9965858, 0.998, 1.0, 1.0], abs=1e-7)
    assert found[0] == 0.996 and found[3] == found[4] == 1.0
    steps = [cosine_momentum(step, 50, 0.9) for step in range(51)]
    assert steps == sorted(steps)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def train(student, seed):
    student(torch.randn(8, 3, generator=gen(seed)))  # moves the statistics of the batch norm
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn(p.shape, generator=gen(seed)))


def test_the_teacher_follows_the_schedule():
    torch.manual_seed(0)
    student = Net()
    teacher = AveragedModel(student, multi_avg_fn=partial(ema, decay=partial(cosine_momentum, steps=6, base=0.5)))
    teacher.requires_grad_(False)
    teacher.update_parameters(student)
    wanted = student.linear.weight.detach().double()
    for k in range(8):
        train(student, k)
        teacher.update_parameters(student)
        tau = 1 - 0.5 * (math.cos(math.pi * min(k, 6) / 6) + 1) / 2
        wanted = tau * wanted + (1 - tau) * student.linear.weight.detach().double()
        torch.testing.assert_close(teacher.module.linear.weight.double(), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(teacher.module.norm.running_mean, student.norm.running_mean)  # buffers are copied
    assert student.linear.weight.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    teacher(torch.randn(4, 3)).sum()
    assert student.linear.weight.grad is None


def test_the_ends_of_the_decay_are_exact():
    torch.manual_seed(0)
    student = Net()
    still, follows = (AveragedModel(student, multi_avg_fn=partial(ema, decay=decay)) for decay in (1.0, 0.0))
    for teacher in (still, follows):
        teacher.update_parameters(student)
    start = copy.deepcopy(still.module.linear.weight)
    for k in range(10):
        train(student, k)
        still.update_parameters(student)
        follows.update_parameters(student)
    assert torch.equal(still.module.linear.weight, start)
    same_bits(dict(follows.module.state_dict()), dict(student.state_dict()))


def test_a_constant_decay_is_torchs_own_rule_and_can_be_pickled():
    torch.manual_seed(0)
    student = Net()
    ours = AveragedModel(student, multi_avg_fn=partial(ema, decay=0.9), use_buffers=True)
    torchs = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for k in range(4):
        train(student, k)
        ours.update_parameters(student)
        torchs.update_parameters(student)
    floats = [k for k, v in ours.state_dict().items() if v.is_floating_point()]
    for key in floats:
        torch.testing.assert_close(ours.state_dict()[key], torchs.state_dict()[key])
    assert ours.module.norm.num_batches_tracked == 4  # a count is copied, not averaged
    again = pickle.loads(pickle.dumps(ours))
    same_bits(again.state_dict(), ours.state_dict())


# --- wrong use

QUEUE, BANK, INDEX, ROWS = Queue(4, 3), MemoryBank(5, 3), torch.tensor([0, 1]), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Queue(0, 3), "size must be at least 1, got 0"),
        (lambda: Queue(4, 0), "dim must be at least 1, got 0"),
        (lambda: QUEUE.enqueue(torch.ones(2, 4)), r"keys must have 3 columns, got shape \(2, 4\)"),
        (lambda: QUEUE.enqueue(torch.ones(3)), "keys must have 2 dimension"),
        (lambda: QUEUE.enqueue(torch.ones(2, 3).long()), "keys must have a floating dtype"),
        (lambda: QUEUE.enqueue(ROWS * math.nan), "keys must be finite"),
        (lambda: MemoryBank(0, 3), "n must be at least 1, got 0"),
        (lambda: MemoryBank(5, 3, 1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: BANK.get(torch.tensor([5])), r"index must be in 0..4, got 5 to 5"),
        (lambda: BANK.get(torch.tensor([[-1, 2]])), r"index must be in 0..4, got -1 to 2"),
        (lambda: BANK.get(torch.tensor([0.0])), "index must be integers, got torch.float32"),
        (lambda: BANK.get(torch.tensor([True])), "index must be integers, got torch.bool"),
        (lambda: BANK.update(INDEX[:1], ROWS), "index must hold 2 integers, one a row of z"),
        (lambda: BANK.update(INDEX + 4, ROWS), r"index must be in 0..4, got 4 to 5"),
        (lambda: BANK.update(INDEX, ROWS[:, :2]), "z must have 3 columns"),
        (lambda: BANK.update(INDEX, ROWS / 0), "z must be finite"),
        (lambda: cosine_momentum(-1, 10), "step >= 0"),
        (lambda: cosine_momentum(1, 0), "steps >= 1"),
        (lambda: cosine_momentum(1, 10, 1.5), r"base in \[0, 1\] are needed, got step=1, steps=10, base=1.5"),
        (lambda: ema([ROWS], [ROWS], 1, decay=1.5), r"decay must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_use(call, match):
    before = copy.deepcopy((QUEUE.state_dict(), BANK.state_dict()))
    with pytest.raises(ValueError, match=match):
        call()
    same_bits(before[0], QUEUE.state_dict())  # nothing half done
    same_bits(before[1], BANK.state_dict())
