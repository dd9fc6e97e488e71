"""Adversarial losses, to minimise, on a discriminator's or critic's raw outputs (logits), and penalties on its slope.

Whoever trains the discriminator detaches the fakes from the generator; no function here does. Means are over real and
over generated scores separately, so that the two batches may differ in size. A discriminator with several scores for a
sample (joint and unary ones, patches) takes one call for each, and the sum; a hinge of summed scores is another loss.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gen_core._checks import finite, floating, full_precision, not_negative, softplus


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of the first GAN (Goodfellow et al. 2014, eq. 1): mean sp(-real) + mean sp(fake).

    sp is softplus, and D(x) = sigmoid of the score: minus the log-likelihood of both labels. Some code halves it. At
    scores of 0 it is 2 log 2. `relativistic_discriminator` shifts the scores first.

    Args:
        real: (N,) or (N, 1) floating, logits of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: an input is no tensor, not floating or empty; or the loss is not finite because an input is not.

    Examples:
        >>> f"{logistic_discriminator(torch.zeros(3), torch.zeros(2)).item():.6f}"
        '1.386294'
    """
    r, f = floating("real", real), floating("fake", fake)
    return finite(softplus(-r).mean() + softplus(f).mean(), real=real, fake=fake)


def non_saturating_generator(fake: Tensor) -> Tensor:
    """The generator's loss in use (Goodfellow et al. 2014, section 3): mean sp(-fake) = -mean log D(G(z)).

    Args:
        fake: (M,) or (M, 1) floating, logits of generated samples, with the gradient to the generator.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: the input is no tensor, not floating or empty; or the loss is not finite because the input is not.

    Examples:
        >>> f"{non_saturating_generator(torch.zeros(2)).item():.6f}"
        '0.693147'
    """
    return finite(softplus(-floating("fake", fake)).mean(), fake=fake)


def saturating_generator(fake: Tensor) -> Tensor:
    """The generator's side of the minimax game (Goodfellow et al. 2014, eq. 1): -mean sp(fake) = mean log(1 - D(G(z))).

    Its gradient vanishes where the discriminator is sure of the fakes; `non_saturating_generator` is used instead.

    Args:
        fake: (M,) or (M, 1) floating, logits of generated samples, with the gradient to the generator.

    Returns:
        A scalar in nats, below 0.

    Raises:
        ValueError: the input is no tensor, not floating or empty; or the loss is not finite because the input is not.

    Examples:
        >>> f"{saturating_generator(torch.zeros(2)).item():.6f}"
        '-0.693147'
    """
    return finite(-softplus(floating("fake", fake)).mean(), fake=fake)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim and Ye 2017; Miyato et al. 2018, eq. 16).

    mean max(0, 1 - real) + mean max(0, 1 + fake).

    Args:
        real: (N,) or (N, 1) floating, scores of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples.

    Returns:
        A scalar >= 0 in the score's own unit.

    Raises:
        ValueError: an input is no tensor, not floating or empty; or the loss is not finite because an input is not.

    Examples:
        >>> hinge_discriminator(torch.tensor([0.5, 3.0]), torch.tensor([-2.0])).item()
        0.25
    """
    r, f = floating("real", real), floating("fake", fake)
    return finite((1 - r).relu().mean() + (1 + f).relu().mean(), real=real, fake=fake)


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's loss beside `hinge_discriminator` (Miyato et al. 2018, eq. 17): -mean fake, without a hinge.

    Args:
        fake: (M,) or (M, 1) floating, scores of generated samples, with the gradient to the generator.

    Returns:
        A scalar in the score's own unit.

    Raises:
        ValueError: the input is no tensor, not floating or empty; or the loss is not finite because the input is not.

    Examples:
        >>> hinge_generator(torch.tensor([0.5, 1.5])).item()
        -1.0
    """
    return finite(-floating("fake", fake).mean(), fake=fake)


def least_squares_discriminator(
    real: Tensor, fake: Tensor, real_target: float = 1.0, fake_target: float = 0.0
) -> Tensor:
    """The discriminator's loss of LSGAN (Mao et al. 2017, eq. 2): 1/2 mean (real - b)^2 + 1/2 mean (fake - a)^2.

    The targets (b, a) = (1, 0) go with the generator's target 1 (eq. 9), (1, -1) with 0 (eq. 8). Some code drops the
    factors 1/2.

    Args:
        real: (N,) or (N, 1) floating, scores of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples.
        real_target: b.
        fake_target: a.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: an input is no tensor, not floating or empty; a target is not finite; or the loss is not finite
            because an input is not.

    Examples:
        >>> least_squares_discriminator(torch.tensor([2.0]), torch.tensor([3.0])).item()
        5.0
    """
    b, a = _number("real_target", real_target), _number("fake_target", fake_target)
    r, f = floating("real", real), floating("fake", fake)
    return finite((r - b).square().mean() / 2 + (f - a).square().mean() / 2, real=real, fake=fake)


