"""`BlockwiseMemory`, the layer as a module."""

import math
import operator
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blockmem._filling import fill_items, item_indices
from blockmem.addressing import Addressing
from blockmem.division import DIMENSIONS, check_block_shape, nearest_divisors
from blockmem.functional import (
    blockwise_address,
    blockwise_memory,
    blockwise_read,
    check_addressing,
    check_backend,
)

torch.fx.wrap("blockwise_memory")  # symbolic tracing records the call, and does not look inside


class BlockwiseMemory(nn.Module):
    r"""Replace every block of a feature map by what a learned memory answers to it.

    `blockwise_memory` has the formula, and how dtypes, autocast and backends are chosen. Where N is
    not well below D the memory lets everything through: with :math:`\tau = 1` its read-out is
    close to linear, of rank N. The paper has D/N of 4 to 33.

    Shape:
        - input `(B, C, *S)`, with 1, 2 or 3 spatial dimensions, any strides
        - output the same, in the input's memory format

    Args:
        num_items: N, how many items the memory holds.
        block_shape: `(c, *s)`; `c` must divide `C`, each of `s` its spatial size.
        temperature: :math:`\tau > 0`; 1 in the paper. There, about half of the items pass the
            threshold; a smaller one makes addressing sparse.
        threshold: :math:`\theta \ge 0`, below which an item is dropped; None is 1/N, 0 drops none.
        renormalize: make the weights that are left sum to 1, as MemAE does and DAAD does not.
        similarity: "cosine", or "dot" as in the code of MemAE and HF2-VAD.
        backend: "auto", "torch" or "triton"; as of `blockwise_memory`.
        device, dtype: of the memory, as in PyTorch's own layers.

    Attributes:
        memory: the parameter `(N, D)`, `D = c * prod(s)`, uniform in :math:`\pm 1/\sqrt D` at
            first; `fill_memories` starts it better. Each item is flattened in the order `(*s, c)`,
            channels fastest: to load items `W` of another library, write
            `memory.items().copy_(W.view(N, c, *s))` under `torch.no_grad()`. A matrix in
            channels-first order that is copied into `memory` itself gives wrong answers and no
            error. The `state_dict` holds the memory alone: block shape, temperature and threshold
            are those of the layer that it is loaded into.

    Raises:
        ValueError: for settings out of range, and for a map that the blocks do not tile or that is
            on another device. A threshold that hardly any weight can reach is a warning.
        TypeError: for a map whose dtype is not the memory's, but under autocast, which casts both.

    Examples:
        >>> import torch
        >>> memory = BlockwiseMemory(num_items=500, block_shape=(64, 16, 16))
        >>> memory(torch.randn(2, 64, 128, 128)).shape
        torch.Size([2, 64, 128, 128])
    """

    def __init__(
        self,
        num_items: int,
        block_shape: Sequence[int],
        *,
        temperature: float = 1.0,
        threshold: float | None = None,
        renormalize: bool = False,
        similarity: str = "cosine",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(num_items, "__index__") or num_items < 1:
            raise ValueError(f"num_items {num_items!r}: expected a whole number of at least 1")
        self.num_items = operator.index(num_items)
        self.block_shape = check_block_shape(block_shape)
        check_backend(backend)
        _warn_of_threshold(
            self.num_items, check_addressing(temperature, threshold, renormalize, similarity)
        )
        self.temperature = temperature
        self.threshold = threshold
        self.renormalize = renormalize
        self.similarity = similarity
        self.backend = backend
        self.memory = nn.Parameter(
            torch.empty(self.num_items, math.prod(self.block_shape), device=device, dtype=dtype)
        )
        self.reset_parameters()

    @classmethod
    def from_division(
        cls,
        map_shape: Sequence[int],
        division: Sequence[int],
        num_items: int,
        *,
        temperature: float = 1.0,
        threshold: float | None = None,
        renormalize: bool = False,
        similarity: str = "cosine",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "BlockwiseMemory":
        """Return the layer whose blocks divide a map as the paper's division rates say.

        Args:
            map_shape: `(C, *S)`, a map without its batch dimension.
            division: blocks along each axis in the paper's order, space first and channels last:
                `(r_h, r_w, r_c)`, which is (8, 8, 1) in the paper.
            num_items: N, as all that follows, as in the constructor.

        Examples:
            >>> BlockwiseMemory.from_division((64, 128, 128), (8, 8, 1), num_items=500).block_shape
            (64, 16, 16)
        """
        return cls(
            num_items,
            _block_shape(map_shape, division),
            temperature=temperature,
            threshold=threshold,
            renormalize=renormalize,
            similarity=similarity,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        r"""Draw the memory again, uniform in :math:`\pm 1/\sqrt D`."""
        bound = 1 / math.sqrt(self.memory.shape[1])
        nn.init.uniform_(self.memory, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with every block replaced, as `blockwise_memory` does."""
        return blockwise_memory(
            x,
            self.memory,
            self.block_shape,
            temperature=self.temperature,
            threshold=self.threshold,
            renormalize=self.renormalize,
            similarity=self.similarity,
            backend=self.backend,
        )

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the new map and the weights it is read with, in one differentiable pass.

        For a loss on the weights, such as `entropy`. PyTorch computes it, whatever the backend: all
        weights are held, forward and backward.

        Returns:
            The map that `forward` gives, and the weights `(B, Q, N)` that `address` gives.
        """
        return blockwise_read(x, self.memory, self.block_shape, self._addressing())

    def address(self, x: Tensor) -> Tensor:
        """Compute the addressing weights of every block of `x`, `(B, Q, N)` after shrinkage (Eq. 1).

        They are in float32 (float64 for float64). The Q blocks of a map are counted over space
        first, channels last. Errors are those of a call of the layer.
        """
        return blockwise_address(x, self.memory, self.block_shape, self._addressing())

    def _addressing(self) -> Addressing:
        return check_addressing(self.temperature, self.threshold, self.renormalize, self.similarity)

    def items(self) -> Tensor:
        """Return the items as blocks one can look at: a view `(N, c, *s)` of `memory`."""
        channels, *space = self.block_shape
        return self.memory.view(self.num_items, *space, channels).movedim(-1, 1)

    def fill_(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        items: Tensor | None = None,
    ) -> int:
        """Make items blocks of the map `x`, and return how many were filled.

        A memory that starts with blocks of the maps it will see gives answers as long as its
        queries, and the encoder before it a gradient. `fill_memories` fills all memories of a model.

        The blocks are drawn at random and without repetition. A block is left out where it is zero
        (its cosine with everything is 0), and where it equals another drawn block or an item that
        stays: equal items would get equal gradients and stay equal for good. So a map of few
        different blocks fills few items; the others of `items` stay as they are.

        The memory keeps its dtype and device, to which the blocks are converted. No gradient flows
        to `x`, and `requires_grad` does not matter. Fill before a forward, not between a forward
        and its backward.

        An optimiser's averages of a refilled item belong to the item that was there before: set them
        to 0, after the optimiser's step.

        Examples:
            >>> import torch
            >>> memory = BlockwiseMemory(8, (4, 2, 2))
            >>> optimizer = torch.optim.Adam(memory.parameters())
            >>> memory(torch.randn(1, 4, 8, 8)).sum().backward()
            >>> optimizer.step()
            >>> dead = torch.tensor([False] * 6 + [True] * 2)
            >>> memory.fill_(torch.randn(1, 4, 8, 8), items=dead)
            2
            >>> for average in optimizer.state[memory.memory].values():
            ...     if average.shape == memory.memory.shape:  # not Adam's count of steps
            ...         average[dead] = 0

        Args:
            x: map `(B, C, *S)` that the blocks tile, of floating-point numbers.
            generator: draws the blocks; on any device. None is PyTorch's own, on the CPU.
            items: which items to fill: a boolean mask `(N,)` or indices `(K,)`. None is all.

        Raises:
            ValueError: for a map that the blocks do not tile or that is not finite (in the memory's
                dtype), for `items` that are none, and for a memory that is sharded (a DTensor) or
                on the meta device. Nothing is filled then.
            TypeError: for a map that is no tensor of floating-point numbers.
        """
        rows = item_indices(items, self.num_items, self.memory.device)
        return len(fill_items(self.memory, x, self.block_shape, rows, generator))

    def extra_repr(self) -> str:
        parts = [f"num_items={self.num_items}", f"block_shape={self.block_shape}"]
        defaults = Addressing()._asdict() | {"backend": "auto"}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts)


def _block_shape(map_shape: Sequence[int], division: Sequence[int]) -> tuple[int, ...]:
    map_shape, division = tuple(map_shape), tuple(division)
    if len(map_shape) - 1 not in DIMENSIONS or len(division) != len(map_shape):
        raise ValueError(
            f"map_shape {map_shape} and division {division}: expected (C, *S) with 1, 2 or 3 "
            "spatial sizes, and as many rates, space first and channels last, such as "
            "(64, 128, 128) and (8, 8, 1)"
        )
    rates = (division[-1], *division[:-1])
    names = DIMENSIONS[len(map_shape) - 1]
    for name, size, rate in zip(names, map_shape, rates, strict=True):
        if rate < 1 or size % rate:
            below, above = nearest_divisors(size, rate)
            raise ValueError(
                f"{name} {size} of the map {map_shape} cannot be divided by {rate} (division "
                f"{division}): the nearest rates that divide {size} are {below} and {above}"
            )
    return tuple(size // rate for size, rate in zip(map_shape, rates, strict=True))


def _warn_of_threshold(items: int, addressing: Addressing) -> None:
    """Warn where the threshold is one that an item passes never, or hardly ever."""
    threshold, temperature = addressing.threshold, addressing.temperature
    if threshold is None or items == 1 or not addressing.cosine:
        return
    # Of one item with cosine 1, where all others have -1, and where they are orthogonal
    largest, others_orthogonal = (
        1 / (1 + (items - 1) * math.exp(-difference / temperature)) for difference in (2, 1)
    )
    if threshold > largest:
        problem = f"drops every item, always: no weight of {items} items exceeds {largest:.3g}"
    elif threshold > others_orthogonal:
        needed = temperature * math.log(threshold * (items - 1) / (1 - threshold))
        problem = (
            f"drops an item even where it equals the block and the other {items - 1} are orthogonal "
            f"to it: to pass it would need a cosine of {needed:.2f}"
        )
    else:
        return
    warnings.warn(
        f"threshold {threshold:g} at temperature {temperature:g} {problem}; a row of which nothing "
        f"is left gives zeros and no gradient. Take a threshold below {others_orthogonal:.3g} (None "
        f"is 1/N, {1 / items:.3g}) or a lower temperature",
        stacklevel=3,
    )
