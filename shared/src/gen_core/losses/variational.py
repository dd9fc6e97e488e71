"""Terms of variational objectives, in nats: sums over the pixels or latent dimensions of a sample, means over samples.

So a sum of them is a true bound per sample, and any weight is the caller's. Divergences and negative log-likelihoods
are to minimise; `iwae_bound` is to maximise.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gen_core._checks import Reduction, finite, floating, not_negative, positive, reduced, softplus, within

# ----------------------------------------------------------------------------------------------------- divergences


def kl_standard_normal(mean: Tensor, log_variance: Tensor, reduction: Reduction = "mean") -> Tensor:
    """KL( N(mean, exp(log_variance)) || N(0, I) ) of diagonal Gaussians (Kingma and Welling 2014, appendix B).

    KL_i = 1/2 sum_k ( mean_ik^2 + exp(log_variance_ik) - 1 - log_variance_ik ).

    Args:
        mean: (..., D) floating.
        log_variance: the shape of `mean`; log sigma^2, not log sigma.
        reduction: `mean` or `sum` over the leading dimensions, or `none`; the D latent dimensions are always summed.

    Returns:
        Nats, a scalar or (...) for `none`.

    Raises:
        ValueError: shapes differ, NaN or infinite input, unknown reduction.

    Examples:
        >>> import torch
        >>> kl_standard_normal(torch.ones(2, 3), torch.zeros(2, 3)).item()
        1.5
    """
    mu, log_var = _gaussian("mean", mean, "log_variance", log_variance)
    kl = 0.5 * (mu.square() + log_var.expm1() - log_var).sum(-1)
    return finite(reduced(kl, reduction), mean=mean, log_variance=log_variance)


def kl_diagonal(
    mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """KL( N(mean_q, exp(log_variance_q)) || N(mean_p, exp(log_variance_p)) ) of diagonal Gaussians.

    KL_i = 1/2 sum_k ( exp(d_ik) - 1 - d_ik + (mean_q - mean_p)_ik^2 / exp(log_variance_p)_ik ), d = log_variance_q -
    log_variance_p; exactly 0 where q is p. Both sides get a gradient. Nothing is clamped: it is large where the
    variance of p is small.

    A KL per latent dimension, as `free_bits` wants it, is the one of `x.unsqueeze(-1)` for each argument; the matrix
    over pairs (n, 1, D) against (1, m, D) is that of `torch.broadcast_tensors` of them.

    Args:
        mean_q: (..., D) floating.
        log_variance_q: the shape of `mean_q`, as all four; log sigma^2, not log sigma.
        mean_p: a prior (D,) is expanded by the caller.
        log_variance_p: of p.
        reduction: `mean` or `sum` over the leading dimensions, or `none`; the D latent dimensions are always summed.

    Returns:
        Nats, a scalar or (...) for `none`.

    Raises:
        ValueError: shapes differ, NaN or infinite input, unknown reduction.

    Examples:
        >>> zero, one = torch.zeros(2, 3), torch.ones(2, 3)
        >>> kl_diagonal(one, zero, zero, zero).item()
        1.5
    """
    mu_q, log_q = _gaussian("mean_q", mean_q, "log_variance_q", log_variance_q)
    mu_p, log_p = _gaussian("mean_p", mean_p, "log_variance_p", log_variance_p)
    if mu_p.shape != mu_q.shape:
        raise ValueError(f"mean_p must have the shape of mean_q, {tuple(mu_q.shape)}, got {tuple(mu_p.shape)}")
    d = log_q - log_p
    kl = 0.5 * (d.expm1() - d + (mu_q - mu_p).square() * (-log_p).exp()).sum(-1)
    given = {"mean_q": mean_q, "log_variance_q": log_variance_q, "mean_p": mean_p, "log_variance_p": log_variance_p}
    return finite(reduced(kl, reduction), **given)


def free_bits(kl: Tensor, floor: float, over: Literal["batch", "sample", "total"] = "batch") -> Tensor:
    """A KL with a floor below which it costs the same and gets no gradient (Kingma et al. 2016, free bits).

    | over | value | where the gradient is 0 |
    |---|---|---|
    | `batch`, the paper's | sum_k max( floor, mean_b KL_bk ) | in a group, for all samples, if its mean is lower |
    | `sample` | mean_b sum_k max( floor, KL_bk ) | in each entry that is lower |
    | `total` | mean_b max( K floor, sum_k KL_bk ) | in all groups of a sample whose sum is lower |

    Args:
        kl: (N, K) nats, one KL a sample and group of latents (or latent dimension, see `kl_diagonal`).
        floor: nats a group, >= 0.
        over: what the floor holds for.

    Returns:
        Nats, a scalar: a sum over groups and a mean over samples.

    Raises:
        ValueError: kl is no floating matrix, is NaN or infinite; floor or over is out of range.

    Examples:
        >>> kl = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
        >>> [free_bits(kl, 1.0, over).item() for over in ("batch", "sample", "total")]
        [3.0, 3.0, 2.5]
    """
    value = floating("kl", kl, 2)
    not_negative("floor", floor)
    if over == "batch":
        result = value.mean(0).clamp(min=floor).sum()
    elif over == "sample":
        result = value.clamp(min=floor).sum(1).mean()
    elif over == "total":
        result = value.sum(1).clamp(min=floor * value.shape[1]).mean()
    else:
        raise ValueError(f"over must be 'batch', 'sample' or 'total', got {over!r}")
    return finite(result, kl=kl)


def kl_balance(kl: Tensor, size: Sequence[float]) -> Tensor:
    """The KL of a hierarchy with coefficients that keep all groups in use during warm-up (Vahdat and Kautz 2020, NVAE).

    mean_b sum_l g_l KL_bl, g_l proportional to ( mean_b |KL_bl| + 0.01 ) / size_l, mean_l g_l = 1, and g is a constant
    for the gradient: a group that carries little is charged little. NVAE balances only while the weight of the KL is
    below 1; afterwards its KL is the plain sum. Form and the 0.01 are those of its released code.

    Args:
        kl: (N, L) nats, one KL a sample and group.
        size: L numbers > 0, the groups' relative sizes. NVAE's is 4^s / (number of groups of scale s), s = 0 at the
            coarsest.

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: kl is no floating matrix, is NaN or infinite; size does not fit or is not above 0.

    Examples:
        >>> f"{kl_balance(torch.tensor([[0.99, 2.99]]), [1, 1]).item():.4f}"  # 0.5 x 0.99 + 1.5 x 2.99
        '4.9800'
    """
    value = floating("kl", kl, 2)
    if len(size) != value.shape[1]:
        raise ValueError(f"size must hold {value.shape[1]} numbers, one a column of kl, got {len(size)}")
    for one in size:
        positive("size", one)
    share = (value.detach().abs().mean(0) + 0.01) / value.new_tensor(size)
    return finite((value * (share / share.mean())).sum(1).mean(), kl=kl)


class TotalCorrelation(NamedTuple):
    """The three parts of the aggregate KL, in nats; they add up to mean log q(z|x) - log p(z)."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def total_correlation_terms(
    z: Tensor, mean: Tensor, log_variance: Tensor, dataset_size: int | None = None
) -> TotalCorrelation:
    """beta-TCVAE's parts of the KL to N(0, I), from a minibatch (Chen et al. 2018, eq. 2 and 3).

    I(x; z) = mean_i [ log q(z_i|x_i) - log q(z_i) ], TC = mean_i [ log q(z_i) - sum_k log q(z_ik) ], KL_dim = mean_i
    sum_k [ log q(z_ik) - log p(z_ik) ], where the aggregate is log q(z_i) ~ logsumexp_j log q(z_i|x_j) - log N, or
    - log(N N_d) with the size of the data set (minibatch weighted sampling): this adds log N_d to the first part,
    (D - 1) log N_d to the second and -D log N_d to the third, and changes neither their sum nor any gradient.

    Biased: compare values at one N and N_d only. Memory O(N^2 D).

    Args:
        z: (N, D) samples, z_i ~ q(z|x_i), N >= 2.
        mean: (N, D), of q(z|x_i).
        log_variance: (N, D), log sigma^2.
        dataset_size: N_d >= N; None for the batch's own aggregate, whose parts are at their natural level.

    Returns:
        Nats, three scalars.

    Raises:
        ValueError: shapes differ, one row, a data set smaller than the batch, NaN or infinite input.

    Examples:
        >>> mean = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])  # two codes that never meet: log 2 nats
        >>> parts = total_correlation_terms(mean, mean, torch.zeros(2, 2))
        >>> f"{parts.mutual_information.item():.4f}"
        '0.6931'
    """
    mu, log_var = _gaussian("mean", mean, "log_variance", log_variance)
    at = floating("z", z, 2)
    if at.shape != mu.shape:
        raise ValueError(f"mean must have the shape of z, {tuple(at.shape)}, got {tuple(mu.shape)}")
    n = len(at)
    if n < 2:
        raise ValueError("z must have at least 2 rows, got 1: there is no aggregate")
    if dataset_size is not None and dataset_size < n:
        raise ValueError(f"dataset_size must be at least the {n} rows of z, got {dataset_size}")
    log_count = math.log(n) + (0.0 if dataset_size is None else math.log(dataset_size))
    pairs = -_normal_nll(mu, at[:, None], log_var)  # [i, j, k] = log q(z_ik | x_j)
    joint = pairs.sum(2)
    log_qz = joint.logsumexp(1) - log_count
    log_dims = (pairs.logsumexp(1) - log_count).sum(1)
    log_prior = -0.5 * (at.square() + math.log(2 * math.pi)).sum(1)
    terms = torch.stack([joint.diagonal() - log_qz, log_qz - log_dims, log_dims - log_prior]).mean(1)
    return TotalCorrelation(*finite(terms, z=z, mean=mean, log_variance=log_variance).unbind())