def least_squares_generator(fake: Tensor, target: float = 1.0) -> Tensor:
    """The generator's loss of LSGAN (Mao et al. 2017, eq. 2): 1/2 mean (fake - c)^2.

    Args:
        fake: (M,) or (M, 1) floating, scores of generated samples, with the gradient to the generator.
        target: c.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: the input is no tensor, not floating or empty; the target is not finite; or the loss is not finite
            because the input is not.

    Examples:
        >>> least_squares_generator(torch.tensor([3.0])).item()
        2.0
    """
    c = _number("target", target)
    return finite((floating("fake", fake) - c).square().mean() / 2, fake=fake)


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The relativistic average loss (Jolicoeur-Martineau 2019, RaSGAN): are real samples more real than the mean fake?

    mean sp(-(real - mean fake)) + mean sp(fake - mean real). The generator's loss is the same with the arguments
    exchanged, `relativistic_discriminator(fake, real)`, and has a gradient through both. Some code halves it.

    Args:
        real: (N,) or (N, 1) floating, logits of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: an input is no tensor, not floating or empty; or the loss is not finite because an input is not.

    Examples:
        >>> f"{relativistic_discriminator(torch.full((3,), 5.0), torch.full((2,), 5.0)).item():.6f}"
        '1.386294'
    """
    r, f = floating("real", real), floating("fake", fake)
    return finite(softplus(f.mean() - r).mean() + softplus(f - r.mean()).mean(), real=real, fake=fake)


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's Wasserstein loss (Arjovsky et al. 2017, eq. 3): mean fake - mean real.

    Minus it estimates the distance where the critic is 1-Lipschitz; `gradient_penalty` sees to that. Some code
    maximises the reverse sign.

    Args:
        real: (N,) or (N, 1) floating, the critic's scores of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples, which the caller has detached from the generator.

    Returns:
        A scalar in the critic's own unit.

    Raises:
        ValueError: an input is no tensor, not floating or empty; or the loss is not finite because an input is not.

    Examples:
        >>> wasserstein_critic(torch.tensor([1.0, 3.0]), torch.tensor([0.5])).item()
        -1.5
    """
    return finite(floating("fake", fake).mean() - floating("real", real).mean(), real=real, fake=fake)


def wasserstein_generator(fake: Tensor) -> Tensor:
    """The generator's Wasserstein loss (Arjovsky et al. 2017, algorithm 1): -mean fake.

    Args:
        fake: (M,) or (M, 1) floating, the critic's scores of generated samples, with the gradient to the generator.

    Returns:
        A scalar in the critic's own unit.

    Raises:
        ValueError: the input is no tensor, not floating or empty; or the loss is not finite because the input is not.

    Examples:
        >>> wasserstein_generator(torch.tensor([0.5, 1.5])).item()
        -1.0
    """
    return finite(-floating("fake", fake).mean(), fake=fake)


def consistency(clean: Tensor, augmented: Tensor) -> Tensor:
    """The consistency term of CR-GAN (Zhang et al. 2020) and, on generated samples too, of bCR (Zhao et al. 2021).

    mean_i |D(x_i) - D(t(x_i))|^2 for a random augmentation t, with a gradient through both outputs. CR adds 10 times
    this on real samples to the discriminator's loss; bCR adds 10 times that on real and 10 times that on detached
    generated ones. The generator's loss has no such term.

    Args:
        clean: (N, ...) floating, the discriminator's outputs; the square sums over all dimensions but the first.
        augmented: the shape of `clean`, row i the output for the same sample under t.

    Returns:
        A scalar >= 0, the mean over the N samples.

    Raises:
        ValueError: shapes differ, an input is no tensor, not floating or empty; or the loss is not finite because an
            input is not.

    Examples:
        >>> consistency(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """
    x, y = floating("clean", clean), floating("augmented", augmented)
    if x.ndim == 0 or x.shape != y.shape:
        raise ValueError(f"clean and augmented must have one shape (N, ...), got {tuple(x.shape)} and {tuple(y.shape)}")
    return finite((x - y).square().sum() / len(x), clean=clean, augmented=augmented)


