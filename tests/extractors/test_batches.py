"""Whatever a batch looks like, and whatever a model does with it, every row is that of the sample alone, or is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import UnsupportedModelError
from trak_lightning.extractors.auto import Auto
from trak_lightning.extractors.functional import Functional
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.extractors.iterative import Iterative
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.base import Task
from trak_lightning.testing.extractors import autograd_loop, gradients
from trak_lightning.testing.models import Sum


class Calls(Task):
    """The model is called with the batch; its outputs are one number per sample, or are summed up to one."""

    def output(self, model, batch):
        found = model(**batch) if isinstance(batch, dict) else model(batch)
        return found.flatten(1).tanh().sum(1) if found.ndim > 1 else found


def check(model, samples, size=3, collate=default_collate, extractors=(Auto, Iterative)):
    """Batches of `size` in order, under one extractor; returns which were refused."""
    model = model.double().eval()
    for extractor in [make() for make in extractors]:
        for start in range(0, len(samples), size):
            batch = SampleBatch.of(samples[start : start + size], collate)
            output, found = gradients(extractor, model, Calls(), batch)
            expected_output, expected = autograd_loop(model, Calls(), batch, batch.size)
            torch.testing.assert_close(output, expected_output, rtol=1e-9, atol=1e-12)
            for name, grad in expected.items():
                assert (found[name] - grad).norm() <= 1e-9 * grad.norm() + 1e-14, (
                    type(extractor).__name__,
                    start,
                    name,
                )


def hooked(model, samples, size=3, collate=default_collate):
    """As `check`, and hooks compute every batch."""
    check(model, samples, size, collate, (Hooks,))


def rows(*lengths, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator, dtype=torch.float64) for length in lengths]


class Net(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def linear(**more):
    return {"first": nn.Linear(4, 4), "second": nn.Linear(4, 2), **more}


def test_lists_of_tensors_of_any_length():
    def net(self, batch):
        return torch.stack([self.second(self.first(x).tanh()).mean(0) for x in batch])

    for lengths in ((3, 3, 3, 2, 5, 3, 4), (2, 1, 1, 3, 3, 1)):
        check(Net(net, **linear()), rows(*lengths), 3, list)


def test_rows_laid_end_to_end_whose_owner_is_told():
    def net(self, x, owner, counts):
        hidden = self.first(x).tanh()
        mean = torch.zeros(len(counts), 4, dtype=x.dtype).index_add(0, owner, hidden)
        return self.second(
            torch.zeros(len(counts), 4, dtype=x.dtype).index_add(0, owner, (hidden + mean[owner]).tanh())
        )

    def collate(samples):
        counts = torch.tensor([len(x) for x in samples])
        return {
            "x": torch.cat(samples),
            "owner": torch.arange(len(samples)).repeat_interleave(counts),
            "counts": counts,
        }

    for lengths in ((2, 2, 2, 1, 3, 2), (1, 1, 1, 3, 2, 1), (3, 5, 1, 4)):
        check(Net(net, **linear()), rows(*lengths), 3, collate)


@pytest.mark.parametrize("counts", [(3, 3, 3, 1, 3, 5, 2, 4, 3), (1, 1, 1, 0, 1, 2, 3, 0, 0)])
def test_entries_chosen_by_a_mask_are_never_shared_out_evenly(counts):
    def net(self, x, mask):
        chosen = self.first(x[mask]).tanh()
        spread = torch.zeros(*x.shape, dtype=x.dtype).masked_scatter(mask.unsqueeze(-1), chosen)
        return self.second(spread.sum(1))

    samples = [{"x": x, "mask": torch.arange(6) < n} for x, n in zip(rows(*[6] * len(counts)), counts, strict=True)]
    check(Net(net, **linear()), samples)


def test_a_count_that_python_reads_is_never_shared_out_evenly():
    def net(self, x, count):
        parts = (
            self.first(torch.cat([row[:n] for row, n in zip(x, count.tolist(), strict=True)]))
            .tanh()
            .split(count.tolist())
        )
        return self.second(torch.stack([part.sum(0) for part in parts]))

    samples = [{"x": x, "count": torch.tensor(n)} for x, n in zip(rows(*[6] * 7), (3, 3, 3, 2, 4, 3, 5), strict=True)]
    check(Net(net, **linear()), samples)


@pytest.mark.parametrize("read", ["one by one", "tolist", "numpy"])
def test_a_mask_that_python_reads_is_never_shared_out_evenly(read):
    def net(self, x, mask):
        flags = {"one by one": list, "tolist": lambda m: m.tolist(), "numpy": lambda m: m.numpy()}[read](mask.flatten())
        chosen = [place for place, flag in enumerate(flags) if flag]
        owner = torch.tensor([place // x.shape[1] for place in chosen])
        hidden = self.first(x.flatten(0, 1)[chosen]).tanh()
        return self.second(torch.zeros(len(x), 4, dtype=x.dtype).index_add(0, owner, hidden))

    counts = (3, 3, 3, 3, 3, 3, 1, 5, 3, 2, 4, 3)
    samples = [{"x": x, "mask": torch.arange(6) < n} for x, n in zip(rows(*[6] * 12), counts, strict=True)]
    check(Net(net, **linear()), samples)


@pytest.mark.parametrize("hook", ["forward", "backward"])
def test_a_hook_that_changes_only_a_later_batch(hook):
    model = Net(lambda self, x: self.second(self.first(x).tanh() * 2), **linear())
    if hook == "forward":
        model.first.register_forward_hook(
            lambda _, args, output: output * 3 if bool((args[0][:, 0] > 6).all()) else None
        )
    else:
        model.second.register_full_backward_pre_hook(lambda _, grads: (grads[0].clamp(max=0.5),))
    samples = [x[0] for x in rows(*[1] * 6)]
    samples[3:] = [x + 10 * (torch.arange(4) == 0) for x in samples[3:]]
    check(model, samples)


def test_an_output_that_holds_a_gradient():
    def net(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.second(self.first(x).tanh()).sum(), x, create_graph=True)[0]

    check(Net(net, **linear()), [x[0] for x in rows(*[1] * 7)])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_parameter_of_its_own(reentrant):
    def net(self, x):
        def inside(hidden):
            return self.second(hidden).tanh() @ self.second.weight

        return checkpoint(inside, self.first(x), use_reentrant=reentrant)

    model, task = Net(net, **linear()).double().eval(), Calls()
    batch = SampleBatch.of([x[0] for x in rows(*[1] * 3)], default_collate)
    found = gradients(Iterative(), model, task, batch)[1]
    model.function = lambda self, x: self.second(self.first(x)).tanh() @ self.second.weight
    for name, grad in autograd_loop(model, task, batch, 3)[1].items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_an_optimizer_that_steps_during_the_backward_pass_does_not():
    model = Net(lambda self, x: self.second(self.first(x).tanh() @ self.first.weight), **linear())
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], 0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    before = [parameter.detach().clone() for parameter in model.double().parameters()]
    for extractor in (Auto(), Iterative()):
        gradients(extractor, model.eval(), Calls(), SampleBatch.of([x[0] for x in rows(*[1] * 3)], default_collate))
    assert all(torch.equal(old, now) for old, now in zip(before, model.parameters(), strict=True))
    model(torch.zeros(1, 4, dtype=torch.float64)).sum().backward()  # and it still does in training
    assert not torch.equal(before[-1], model.second.bias)


BATCHES = pytest.mark.parametrize("size", [3, 16])
"""A batch that is looked at as a whole, and one that is looked at in halves."""


@BATCHES
@pytest.mark.parametrize("way", ["index", "index_select", "gather", "sort"])
def test_samples_that_the_model_puts_in_another_order(way, size):
    def net(self, x, key):
        order = key.argsort(descending=True, stable=True)
        if way == "index":
            x = x[order]
        elif way == "index_select":
            x = x.index_select(0, order)
        elif way == "gather":
            x = x.gather(0, order[:, None].expand_as(x))
        else:
            x = torch.take_along_dim(x, key.sort(descending=True, stable=True).indices[:, None], 0)
        return self.second(self.first(x).tanh())[order.argsort()]

    # The first batch is in order.
    keys = (5, 5, 5, 1, 2, 3, 2, 9, 4) if size == 3 else (*range(16, 0, -1), *(7 * n % 16 for n in range(16)))
    samples = [{"x": x[0], "key": torch.tensor(n)} for x, n in zip(rows(*[1] * len(keys)), keys, strict=True)]
    check(Net(net, **linear()), samples, size)


@BATCHES
def test_a_branch_taken_only_where_samples_differ(size):
    def net(self, x, key):
        if len(key.unique()) > 1:
            order = key.argsort(stable=True)
            return self.second(self.first(x[order]).tanh())[order.argsort()]
        return self.second(self.first(x).tanh())

    # Copies of the first sample do not show the branch, and a first batch in order does not show what it does.
    keys = (5, 5, 5, 3, 2, 1, 5, 5, 5) if size == 3 else (*[1] * 15, 5, *(7 * n % 16 for n in range(16)), *[1] * 16)
    samples = [{"x": x[0], "key": torch.tensor(n)} for x, n in zip(rows(*[1] * len(keys)), keys, strict=True)]
    check(Net(net, **linear()), samples, size)


@pytest.mark.parametrize(
    "look_up", [lambda table, key: table.expand(len(key), -1).gather(1, key), lambda table, key: table[key]]
)
@BATCHES
def test_what_is_looked_up_in_a_table_keeps_its_order(look_up, size):
    def net(self, x, key):  # as RoBERTa looks up types of tokens by their positions
        return self.second(self.first(x + look_up(self.table, key)[..., None]).tanh()[:, 0])

    samples = [{"x": x, "key": torch.randint(4, (5,))} for x in rows(*[5] * 2 * size)]
    hooked(Net(net, **linear(table=torch.arange(4.0).double())), samples, size)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_modules_that_only_some_samples_reach(size):
    def net(self, x, domain):
        x = torch.stack([self.adapters[int(k)](row) for row, k in zip(x, domain, strict=True)])
        return self.second(self.first(x).tanh())

    samples = [{"x": x[0], "domain": torch.tensor(i // 4 % 3)} for i, x in enumerate(rows(*[1] * 32))]
    adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    check(Net(net, **linear(adapters=adapters)), samples, size)


def test_a_weight_used_again_in_a_branch_that_is_zero_at_first():
    def net(self, x, use):
        hidden = self.first(x).tanh()
        return self.second(hidden + use[:, None] * F.linear(hidden, self.first.weight))

    samples = [{"x": x[0], "use": torch.tensor(float(i >= 6))} for i, x in enumerate(rows(*[1] * 9))]
    hooked(Net(net, **linear()), samples)
    check(Net(net, **linear()), samples)


@BATCHES
def test_what_is_first_reached_in_a_later_batch_is_not_counted_twice(size):
    def net(self, x, deep):
        hidden = self.first(x).tanh()
        if deep.any():
            hidden = torch.where(deep[:, None], self.third(hidden).tanh() * self.scale, hidden)
        return self.second(hidden)

    samples = [{"x": x[0], "deep": torch.tensor(i % 5 == 4)} for i, x in enumerate(rows(*[1] * 4 * size))]
    model = Net(net, **linear(third=nn.Linear(4, 4), scale=nn.Parameter(torch.rand(4))))
    hooked(model, samples, size)
    check(model, samples, size)


@BATCHES
@pytest.mark.parametrize("use", [0.0, 1.0])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_parameter_that_the_first_sample_does_not_reach(use, elsewhere, size):
    def net(self, x, deep):
        hidden, beside = self.part(self.first(x).tanh(), deep)
        return self.second(hidden + beside)

    def part(self, hidden, deep):
        beside = hidden * self.scale if elsewhere else hidden.sin()
        if deep.int().any():  # no module shows this branch, and its gradient is zero at first if `use` is
            hidden = hidden + (deep - 1)[:, None].clamp(min=0) * self.scale * hidden
        return hidden, beside

    samples = [
        {"x": x[0], "deep": torch.tensor((i % size != 0) * (1.0 + (use if i < size else 1.0)))}
        for i, x in enumerate(rows(*[1] * 3 * size))
    ]
    model = Net(net, **linear(part=Net(part, scale=nn.Parameter(torch.rand(4)))))
    hooked(model, samples, size)
    check(model, samples, size)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_tensor_that_all_samples_share_is_never_cut_up(size):
    shared = rows(4)[0]

    def net(self, x, shared):
        return (self.first(x) @ self.first(shared).tanh().T).softmax(-1) @ self.second(shared)

    def collate(samples):
        return {"x": torch.stack(samples), "shared": shared}

    check(Net(net, **linear()), [x[0] for x in rows(*[1] * 12)], size, collate)


@pytest.mark.parametrize("size", [2, 5, 7])
def test_time_first(size):
    def net(self, x):
        return self.second(self.rnn(self.first(x))[0].mean(0))

    def collate(samples):
        return torch.stack(samples, 1)

    hooked(Net(net, **linear(rnn=nn.GRU(4, 4))), rows(*[5] * 14), size, collate)


def test_packed_sequences():
    def net(self, x, length, sort):
        packed = pack_padded_sequence(self.first(x), length, batch_first=True, enforce_sorted=not sort)
        output, final = self.rnn(packed)
        return self.second(pad_packed_sequence(output, batch_first=True)[0].sum(1)) + self.second(final[-1])

    def collate(sort):
        def collated(samples):
            samples = samples if sort else sorted(samples, key=len, reverse=True)
            return {
                "x": pad_sequence(samples, batch_first=True),
                "length": torch.tensor([len(x) for x in samples]),
                "sort": sort,
            }

        return collated

    hooked(Net(net, **linear(rnn=nn.GRU(4, 4, batch_first=True))), rows(5, 5, 5, 4, 2, 1), 3, collate(False))
    check(Net(net, **linear(rnn=nn.GRU(4, 4, batch_first=True))), rows(3, 5, 2, 1, 4, 5), 3, collate(True))


class Graphs:
    """An object that no tree looks into."""

    def __init__(self, x, owner, size):
        self.x, self.owner, self.size = x, owner, size


def test_objects_that_no_tree_looks_into():
    def net(self, batch):
        pooled = torch.zeros(batch.size, 4, dtype=batch.x.dtype).index_add(0, batch.owner, self.first(batch.x).tanh())
        return self.second(pooled)

    def collate(samples):
        counts = torch.tensor([len(x) for x in samples])
        return Graphs(torch.cat(samples), torch.arange(len(samples)).repeat_interleave(counts), len(samples))

    for lengths in ((2, 2, 2, 1, 3, 2), (1, 1, 1, 3, 2, 1)):
        check(Net(net, **linear()), rows(*lengths), 3, collate)


def test_experts_that_see_only_their_tokens():
    def net(self, x):
        tokens = x.flatten(0, 1)
        weight, chosen = self.gate(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                out = out.index_add(0, token, expert(tokens[token]) * weight[token, place, None])
        return self.second(out.view_as(x).mean(1))

    parts = {"gate": nn.Linear(4, 5), "experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(5))}
    for size in (4, 16):
        check(Net(net, **linear(**parts)), rows(*[3] * 2 * size), size)


def test_a_sample_that_is_refused_is_refused_by_name():
    def net(self, batch):
        return torch.stack([self.second(self.first(x).tanh()).mean(0) for x in batch])

    with pytest.raises(
        UnsupportedModelError, match=r"parameter (first|second)\.\w+ of Net.*extractor='auto' or 'iterative'"
    ):
        hooked(Net(net, **linear()), rows(2, 3, 4), 3, list)


def test_an_output_of_the_model_that_the_task_leaves_out():
    class First(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)[0]

    def net(self, x):
        x = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return self.second(x.mean(1)), self.first(x)

    hooked(First(Net(net, **linear(token=nn.Parameter(torch.rand(1, 1, 4))))), rows(*[3] * 6))


@pytest.mark.parametrize("sparse", [True, False])
def test_integers_laid_out_flat_and_sparse_tables(sparse):
    def net(self, ids):
        return self.second(self.table(ids.reshape(-1)).view(*ids.shape, 4).mean(1))

    ids = list(torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0)))
    hooked(Net(net, **linear(table=nn.Embedding(11, 4, sparse=sparse))), ids)
    check(Net(net, **linear(table=nn.Embedding(11, 4, sparse=sparse))), ids)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_torchscript():
    torch.manual_seed(0)
    check(
        torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()),
        [x[0] for x in rows(*[1] * 4)],
    )


@pytest.mark.slow
def test_branches_that_torch_compiles():
    def net(self, x):
        hidden = [torch.cond(row.sum() > 0, lambda row: self.first(row).tanh(), lambda row: -row, (row,)) for row in x]
        return self.second(torch.stack(hidden))

    check(Net(net, **linear()), [x[0] for x in rows(*[1] * 3)], extractors=(Auto,))


def test_the_functional_extractor_names_a_sparse_table():
    model = nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Flatten(), nn.Linear(8, 1))
    with pytest.raises(UnsupportedModelError, match=r"module '0' has sparse=True.*sparse=False"):
        gradients(Functional(), model, Sum(), SampleBatch.of_rows(torch.randint(0, 11, (3, 2)), 3))


def test_an_error_without_a_message_is_a_refusal_of_the_functional_extractor():
    class Silent(nn.Linear):
        def forward(self, x):
            raise ArithmeticError

    with pytest.raises(UnsupportedModelError, match="cannot differentiate Silent"):
        gradients(Functional(), Silent(2, 1).double(), Sum(), SampleBatch.of_rows(torch.ones(3, 2).double(), 3))


def test_under_sharding_a_smaller_last_batch_is_filled_up_and_needs_no_rehearsal_of_its_own(monkeypatch):
    monkeypatch.setattr("trak_lightning.extractors.hooks.extractor.any_sharded", lambda parameters: True)
    model, x, hooks = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        torch.randn(9, 3).double(),
        Hooks(),
    )
    expected = autograd_loop(model, Sum(), x, 9)
    for first, last in ((0, 4), (4, 8), (8, 9)):
        output, found = gradients(hooks, model, Sum(), SampleBatch.of_rows(x[first:last], last - first))
        torch.testing.assert_close(output, expected[0][first:last])
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[1][name][first:last])
    assert hooks.kinds == 1


class Restartable:
    def __init__(self, size):
        self.size, self.restarts, self.found = size, 0, {}

    def __call__(self, block):
        dense = block.dense().reshape(self.size, -1)
        self.found[block.name] = self.found.get(block.name, 0) + dense

    def restart(self):
        self.restarts += 1
        self.found = {}


class ChangesInPlace(nn.Module):
    """Changes the input of its second layer after the call, which the rehearsal finds when the third has pushed its blocks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight.requires_grad_(False)

    def forward(self, x):
        hidden = self.first(x)
        hidden += self.second(hidden)
        return self.third(hidden)


def test_a_sink_that_can_restart_has_the_blocks_of_the_rehearsal_that_succeeds():
    model, x = ChangesInPlace().double(), torch.randn(4, 3).double()
    sink = Restartable(4)
    output = Hooks().extract(model, Sum(), SampleBatch.of_rows(x, 4), ParameterLayout.of(model), sink)
    expected = autograd_loop(model, Sum(), x, 4)
    torch.testing.assert_close(output, expected[0])
    assert sink.restarts
    for name, grad in expected[1].items():
        torch.testing.assert_close(sink.found[name], grad.flatten(1))
