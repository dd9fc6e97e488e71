"""Mutual information of two arrays by a trained critic, and the bound that has a state of its own, MINE.

>>> x = np.random.default_rng(0).normal(size=1000)
>>> y = x + np.random.default_rng(1).normal(size=1000)
>>> found = MutualInformation(critic="separable").fit(x, y).estimate(x, y)  # truth: log(2) / 2 = 0.347 nats
>>> found.low < 0.347 < found.high
True
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gen_core.estimators.bounds import (
    Pairs,
    Positives,
    dv,
    infonce,
    interpolated,
    jsd,
    log_mean_exp,
    nwj,
    pooled,
    smile,
    tuba,
)
from gen_core.estimators.critics import Concat, separable

Array = Tensor | NDArray[Any] | Sequence[Any]
BoundName = Literal["infonce", "dv", "mine", "nwj", "tuba", "smile", "interpolated", "jsd"]
CriticName = Literal["auto", "separable", "concat"]
Preprocess = Literal["uniformize", "standardize"]

BLOCK = 2000
"""Held-out pairs that are scored against each other at once: memory BLOCK^2, ceiling log(BLOCK)."""
GROUPS = 20
"""Groups of the jackknife."""


class MINE(nn.Module):
    """Donsker-Varadhan with the corrected gradient of MINE (Belghazi et al. 2018, section 3.2).

    The value is `dv`. The gradient of its second term, E_neg[e^T dT] / E_neg[e^T], is biased because the denominator is
    the mean of one batch; here it is E_neg[e^T dT] / M, M the exponential moving average of E_neg[e^T]. M starts at the
    first batch's mean, takes in the current batch before it is used, and is kept as log M in the buffer `log_mean`
    (-inf: nothing seen yet). In eval mode M is neither used nor changed: value and gradient are those of `dv`.

    Args:
        decay: weight of the old M, in [0, 1); 0 is the gradient of `dv`.

    Raises:
        ValueError: decay out of range.

    Examples:
        >>> mine, scores = MINE(), 2 * torch.eye(3)
        >>> f"{mine(scores).item():.4f} {mine.log_mean.item():.4f}"
        '2.0000 0.0000'
    """

    log_mean: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("log_mean", torch.tensor(-math.inf))

    def forward(self, scores: Tensor | Pairs, positives: Positives = None) -> Tensor:
        """Scores (n, m) or Pairs, with `positives` as for `dv` -> nats, to maximise."""

        def formula(pos: Tensor, neg: Tensor, count: int) -> Tensor:
            log_batch = log_mean_exp(neg, count)
            if not self.training:
                return pos.mean() - log_batch
            # The gradient of e^{log_batch - log M} is E_neg[e^T dT] / M. It cannot overflow: M holds the batch.
            ratio = (log_batch - self._update(log_batch.detach())).exp()
            return pos.mean() - (log_batch.detach() + ratio - ratio.detach())

        return pooled(formula, scores, positives)

    @torch.no_grad()
    def _update(self, log_batch: Tensor) -> Tensor:
        old = self.log_mean.to(log_batch)
        log_decay = math.log(self.decay) if self.decay else -math.inf
        new = torch.logaddexp(old + log_decay, log_batch + math.log1p(-self.decay))
        new = torch.where(old == -math.inf, log_batch, new)
        self.log_mean.copy_(torch.where(log_batch.isfinite(), new, old))  # a bad batch, refused later, leaves no trace
        return new


@dataclass(frozen=True)
class Estimate:
    """A lower bound on mutual information read on pairs that the critic was not trained on; nats.

    Args:
        value: the bound.
        low: lower end of the 95 % interval.
        high: upper end. The interval says how far `value` is known from `n` pairs for the critic at hand; how far the
            critic falls short of the best one it does not say.
        n: held-out pairs.
        train: the same bound on pairs of training (at most 2,000), optimistic.
        ceiling: log N of the N pairs that are set against each other; no estimate far above it can be trusted
            (McAllester and Stratos 2020), and infonce cannot exceed it.
        ess: how many of a row's N - 1 negatives the mean of e^T rests on, (sum w)^2 / sum w^2 / N with w = e^T.
        reasons: why the value should not be relied on; empty where nothing was found.
    """

    value: float
    low: float
    high: float
    n: int
    train: float
    ceiling: float
    ess: float
    reasons: tuple[str, ...] = ()

    @property
    def reliable(self) -> bool:
        """No reason against the value was found."""
        return not self.reasons

    @property
    def gap(self) -> float:
        """train - value."""
        return self.train - self.value

    def __str__(self) -> str:
        note = "" if self.reliable else " (not reliable: " + "; ".join(self.reasons) + ")"
        return f"{self.value:.3f} nats [{self.low:.3f}, {self.high:.3f}]{note}"


class Point(NamedTuple):
    """One point of the training curve: the bound in nats, on the batches since the last point and on validation."""

    critic: str
    step: int
    train: float
    validation: float


class MutualInformation:
    """A lower bound on I(x; y) from samples: trains a critic on one part, reads the bound on another.

    The pairs are split at random in three: training, validation (a fifth, at most 1,000; it says when to stop and, with
    `auto`, which critic) and held-out pairs, seen by neither. Only the last give the value, so that neither training
    nor the choice of the step makes it optimistic.

    The interval is a delete-a-group jackknife over 20 groups of held-out pairs, with Student's quantile. (A bootstrap
    would draw pairs twice, and a pair's copy is a false negative to it.) Pairs are taken as independent.

    Margins are sent to a normal shape by their ranks in the training part (`uniformize`), which leaves mutual
    information as it is and takes away heavy tails and scales.

    Args:
        bound: `infonce`, `dv`, `mine`, `nwj`, `tuba`, `smile`, `interpolated`, as the functions of these names; `tuba`
            and `interpolated` learn log a(y). `smile` trains on `jsd` and reads `smile` (Song and Ermon 2020); `jsd`
            trains on `jsd`, which bounds no mutual information, and reads `nwj` at 1 + T.
        critic: `separable`, the log-ratio of the normal distribution with the same significant canonical correlations
            plus g(x) . h(y) of two perceptrons: many dimensions, smooth dependence; `concat`, a perceptron on [x; y]:
            few dimensions, sharp edges; `auto` trains both and keeps the better one on validation; or a module that
            gives scores (n, m) from x (n, ...) and y (m, ...): a copy of it is trained.
        preprocess: `uniformize`, `standardize` (mean and deviation of the training part) or None.
        hidden: widths of the hidden layers; None takes (64, 64, 64) for separable, (32, 16, 16) for concat.
        steps: at most so many steps of Adam for each critic; it stops after 300 without a better validation value.
        lr: Adam's learning rate; None takes 0.003, for concat 0.01.
        batch_size: None takes 128, for concat 64.
        held_out: share of the pairs that gives the value, in [0.1, 0.7]; at most 20,000 are used.
        seed: of the split, the start and the batches. Same seed, same value; torch's own generator is left as it was.

    Attributes:
        history: list of `Point`, the curves of all critics that were trained.
        critic_name: the critic that was kept.

    Raises:
        ValueError: an option out of range.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(1000, 2))
        >>> y = x**3 + np.random.default_rng(1).normal(size=(1000, 2))
        >>> found = MutualInformation(critic="separable").fit(x, y).estimate(x, y)
        >>> found.n, found.low > 0.5
        (300, True)
    """

    def __init__(
        self,
        bound: BoundName = "infonce",
        critic: CriticName | nn.Module = "auto",
        *,
        preprocess: Preprocess | None = "uniformize",
        hidden: Sequence[int] | None = None,
        steps: int = 1500,
        lr: float | None = None,
        batch_size: int | None = None,
        held_out: float = 0.3,
        seed: int = 0,
    ) -> None:
        if bound not in get_args(BoundName):
            raise ValueError(f"bound must be one of {', '.join(get_args(BoundName))}, got {bound!r}")
        if not isinstance(critic, nn.Module) and critic not in ("auto", *_DEFAULTS):
            raise ValueError(f"critic must be 'auto', 'separable', 'concat' or a torch.nn.Module, got {critic!r}")
        if preprocess not in ("uniformize", "standardize", None):
            raise ValueError(f"preprocess must be 'uniformize', 'standardize' or None, got {preprocess!r}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if lr is not None and not 0 < lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0 or None, got {lr}")
        if batch_size is not None and batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 or None, got {batch_size}")
        if not 0.1 <= held_out <= 0.7:
            raise ValueError(f"held_out must be in [0.1, 0.7], got {held_out}")
        if hidden is not None and (not hidden or min(hidden) < 1):
            raise ValueError(f"hidden must name at least one layer of width 1 or more, got {hidden!r}")
        self.bound: BoundName = bound
        self.critic: CriticName | nn.Module = critic
        self.preprocess: Preprocess | None = preprocess
        self.hidden, self.steps, self.lr, self.batch_size = hidden, steps, lr, batch_size
        self.held_out, self.seed = held_out, seed
        self.history: list[Point] = []
        self.critic_name = ""
        self._state: _Fitted | None = None

    def fit(self, x: Array, y: Array) -> "MutualInformation":
        """Train the critic on one part of the pairs (x[i], y[i]).

        Args:
            x: (n, d) or (n,), n >= 100; integers and booleans are taken as numbers. With a critic of your own and
                preprocess None any shape (n, ...). Tensors on a GPU are trained there.
            y: (n, e) or (n,).

        Raises:
            ValueError: lengths that differ, fewer than 100 pairs, NaN or infinite values, constant columns, or shapes
                or dtypes that do not fit.
        """
        whole = self._read("x", x), self._read("y", y)
        n = len(whole[0])
        if len(whole[1]) != n:
            raise ValueError(f"y must have as many rows as x, {n}, got {len(whole[1])}")
        if n < 100:
            raise ValueError(f"x and y must have at least 100 rows, got {n}")
        for name, value in zip("xy", whole, strict=True):
            constant = (value == value[0]).all(0)
            # of images some pixels never change; of a table a constant column is a mistake
            if bool(constant.all() if value.ndim > 2 else constant.any()):
                columns = [int(k) for k in constant.nonzero()[:10, 0]] if value.ndim == 2 else "all"
                raise ValueError(f"{name} must have no constant columns, which carry no information, got {columns}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        n_test, n_validation = min(round(n * self.held_out), 10 * BLOCK), min(n // 5, 1000)
        test, validation, train = order[:n_test], order[n_test : n_test + n_validation], order[n_test + n_validation :]
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        margins = _Margins(whole[0][train], self.preprocess), _Margins(whole[1][train], self.preprocess)

        def part(rows: Tensor) -> tuple[Tensor, Tensor]:
            a, b = (margin(value[rows]).to(device) for margin, value in zip(margins, whole, strict=True))
            return a, b

        train_set, validation_set = part(train), part(validation)
        names = ("separable", "concat") if self.critic == "auto" else (self.critic,)
        self.history, best = [], -math.inf
        kept: _Net | None = None
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),  # pyright: ignore[reportUnknownMemberType]
            torch.enable_grad(),
        ):
            for name in names:
                torch.manual_seed(self.seed)  # pyright: ignore[reportUnknownMemberType]
                net, value = self._train(name, train_set, validation_set)
                if kept is None or value > best:
                    kept, best = net, value
                    self.critic_name = name if isinstance(name, str) else type(name).__name__
        assert kept is not None
        on_train = _value(kept, train_set[0][:BLOCK], train_set[1][:BLOCK]).item()
        heavy = [_heavy(name, value) for name, value in zip("xy", whole, strict=True) if value.ndim <= 2]
        self._state = _Fitted(kept, margins, whole, test, device, on_train, [h for h in heavy if h])
        return self

    def estimate(self, x: Array | None = None, y: Array | None = None) -> Estimate:
        """The bound on pairs that the critic was not trained on, with its 95 % interval.

        Without arguments, or with the very arrays that were fitted (equal in value), only the pairs that `fit` held out
        are used. Other arrays are used whole: they must be new samples of the same distribution, not some of the rows
        that were fitted.

        Args:
            x: (m, d) or (m,), m >= 20, or None.
            y: (m, e) or (m,), or None.

        Raises:
            ValueError: `fit` was not called, only one of the two is given, or arrays that do not fit.
        """
        fitted = self._state
        if fitted is None:
            raise ValueError("estimate needs a trained critic: call fit(x, y) first")
        if (x is None) != (y is None):
            raise ValueError("x and y must both be given, or neither")
        given = fitted.whole if x is None or y is None else (self._read("x", x), self._read("y", y))
        for name, a, b in zip("xy", given, fitted.whole, strict=True):
            if a.shape[1:] != b.shape[1:]:
                raise ValueError(
                    f"{name} must have rows of shape {tuple(b.shape[1:])}, as fitted, got {tuple(a.shape[1:])}"
                )
        if len(given[0]) != len(given[1]):
            raise ValueError(f"y must have as many rows as x, {len(given[0])}, got {len(given[1])}")
        if len(given[0]) < 20:
            raise ValueError(f"x and y must have at least 20 rows, got {len(given[0])}")
        if all(torch.equal(a, b) for a, b in zip(given, fitted.whole, strict=True)):
            rows = fitted.test
        else:  # shuffled: blocks of sorted arrays would not be samples of the distribution
            rows = torch.randperm(len(given[0]), generator=torch.Generator().manual_seed(self.seed))
        a, b = (m(value[rows]).to(fitted.device) for m, value in zip(fitted.margins, given, strict=True))
        blocks = [_Block.read(fitted.net, *block) for block in _blocks((a, b), BLOCK)]
        value = float(np.mean([block.value for block in blocks]))
        error = math.sqrt(float(np.mean([block.variance for block in blocks])) / len(blocks))
        ess, ceiling = float(np.mean([block.ess for block in blocks])), math.log(min(block.n for block in blocks))
        low, high = value - T_QUANTILE * error, value + T_QUANTILE * error
        if not math.isfinite(value + error):
            low, high = -math.inf, math.inf
        reasons = list(fitted.heavy)
        if not math.isfinite(value):
            reasons.append("the held-out bound is not finite")
        elif high < 0:
            reasons.append("the held-out bound is below 0, worse than no critic")
        if value > ceiling - 1:
            reasons.append(f"within 1 nat of the ceiling log N = {ceiling:.2f}")
        if ess < 5:
            reasons.append(f"the mean of e^T rests on {ess:.1f} of a row's negatives")
        if fitted.train - value > 0.1 + 2 * error:
            reasons.append(f"{fitted.train - value:.2f} nats lower than on the training pairs")
        return Estimate(value, low, high, len(a), fitted.train, ceiling, ess, tuple(reasons))

    def _read(self, name: str, value: Array) -> Tensor:
        """The array as float64 on the CPU, (n, d); with a critic of one's own and no preprocessing any (n, ...)."""
        try:
            table = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
        if table.is_complex():
            raise ValueError(f"{name} must be real, got {table.dtype}")
        table = table[:, None] if table.ndim == 1 else table
        any_shape = isinstance(self.critic, nn.Module) and self.preprocess is None
        if table.ndim < 2 or (table.ndim > 2 and not any_shape) or 0 in table.shape[1:]:
            allowed = "(n, ...)" if any_shape else "(n,) or (n, d)"
            raise ValueError(f"{name} must have shape {allowed}, got {tuple(table.shape)}")
        table = table.double()
        if not bool(torch.isfinite(table).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
        return table

    def _train(
        self, critic: str | nn.Module, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
    ) -> tuple["_Net", float]:
        """The averaged weights at the step with the best validation value, and that value."""
        name = critic if isinstance(critic, str) else "separable"
        default = _DEFAULTS[name]
        hidden = self.hidden or default.hidden
        x, y = train
        if isinstance(critic, nn.Module):
            module = copy.deepcopy(critic)
        elif critic == "separable":
            module = _Separable(x, y, hidden)
        else:
            module = Concat(x.shape[1], y.shape[1], hidden)
        net = _Net(self.bound, module, y).to(x.device)
        batch = min(self.batch_size or default.batch_size, len(x))
        # The moving average of the weights is what is kept: at a constant rate it does what a schedule would.
        average: Any = get_ema_multi_avg_fn(0.99)  # pyright: ignore[reportUnknownVariableType]
        averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        parameters = list(net.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.lr or default.lr, weight_decay=0.01)
        net_averaged = cast(_Net, averaged.module)
        blocks = list(_blocks(validation, 250))

        def validate() -> float:
            return float(np.mean([_value(net_averaged, *block).item() for block in blocks]))

        best, best_step, kept = validate(), 0, copy.deepcopy(net_averaged)
        label = critic if isinstance(critic, str) else type(critic).__name__
        self.history.append(Point(label, 0, math.nan, best))
        order, since = torch.empty(0, dtype=torch.long), list[float]()
        for step in range(1, self.steps + 1):
            if len(order) < batch:
                order = torch.randperm(len(x)).to(x.device)
            rows, order = order[:batch], order[batch:]
            net.train()
            loss = -net.objective(x[rows], y[rows])
            optimizer.zero_grad()
            if not math.isfinite(loss.item()):
                break  # an unbounded e^T: the best weights so far are kept
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, 10.0))):
                break
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
            averaged.update_parameters(net)
            since.append(-loss.item())
            if step % 50 == 0 or step == self.steps:
                value = validate()
                self.history.append(Point(label, step, float(np.mean(since)), value))
                since.clear()
                if value > best:
                    best, best_step, kept = value, step, copy.deepcopy(net_averaged)
                elif step - best_step >= 300:
                    break
        return kept.eval(), best