# ---------------------------------------------------------------------------------------------------------- bounds


def iwae_bound(log_weights: Tensor, dim: int = 0) -> Tensor:
    """The importance-weighted bound on log p(x) (Burda et al. 2016, eq. 8): mean_b [ logsumexp_k w_kb - log K ].

    w_kb = log p(x_b, z_kb) - log q(z_kb|x_b). At K = 1 it is the ELBO; it never falls with K, in expectation. With a K
    of thousands it estimates log p(x). Of weights that are all equal it is that weight.

    Args:
        log_weights: (K, N) nats, K samples of each data point; of any other shape `dim` holds the samples. -inf is an
            impossible sample.
        dim: where the K samples are.

    Returns:
        Nats, a scalar to maximise.

    Raises:
        ValueError: not floating, empty, NaN or infinite (but -inf); no such dimension.

    Examples:
        >>> f"{iwae_bound(torch.tensor([[-1.0, -2.0], [-1.0, -4.0]])).item():.4f}"
        '-1.7831'
    """
    weights = floating("log_weights", log_weights)
    if not -weights.ndim <= dim < weights.ndim:
        raise ValueError(f"dim must be a dimension of log_weights, {tuple(weights.shape)}, got {dim}")
    bound = (weights.logsumexp(dim) - math.log(weights.shape[dim])).mean()
    return finite(bound, log_weights=log_weights)


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Nats of a whole sample as bits a dimension: nats / (dims log 2).

    Only of a likelihood of the discrete pixel values (`discretized_logistic_mixture_nll`) is it comparable with the
    published figures; of a density of pixels scaled by s it lacks log2 s.

    Args:
        nats: any shape, nats a sample.
        dims: pixels times channels of one sample, > 0.

    Returns:
        The shape of `nats`.

    Raises:
        ValueError: nats is not floating, NaN or infinite; dims is below 1.

    Examples:
        >>> f"{bits_per_dim(torch.tensor(6655.4), 3 * 32 * 32).item():.3f}"
        '3.126'
    """
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    return finite(floating("nats", nats) / (dims * math.log(2)), nats=nats)


# ----------------------------------------------------------------------------------------------------- likelihoods


def bernoulli_nll(logits: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """-log p(x) of independent Bernoulli pixels: sum over pixels of softplus(l) - l x.

    Of targets between 0 and 1 it is the cross-entropy, no likelihood: binarise them for nats that compare.

    Args:
        logits: (N, ...) floating; the mean image is sigmoid(logits).
        target: the shape of `logits`, in [0, 1]. On a GPU, where the look would wait for the device, the range is
            checked only under `torch.autograd.detect_anomaly()`.
        reduction: `mean` or `sum` over the N samples, or `none`; all other dimensions are always summed.

    Returns:
        Nats, a scalar or (N,) for `none`.

    Raises:
        ValueError: shapes differ, target outside [0, 1], NaN or infinite input, unknown reduction.

    Examples:
        >>> f"{bernoulli_nll(torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28)).item():.3f}"  # 784 log 2
        '543.427'
    """
    score, x = _pixels("logits", logits, "target", target)
    within("target", x, 0.0, 1.0)
    return finite(reduced(_per_sample(softplus(score) - score * x), reduction), logits=logits, target=target)


def gaussian_nll(
    mean: Tensor, target: Tensor, log_variance: Tensor | float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """-log N(x; mean, exp(log_variance)) of independent pixels: sum of 1/2 ( (x - mean)^2 / s^2 + log s^2 + log 2 pi ).

    With the default, s = 1, it is half the squared error summed over pixels plus (P/2) log 2 pi. A mean over pixels
    instead would weigh the KL beside it by the number of pixels.

    Args:
        mean: (N, ...) floating.
        target: the shape of `mean`.
        log_variance: log s^2; a number (of a fixed deviation s: `2 * math.log(s)`), a tensor with one element (learnt),
            or one of the shape of `mean`.
        reduction: `mean` or `sum` over the N samples, or `none`; all other dimensions are always summed.

    Returns:
        Nats, a scalar or (N,) for `none`; it can be negative, as the log of a density.

    Raises:
        ValueError: shapes differ, NaN or infinite input, unknown reduction.

    Examples:
        >>> f"{gaussian_nll(torch.zeros(2, 4), torch.ones(2, 4), 2 * math.log(0.5)).item():.4f}"
        '8.9032'
    """
    mu, x = _pixels("mean", mean, "target", target)
    if isinstance(log_variance, Tensor):
        log_var = floating("log_variance", log_variance)
        if log_var.shape != mu.shape and log_var.numel() != 1:
            shapes = f"{tuple(mu.shape)}, got {tuple(log_var.shape)}"
            raise ValueError(f"log_variance must be one number or have the shape of mean, {shapes}")
        log_var = log_var if log_var.shape == mu.shape else log_var.reshape(())
    else:
        if not math.isfinite(log_variance):
            raise ValueError(f"log_variance must be finite, got {log_variance}")
        log_var = mu.new_tensor(log_variance)
    nll = _per_sample(_normal_nll(mu, x, log_var))
    return finite(reduced(nll, reduction), mean=mean, target=target, log_variance=log_variance)


def discretized_logistic_mixture_nll(
    parameters: Tensor, target: Tensor, bins: int = 256, reduction: Reduction = "mean"
) -> Tensor:
    """-log p(x) of pixels on a grid, a mixture of M discretised logistics (Salimans et al. 2017, PixelCNN++, eq. 1-3).

    P(x) = sum_m pi_m [ sigmoid((x + h - mu_m) / s_m) - sigmoid((x - h - mu_m) / s_m) ], h = 1 / (bins - 1), where the
    lowest bin reaches to -inf and the highest to +inf: the P of all `bins` values sum to 1. With three channels the
    component m is shared by the channels of a pixel, and the means of green and blue move with the *observed* channels
    before them: mu_g + a r, mu_b + b r + c g, (a, b, c) = tanh of three more parameters.

    The log of the difference is computed as log sigmoid(u) + log sigmoid(-v) + log(1 - e^{v - u}) (u, v the two
    arguments), which is exact at any distance from the mean, so that none of the paper's floors on the probability is
    needed. As in the paper's code, log s is at least -7 and gets no gradient below.

    Args:
        parameters: (N, K, ...), K = 3 M for one channel and 10 M for three. In blocks along dimension 1: M logits of
            pi; then, channel after channel, M means each; M values of log s each; and for three channels M values each
            of a, b, c.
        target: (N, C, ...), C = 1 or 3, with the trailing dimensions of `parameters`; the values -1 + 2 k / (bins - 1),
            k = 0..bins - 1, i.e. uint8 pixels / 127.5 - 1. On a GPU the range [-1, 1] is checked only under
            `torch.autograd.detect_anomaly()`.
        bins: values a channel can take, >= 2.
        reduction: `mean` or `sum` over the N samples, or `none`; all other dimensions are always summed.

    Returns:
        Nats, a scalar or (N,) for `none`. See `bits_per_dim`.

    Raises:
        ValueError: shapes do not fit, target outside [-1, 1], NaN or infinite input, bad bins or reduction.

    Examples:
        >>> x = torch.randint(0, 256, (2, 3, 4, 4)) / 127.5 - 1
        >>> nll = discretized_logistic_mixture_nll(torch.zeros(2, 30, 4, 4), x)
        >>> bool(bits_per_dim(nll, x[0].numel()) > 8)  # s = 1 about 0 is worse than uniform
        True
    """
    x = floating("target", target)
    channels = x.shape[1] if x.ndim > 1 else 0
    if channels not in (1, 3):
        raise ValueError(f"target must have shape (N, C, ...) with C = 1 or 3, got {tuple(x.shape)}")
    log_pi, means, log_scales, coefficients = _mixture(parameters, channels)
    if (len(log_pi), log_pi.shape[2:]) != (len(x), x.shape[2:]):
        have, want = tuple(parameters.shape), (len(x), "K", *x.shape[2:])
        raise ValueError(f"parameters must have shape {want} for this target, got {have}")
    _bins(bins)
    within("target", x, -1.0, 1.0)
    x = x.to(log_pi)
    if coefficients is not None:
        means = _autoregression(means, coefficients, x[:, :, None])
    half = 1 / (bins - 1)
    inverse = (-log_scales).exp()
    away = x[:, :, None] - means
    upper, lower = (away + half) * inverse, (away - half) * inverse
    log_upper, log_lower = -softplus(-upper), -softplus(lower)  # log cdf(upper), log(1 - cdf(lower))
    inner = log_upper + log_lower + (-(-2 * half * inverse).expm1()).log()
    first, last = (x < half - 1)[:, :, None], (x > 1 - half)[:, :, None]
    log_prob = torch.where(first, log_upper, torch.where(last, log_lower, inner))
    nll = _per_sample(-(log_pi + log_prob.sum(1)).logsumexp(1))
    return finite(reduced(nll, reduction), parameters=parameters, target=target)


def sample_discretized_logistic_mixture(
    parameters: Tensor, channels: Literal[1, 3] = 3, bins: int = 256, generator: torch.Generator | None = None
) -> Tensor:
    """Draw pixels from `discretized_logistic_mixture_nll`'s distribution: a component, logistic noise, the nearest bin.

    Exact: a bin is what is nearest to its value, and green and blue see the rounded channels before them.

    Args:
        parameters: (N, K, ...), as for the likelihood.
        channels: 1 or 3.
        bins: values a channel can take, >= 2.
        generator: of the random numbers, on the device of `parameters`.

    Returns:
        (N, channels, ...) values of the grid in [-1, 1], without gradient.

    Raises:
        ValueError: shapes do not fit, NaN or infinite input, bad channels or bins.

    Examples:
        >>> wide = torch.zeros(1, 3, 2, 2)
        >>> x = sample_discretized_logistic_mixture(wide, 1, bins=3, generator=torch.Generator().manual_seed(0))
        >>> x.flatten().tolist()
        [-1.0, 1.0, 0.0, 1.0]
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    _bins(bins)
    with torch.no_grad():
        log_pi, means, log_scales, coefficients = _mixture(parameters, channels)
        finite(log_pi, parameters=parameters)

        def uniform(like: Tensor) -> Tensor:  # in (0, 1): its logit and the log of its log are finite
            u = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
            return u.clamp(min=torch.finfo(like.dtype).tiny)

        choice = (log_pi - (-uniform(log_pi).log()).log()).argmax(1)[:, None, None]  # Gumbel's trick
        means, scales = _of(choice, means), _of(choice, log_scales).exp()
        ratios = None if coefficients is None else _of(choice, coefficients)
        noise = scales * uniform(means).logit()
        x = torch.zeros_like(means)
        for c in range(channels):
            mu = means if ratios is None else _autoregression(means, ratios, x)
            value = (mu[:, c] + noise[:, c]).clamp(-1, 1)
            x[:, c] = ((value + 1) * ((bins - 1) / 2)).round() * (2 / (bins - 1)) - 1
        return x


