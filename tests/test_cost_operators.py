"""MACs of operators that torch's counter takes for free, and the warning about those that nobody counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.cost import step_macs
from anytime.model import AnytimeModel

Operation = Callable[[Tensor], Any]


class Applies(AnytimeModel):
    """One step whose only cost is an operation on the image, a matrix [4, 6]; `first` runs in `initial_state`."""

    num_steps = 1

    def __init__(self, operation: Operation, first: Operation | None = None) -> None:
        super().__init__(2, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.operation, self.first = operation, first

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        if self.first is not None:
            self.first(x[0, 0])
        return x

    def step(self, state: Any) -> tuple[Tensor, Any]:
        self.operation(state[0, 0])
        return self.scale * state.mean((2, 3)).expand(-1, 2), state


def macs(operation: Operation, first: Operation | None = None) -> int:
    model, size = Applies(operation, first), (1, 4, 6)
    stream, contract = (step_macs(model, size, contract=contract) for contract in (False, True))
    assert stream == contract
    return stream[0]


def sparse(x: Tensor) -> Tensor:
    """[4, 6] with 5 ones."""
    return torch.eye(4, 6, dtype=x.dtype).index_put((torch.tensor([0]), torch.tensor([5])), x.new_ones(1))


V4, V6, M = torch.rand(4), torch.rand(6), torch.rand(6, 3)
LSTM = nn.LSTM(6, 5, num_layers=2, batch_first=True)
PROJECTED = nn.LSTM(6, 5, bidirectional=True, proj_size=3)
GRU = nn.GRU(6, 5)
LSTM_MACS = 4 * 20 * (6 + 5) + 4 * 20 * (5 + 5)  # 4 time steps, 4 gates of 5
PROJECTED_MACS = 4 * 2 * (20 * (6 + 3) + 5 * 3)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning", "ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x: x @ V6, 24),
        (lambda x: torch.mv(x, V6), 24),
        (lambda x: torch.addmv(V4, x, V6), 24),
        (lambda x: V4 @ x, 24),
        (lambda x: F.linear(V6, x), 24),
        (lambda x: x[0] @ V6, 6),
        (lambda x: torch.addr(x, V4, V6), 24),
        (lambda x: x @ M, 72),
        (lambda x: torch.addbmm(torch.zeros(4, 4), x.expand(2, 4, 6), x.mT.expand(2, 6, 4)), 2 * 4 * 6 * 4),
        (lambda x: torch.baddbmm(torch.zeros(2, 4, 4), x.expand(2, 4, 6), x.mT.expand(2, 6, 4)), 2 * 4 * 6 * 4),
        (lambda x: torch.zeros(4, 3).addmm_(x, M), 72),
        (lambda x: torch.einsum("ij,jk->ik", x, M), 72),
        (lambda x: LSTM(x[None]), LSTM_MACS),
        (lambda x: PROJECTED(x[:, None]), PROJECTED_MACS),
        (lambda x: GRU(x[:, None]), 4 * 15 * (6 + 5)),
        (lambda x: F.bilinear(x, x, torch.rand(7, 6, 6)), 4 * 7 * 6 * 6),
        (lambda x: torch.cdist(x, x), 4 * 4 * 6),
        (lambda x: torch.cdist(x, torch.rand(30, 6)), 4 * 30 * 6),
        (lambda x: torch.conv_tbc(x[:, None], torch.rand(3, 6, 2), torch.zeros(2)), 2 * 3 * 6 * 2),
        (lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]), 2 * 4 * 4 * 6),
        (lambda x: torch.sparse.mm(sparse(x).to_sparse(), M), 5 * 3),
        (lambda x: sparse(x).to_sparse() @ M, 5 * 3),
        (lambda x: sparse(x).to_sparse() @ V6, 5),
        (lambda x: torch.sparse.addmm(torch.zeros(4, 3), sparse(x).to_sparse(), M), 5 * 3),
        (lambda x: torch.sparse.mm(sparse(x).to_sparse(), sparse(x).mT.to_sparse()), 5),
        (lambda x: torch.ones(3, 4) @ sparse(x).to_sparse(), 5 * 3),
        (lambda x: torch._int_mm(torch.ones(32, 8, dtype=torch.int8), torch.ones(8, 16, dtype=torch.int8)), 32 * 8 * 16),
        (lambda x: torch.outer(V4, V6), 24),
        (lambda x: V4.ger(V6), 24),
        (lambda x: torch.kron(x, M), 24 * 18),
        (lambda x: torch.einsum("i,j->ij", V4, V6), 24),
        (lambda x: torch.einsum("bi,bj->bij", x, x), 4 * 6 * 6),
        (lambda x: torch.einsum("bi,bi->bi", x, x) + torch.einsum("ij->ji", x).mT, 0),
        (lambda x: torch.linalg.vecdot(x, V6), 24),
        (lambda x: torch.linalg.vecdot(V6, V6), 6),
        (lambda x: torch.complex(x, x) @ torch.complex(M, M), 4 * 72),
        (lambda x: torch.outer(torch.complex(V4, V4), torch.complex(V6, V6)), 4 * 24),
        (lambda x: torch.vdot(torch.complex(V6, V6), torch.complex(V6, V6)), 4 * 6),
        (lambda x: torch.complex(sparse(x), x).to_sparse() @ torch.complex(M, M), 4 * 5 * 3),
        (lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)).relu().softmax(1).mean() * x, 0),
        (lambda x: F.embedding(torch.tensor([1]), x) + F.interpolate(x[None], 6, mode="linear").sum(), 0),
    ],
)
def test_every_product_counts(operation: Operation, expected: int) -> None:
    assert macs(operation) == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_compressed_sparse_products_cost_what_they_store() -> None:
    assert macs(lambda x: sparse(x).to_sparse_csr() @ M) == 5 * 3
    assert macs(lambda x: sparse(x).to_sparse_csr() @ V6) == 5
    assert macs(lambda x: F.linear(M.mT, sparse(x).to_sparse_csr())) == 5 * 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_products_of_nested_tensors_cost_what_their_parts_do() -> None:
    nested, other = (torch.nested.nested_tensor(parts) for parts in ([M.mT, torch.rand(5, 6)], [M, torch.rand(6, 2)]))
    ragged = torch.nested.nested_tensor([M.mT, torch.rand(5, 6)], layout=torch.jagged)
    assert macs(lambda x: nested @ other) == 3 * 6 * 3 + 5 * 6 * 2
    for batch in (nested, ragged):
        assert macs(lambda x, batch=batch: F.linear(batch, M.mT)) == (3 + 5) * 6 * 3
    assert macs(lambda x: ragged @ M) == (3 + 5) * 6 * 3


def test_initial_state_is_part_of_the_first_step() -> None:
    assert macs(lambda x: x @ M, first=lambda x: x @ V6) == 72 + 24


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_products() -> None:
    quantization = torch.ao.quantization
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    static = nn.Sequential(quantization.QuantStub(), network, quantization.DeQuantStub()).eval()
    static.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(static, inplace=True)(torch.rand(2, 1, 4, 6))
    quantization.convert(static, inplace=True)
    assert macs(lambda x: static(x[None, None])) == 2 * 4 * 4 * 9 + 32 * 3
    dynamic = quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), {nn.Linear}, torch.qint8)
    assert macs(dynamic) == 4 * 6 * 3
    for layer, expected in ((LSTM, LSTM_MACS), (GRU, 4 * 15 * (6 + 5))):
        quantised = quantization.quantize_dynamic(nn.Sequential(layer), {nn.LSTM, nn.GRU}, torch.qint8)
        packed = nn.utils.rnn.pack_padded_sequence(torch.rand(1, 4, 6), [4], batch_first=True)
        assert macs(lambda x, q=quantised, first=layer.batch_first: q(x[None] if first else x[:, None])) == expected
        assert macs(lambda x, q=quantised, p=packed: q(p)) == expected


def test_deformable_convolution() -> None:
    from torchvision.ops import deform_conv2d

    weight = torch.rand(2, 1, 3, 3)
    assert macs(lambda x: deform_conv2d(x[None, None], torch.zeros(1, 18, 2, 4), weight)) == 2 * 2 * 4 * 9


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: torch.linalg.solve(x[:, :4] + 9 * torch.eye(4), x), "aten._linalg_solve_ex"),
        (lambda x: torch.fft.fft(x), "aten._fft_r2c"),
        (lambda x: torch.ops.anytime_tests.mystery(x, M), "anytime_tests.mystery"),
    ],
)
def test_an_operator_without_a_formula_is_named(operation: Operation, name: str) -> None:
    with pytest.warns(UserWarning, match=f"the cost counts {name} as zero") as caught:
        assert step_macs(Applies(operation), (1, 4, 6)) == [0]
    assert len(caught) == 1
    assert caught[0].filename == __file__


@torch.library.custom_op("anytime_tests::mystery", mutates_args=())
def mystery(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def test_recurrent_cells_on_a_gpu_count_the_same() -> None:
    """cuDNN's operator holds the weights of all layers; its formula needs only their shapes."""
    from anytime.support.flops import extra_formulas

    for layer, x, expected in ((LSTM, torch.rand(1, 4, 6), LSTM_MACS), (PROJECTED, torch.rand(4, 1, 6), PROJECTED_MACS)):
        formula = extra_formulas()[torch.ops.aten._cudnn_rnn]
        assert formula(x, list(layer.parameters()), 4, out_val=None) == 2 * expected


def test_nothing_is_said_about_a_network_that_is_counted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert macs(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)) > 0