# ------------------------------------------------------------------------------------------------------------- pieces

T_QUANTILE = 2.0930240544
"""Student's 97.5 % quantile at GROUPS - 1 = 19 degrees of freedom."""


class _Defaults(NamedTuple):
    hidden: tuple[int, ...]
    lr: float
    batch_size: int


_DEFAULTS = {"separable": _Defaults((64, 64, 64), 3e-3, 128), "concat": _Defaults((32, 16, 16), 1e-2, 64)}
_RANK = 32  # of the learnt part of the separable critic


class _Fitted(NamedTuple):
    net: "_Net"
    margins: tuple["_Margins", "_Margins"]
    whole: tuple[Tensor, Tensor]
    test: Tensor
    device: torch.device
    train: float
    heavy: list[str]


class _Net(nn.Module):
    """A critic with what its bound asks for: scale and bias where a shift matters, log a(y), MINE's average."""

    def __init__(self, bound: BoundName, critic: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.bound: BoundName = bound
        self.critic = critic
        self.mine = MINE() if bound == "mine" else None
        self.log_baseline = _perceptron(y[0].numel(), (64,), 1) if bound in ("tuba", "interpolated") else None
        if self.log_baseline is not None:
            _zero(self.log_baseline)
        shifts = bound not in ("infonce", "dv", "mine")
        self.log_scale = nn.Parameter(torch.zeros(())) if shifts else None
        # the best critic of nwj is 1 + log-ratio, of the others the log-ratio
        self.bias = nn.Parameter(torch.tensor(float(bound == "nwj"))) if shifts else None

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (n, m) and log a(y), (m,) or None."""
        f = self.critic(x, y)
        if not isinstance(f, Tensor) or f.shape != (len(x), len(y)):
            got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise ValueError(f"critic must give scores of shape {(len(x), len(y))}, got {got}")
        if self.log_scale is not None and self.bias is not None:
            f = f * self.log_scale.exp() + self.bias
        return f, None if self.log_baseline is None else self.log_baseline(y.flatten(1))[:, 0]

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        f, log_a = self(x, y)
        if self.mine is not None:
            return self.mine(f)
        return jsd(f) if self.bound in ("smile", "jsd") else self.read(f, log_a)

    def read(self, f: Tensor, log_a: Tensor | None) -> Tensor:
        """The bound whose value is reported."""
        if log_a is not None:
            return (tuba if self.bound == "tuba" else interpolated)(f, log_baseline=log_a)
        if self.bound == "infonce":
            return infonce(f)
        if self.bound == "smile":
            return smile(f)
        if self.bound in ("nwj", "jsd"):  # jsd's best critic is the log-ratio, nwj's 1 + log-ratio
            return nwj(f + 1 if self.bound == "jsd" else f)
        return dv(f)


class _Normal(nn.Module):
    """The log-ratio of a normal distribution with the canonical correlations of x and y that stand out of the noise.

    log r = sum_k -1/2 log(1 - r_k^2) - ( r_k^2 (u_k^2 + v_k^2) - 2 r_k u_k v_k ) / (2 (1 - r_k^2)), u = A x, v = B y.
    Of n independent x and y the squared sample correlations reach up to an edge above 0, known where d / n and e / n
    are not small (Wachter 1980); what lies below it (+ 10 %) is dropped, else d e spurious terms would add up.
    """

    a: Tensor
    b: Tensor
    r: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        x, y = x.double().cpu(), y.double().cpu()
        n = len(x)
        x, y = x - x.mean(0), y - y.mean(0)
        white_x, white_y = _whitening(x), _whitening(y)
        linalg: Any = torch.linalg
        svd: tuple[Tensor, Tensor, Tensor] = linalg.svd(white_x.T @ (x.T @ y / n) @ white_y, full_matrices=False)
        left, r, right = svd
        p, q = min(x.shape[1] / n, 1.0), min(y.shape[1] / n, 1.0)
        edge = (math.sqrt(p * (1 - q)) + math.sqrt(q * (1 - p))) ** 2 if p + q < 1 else 1.0
        keep = r**2 > 1.1 * edge
        self.register_buffer("a", (white_x @ left)[:, keep].float())
        self.register_buffer("b", (white_y @ right.T)[:, keep].float())
        self.register_buffer("r", r[keep].clamp(max=0.9999).float())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = x @ self.a, y @ self.b
        rest = 1 - self.r**2
        square = self.r**2 / rest
        alone = -(u**2 @ square)[:, None] / 2 - (v**2 @ square) / 2 - rest.log().sum() / 2
        return (u * (self.r / rest)) @ v.T + alone


def _whitening(z: Tensor) -> Tensor:
    """W with W^T S W = 1 on the directions in which z varies."""
    linalg: Any = torch.linalg
    eigh: tuple[Tensor, Tensor] = linalg.eigh(z.T @ z / len(z))
    values, vectors = eigh
    varies = values > 1e-8 * values.max().clamp(min=1e-300)
    return vectors[:, varies] / values[varies].sqrt()


class _Separable(nn.Module):
    """`_Normal` plus g(x) . h(y) / sqrt(rank), which starts at 0."""

    def __init__(self, x: Tensor, y: Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        self.normal = _Normal(x, y)
        self.of_x = _perceptron(x.shape[1], hidden, _RANK)
        self.of_y = _perceptron(y.shape[1], hidden, _RANK)
        _zero(self.of_y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.normal(x, y) + separable(self.of_x(x), self.of_y(y), temperature=_RANK**0.5)


def _perceptron(width: int, hidden: Sequence[int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((width, *hidden)):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear((width, *hidden)[-1], out))


def _zero(net: nn.Sequential) -> None:
    for parameter in net[-1].parameters():
        nn.init.zeros_(parameter)


class _Margins:
    """Each column on its own, by what the training rows say."""

    def __init__(self, train: Tensor, kind: Preprocess | None) -> None:
        self.kind = kind
        if kind == "uniformize":
            self.sorted = train.T.contiguous().sort(1).values
        elif kind == "standardize":
            self.mean, deviation = train.mean(0), train.std(0, correction=0)
            self.deviation = torch.where(deviation > 0, deviation, 1.0)

    def __call__(self, value: Tensor) -> Tensor:
        if self.kind == "uniformize":
            n, columns = self.sorted.shape[1], value.T.contiguous()
            ranks = torch.searchsorted(self.sorted, columns) + torch.searchsorted(self.sorted, columns, right=True)
            special: Any = torch.special
            normal: Tensor = special.ndtri((ranks / (2 * n)).clamp(0.5 / n, 1 - 0.5 / n))
            value = normal.T
        elif self.kind == "standardize":
            value = (value - self.mean) / self.deviation
        return value.float().contiguous()


class _Block(NamedTuple):
    n: int
    value: float
    variance: float
    ess: float

    @classmethod
    @torch.no_grad()
    def read(cls, net: _Net, x: Tensor, y: Tensor) -> "_Block":
        f, log_a = _scores(net, x, y)
        value, n = net.read(f, log_a).item(), len(x)
        left_out: list[float] = []
        for g in range(GROUPS):
            keep = torch.arange(n, device=x.device) % GROUPS != g
            left_out.append(net.read(f[keep][:, keep], None if log_a is None else log_a[keep]).item())
        variance = (GROUPS - 1) * float(np.var(left_out)) if np.isfinite(left_out).all() else math.inf
        # infonce lets a row's scores be shifted, so that a row has its own weights
        off = ~torch.eye(n, dtype=torch.bool, device=x.device)
        f = f.double().masked_fill(~off, -math.inf)
        f = f.log_softmax(1) if net.bound == "infonce" else f
        ess = (2 * f.flatten().logsumexp(0) - (2 * f).flatten().logsumexp(0)).exp().item() / n
        return cls(n, value, variance, ess)


@torch.no_grad()
def _scores(net: _Net, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """All scores in tiles of rows: a joint critic holds a hidden layer for each pair."""
    net.eval()
    size = max(1, 2**17 // len(y))
    tiles: list[tuple[Tensor, Tensor | None]] = [net(x[i : i + size], y) for i in range(0, len(x), size)]
    return torch.cat([f for f, _ in tiles]), tiles[0][1]


@torch.no_grad()
def _value(net: _Net, x: Tensor, y: Tensor) -> Tensor:
    return net.read(*_scores(net, x, y))


def _blocks(rows: tuple[Tensor, Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of nearly equal length, at most `size`."""
    count = -(-len(rows[0]) // size)
    yield from zip(rows[0].tensor_split(count), rows[1].tensor_split(count), strict=True)


def _heavy(name: str, value: Tensor) -> str | None:
    """Whether one sample holds much of a column's variance, as in samples of a distribution that has none."""
    n = len(value)
    squares = (value - value.mean(0)) ** 2
    share, column = (squares.max(0).values / squares.sum(0)).max(0)
    if share.item() <= 0.1 + 4 * math.log(n) / n:  # normal samples: about 2 log(n) / n
        return None
    return f"heavy-tailed input: one sample holds {share.item():.0%} of the variance of {name}[:, {int(column)}]"