# --------------------------------------------------------------------------------------------------------- helpers


def _gaussian(name: str, mean: Tensor, log_name: str, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """The two as float32 or float64 of one shape (..., D)."""
    mu, log_var = floating(name, mean), floating(log_name, log_variance)
    if mu.shape != log_var.shape or mu.ndim == 0:
        raise ValueError(f"{log_name} must have the shape of {name}, {tuple(mu.shape)}, got {tuple(log_var.shape)}")
    return mu, log_var


def _pixels(name: str, value: Tensor, target_name: str, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two as float32 or float64 of one shape (N, ...)."""
    v, x = floating(name, value), floating(target_name, target)
    if v.shape != x.shape or v.ndim == 0:
        raise ValueError(f"{target_name} must have the shape of {name}, {tuple(v.shape)}, got {tuple(x.shape)}")
    return v, x


def _bins(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")


def _per_sample(terms: Tensor) -> Tensor:
    """The sum over all dimensions but the first."""
    return terms.flatten(1).sum(1) if terms.ndim > 1 else terms


def _normal_nll(mean: Tensor, x: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * ((x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))


def _mixture(parameters: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log pi (N, M, ...), means and log scales (N, C, M, ...), coefficients (N, 3, M, ...) or None for one channel."""
    p = floating("parameters", parameters)
    per_component = 3 if channels == 1 else 10
    if p.ndim < 2 or p.shape[1] % per_component:
        want = f"(N, {per_component} M, ...) for {channels} channel(s)"
        raise ValueError(f"parameters must have shape {want}, got {tuple(p.shape)}")
    m = p.shape[1] // per_component
    logits, rest = p[:, :m], p[:, m:].reshape(len(p), -1, m, *p.shape[2:])
    log_scales = rest[:, channels : 2 * channels].clamp(min=-7.0)
    coefficients = rest[:, 2 * channels :].tanh() if channels == 3 else None
    return logits.log_softmax(1), rest[:, :channels], log_scales, coefficients


def _autoregression(means: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    """The means of red, green and blue (dimension 1), the last two moved by the channels of x before them."""
    a, b, c = coefficients.unbind(1)
    red, green, blue = means.unbind(1)
    return torch.stack([red, green + a * x[:, 0], blue + b * x[:, 0] + c * x[:, 1]], 1)


def _of(choice: Tensor, values: Tensor) -> Tensor:
    """(N, C, M, ...) at the component (N, 1, 1, ...) of each pixel: (N, C, ...)."""
    return values.take_along_dim(choice, 2).squeeze(2)
