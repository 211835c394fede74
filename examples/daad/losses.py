"""The losses of Eq. 4 to 6, and the per-picture distances that the scores share with them."""

import torch
from torch import Tensor
from torch.nn import functional


def distances(x: Tensor, x_hat: Tensor, distance: str) -> Tensor:
    """How far each sample of `x_hat` lies from that of `x`: two `(B, ...)` to `(B,)`.

    `"squared"` is the mean of the squared differences, `"l2"` their Euclidean norm: two readings
    of Eq. 4 and 6. In float32 at least, whatever precision the network ran in.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    difference = (x.to(dtype) - x_hat.to(dtype)).flatten(1)
    if distance == "l2":
        return torch.linalg.vector_norm(difference, dim=1)
    return difference.square().mean(1)


def reconstruction_loss(x: Tensor, x_hat: Tensor, distance: str) -> Tensor:
    """Batch mean of the distance between pictures `(B, C, H, W)` and reconstructions (Eq. 4)."""
    return distances(x, x_hat, distance).mean()


def alignment_loss(feature: Tensor, feature_hat: Tensor, distance: str) -> Tensor:
    """Batch mean of the distance between f_D(x) and f_D(x_hat), each `(B, F)` (Eq. 6)."""
    return distances(feature, feature_hat, distance).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(x_hat))], Eq. 5 negated for D to minimise, from logits `(B,)`."""
    return functional.softplus(-real_logits.float()).mean() + _minus_log_fake(fake_logits)


def generator_adversarial_loss(fake_logits: Tensor, form: str) -> Tensor:
    """What G minimises of Eq. 5, from D's logits `(B,)` on the reconstructions.

    `"minimax"` is Eq. 5 to the letter, E[log(1 - D(x_hat))]; its gradient vanishes where D is
    sure. `"non-saturating"` is -E[log D(x_hat)], with the same fixed point.
    """
    if form == "minimax":
        return -_minus_log_fake(fake_logits)
    return functional.softplus(-fake_logits.float()).mean()


def _minus_log_fake(logits: Tensor) -> Tensor:
    # 1 - sigmoid(z) is sigmoid(-z), and -log sigmoid(-z) is softplus(z), which never overflows.
    return functional.softplus(logits.float()).mean()