def gradient_penalty(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    *condition: Tensor,
    weight: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    mix: Tensor | None = None,
) -> Tensor:
    """The penalty of WGAN-GP (Gulrajani et al. 2017, eq. 3) on the slope of the critic between real and fake samples.

    weight * mean_i ( sqrt( |grad_x D(x^_i, c_i)|^2 + 1e-12 ) - target )^2, x^_i = u_i real_i + (1 - u_i) fake_i, u_i
    uniform in (0, 1), one a row. The norm is over all dimensions but the first and over x^ only; the condition is a
    constant. The term 1e-12 keeps the gradient finite where the slope is 0. `target=0` centres the penalty at 0. A
    penalty w on the root mean square over d inputs (Tran et al. 2018) is `target=d**0.5, weight=w / d`.

    The result can be differentiated again (the gradient is built with its graph). Everything is computed in float32 or
    float64, under autocast too: the square of a slope overflows or vanishes in 16 bits.

    Args:
        critic: `critic(x, *condition)` -> scores, one a row. Rows must not see each other: no batch norm.
        real: (N, ...) floating.
        fake: the shape of `real`; both are taken as constants.
        condition: what the critic takes beside x, N rows each.
        weight: lambda >= 0.
        target: the slope asked for, >= 0.
        one_sided: only slopes above the target cost (Petzka et al. 2018, WGAN-LP).
        mix: (N,) the u_i; drawn from torch's global generator where None.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes or dtypes do not fit; a negative weight or target; or the penalty is not finite because an
            input is not.

    Examples:
        >>> x, y = torch.zeros(2, 3), torch.ones(2, 3)
        >>> f"{gradient_penalty(lambda x: 2 * x[:, 0], x, y).item():.4f}"  # 10 (2 - 1)^2
        '10.0000'
    """
    x, y = floating("real", real), floating("fake", fake)
    if x.ndim < 2 or x.shape != y.shape:
        raise ValueError(f"real and fake must have one shape (N, ...), got {tuple(real.shape)} and {tuple(fake.shape)}")
    not_negative("weight", weight)
    not_negative("target", target)
    u = torch.rand(len(x), dtype=x.dtype, device=x.device) if mix is None else mix.to(x)
    if u.shape != (len(x),):
        raise ValueError(f"mix must have shape ({len(x)},), one number a row, got {tuple(u.shape)}")
    u = u.view(-1, *[1] * (x.ndim - 1))
    with torch.enable_grad(), full_precision(x):
        excess = (_squared_slopes(critic, u * x + (1 - u) * y, condition) + 1e-12).sqrt() - target
        penalty = weight * (excess.relu() if one_sided else excess).square().mean()
    return finite(penalty, real=real, fake=fake, mix=mix, **_named(condition))


def r1_penalty(critic: Callable[..., Tensor], real: Tensor, *condition: Tensor, weight: float = 10.0) -> Tensor:
    """R1 (Mescheder et al. 2018, eq. 9): the squared slope of the discriminator at real samples.

    weight / 2 * mean_i |grad_x D(x_i, c_i)|^2. The factor 1/2 is the paper's (its gamma is `weight`); the authors'
    released code has none, so that its 10 is 20 here. Differentiable again, and in float32 or float64 under autocast,
    as `gradient_penalty`.

    Args:
        critic: `critic(x, *condition)` -> logits, one a row. Rows must not see each other: no batch norm.
        real: (N, ...) floating, taken as constants.
        condition: what the discriminator takes beside x, N rows each, taken as constants.
        weight: gamma >= 0.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: shapes or dtypes do not fit; a negative weight; or the penalty is not finite because an input is
            not.

    Examples:
        >>> r1_penalty(lambda x: 3 * x[:, 0] + 4 * x[:, 1], torch.zeros(2, 2)).item()  # 10 / 2 * (9 + 16)
        125.0
    """
    x = floating("real", real)
    if x.ndim < 2:
        raise ValueError(f"real must have shape (N, ...), got {tuple(real.shape)}")
    not_negative("weight", weight)
    with torch.enable_grad(), full_precision(x):
        penalty = weight / 2 * _squared_slopes(critic, x, condition).mean()
    return finite(penalty, real=real, **_named(condition))


def _squared_slopes(critic: Callable[..., Tensor], x: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    """(N,) squared norms of the gradient of each row's score at that row, a constant; with their own graph."""
    x = x.detach().requires_grad_()
    given = [c.detach().to(x.dtype) if c.is_floating_point() else c for c in condition]
    (slope,) = torch.autograd.grad(critic(x, *given).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1)


def _named(condition: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"condition {i}": c for i, c in enumerate(condition)}


def _number(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return value
