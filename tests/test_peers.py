"""The memories of other papers are this layer with their settings: values, weights and gradients.

Each formula is written from its paper, or from the settings that its code publishes, in plain
float64 PyTorch, with no help from `blockmem`; docs/coming-from.md has the same settings as a table.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blockmem
from tests.helpers.pages import PAGES, run

Answer = tuple[Tensor, Tensor]  # a map, and the weights (rows, N)


def pixels(x: Tensor) -> Tensor:
    """Every pixel of a map as a row of its channels."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def from_pixels(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, *space = like.shape
    return rows.reshape(batch, *space, channels).movedim(-1, 1)


EPSILON = 1e-12  # of MemAE's code and HF2-VAD's


def shrink(weights: Tensor, threshold: float) -> Tensor:
    """MemAE, Eq. 7, and the L1 norm after it."""
    over = weights - threshold
    weights = over.clamp(min=0) * weights / (over.abs() + EPSILON)
    return weights / weights.abs().sum(dim=1, keepdim=True).clamp(min=1e-12)


def cosine(rows: Tensor, items: Tensor) -> Tensor:
    return (rows @ items.T) / rows.norm(dim=1)[:, None] / items.norm(dim=1)


def memae_paper(x: Tensor, items: Tensor, threshold: float) -> Answer:
    """Gong et al., ICCV 2019, Eq. 3 to 7: cosine, softmax, shrinkage, L1; a pixel is a query."""
    weights = shrink(cosine(pixels(x), items).softmax(dim=1), threshold)
    return from_pixels(weights @ items, x), weights


def memae_code(x: Tensor, items: Tensor, threshold: float) -> Answer:
    """github.com/donggong1/memae-anomaly-detection: the product is not divided by the norms."""
    weights = shrink((pixels(x) @ items.T).softmax(dim=1), threshold)
    return from_pixels(weights @ items, x), weights


def hf2vad(x: Tensor, items: Tensor, threshold: float) -> Answer:
    """github.com/LiUzHiAn/hf2vad, ML-MemAE-SC: a whole map is a query, channels first."""
    rows = x.flatten(start_dim=1)
    weights = shrink((rows @ items.T).softmax(dim=1), threshold)
    return (weights @ items).reshape(x.shape), weights


def mnad(x: Tensor, items: Tensor, threshold: float) -> Answer:
    """Park et al., CVPR 2020, Eq. 1 and 2, without the concatenation: unit queries and items."""
    assert threshold == 0
    rows = pixels(x)
    rows = rows / rows.norm(dim=1, keepdim=True)
    weights = (rows @ items.T).softmax(dim=1)
    return from_pixels(weights @ items, x), weights


def daad(x: Tensor, items: Tensor, threshold: float) -> Answer:
    """Hou et al., ICCV 2021, Eq. 1 and 2, at rates (2, 2, 1): blocks of H x W x C, not renormalised."""
    batch, channels, height, width = x.shape
    top, left = height // 2, width // 2
    corners = [(i, j) for i in (0, top) for j in (0, left)]
    blocks = [x[:, :, i : i + top, j : j + left].permute(0, 2, 3, 1) for i, j in corners]
    rows = torch.stack([block.flatten(start_dim=1) for block in blocks], dim=1).flatten(end_dim=1)
    weights = cosine(rows, items).softmax(dim=1)
    weights = weights * (weights >= threshold)
    answers = (weights @ items).reshape(batch, 4, top, left, channels).permute(0, 1, 4, 2, 3)
    a, b, c, d = answers.unbind(dim=1)
    return torch.cat([torch.cat([a, b], dim=3), torch.cat([c, d], dim=3)], dim=2), weights


@dataclass
class Peer:
    """Its formula on a map of some shape, and the settings of ours that are to equal it."""

    formula: Callable[[Tensor, Tensor, float], Answer]
    map_shape: tuple[int, ...]
    num_items: int
    block_shape: tuple[int, ...]
    threshold: float
    settings: dict[str, Any]
    scale: float = 1.0  # of the items: how far the logits of a dot product spread
    unit_items: bool = False

    def draw(self) -> tuple[Tensor, Tensor]:
        """A map and a memory that keep clear of the threshold, where rounding decides."""
        generator = torch.Generator().manual_seed(0)
        size = math.prod(self.block_shape)
        items = self.scale * torch.randn(
            self.num_items, size, generator=generator, dtype=torch.float64
        )
        if self.unit_items:
            items = items / items.norm(dim=1, keepdim=True)
        for _ in range(1000):
            x = torch.randn(self.map_shape, generator=generator, dtype=torch.float64)
            if self.threshold == 0 or self.clearance(x, items) > 5e-3 * self.threshold:
                return x, items
        raise AssertionError("no map keeps clear of the threshold; draw fewer blocks or items")

    def clearance(self, x: Tensor, items: Tensor) -> float:
        """How near a probability comes to the threshold, by our weights before shrinkage."""
        settings = {"temperature": 1.0, **self.settings, "threshold": 0.0, "renormalize": False}
        layer = self.layer(items, settings)
        return (layer.address(x).detach() - self.threshold).abs().min().item()

    def layer(self, items: Tensor, settings: dict[str, Any]) -> blockmem.BlockwiseMemory:
        """Ours, with the peer's items loaded the way docs/coming-from.md says."""
        layer = blockmem.BlockwiseMemory(
            self.num_items, self.block_shape, dtype=torch.float64, **settings
        )
        with torch.no_grad():
            if self.formula is daad:  # its paper writes H x W x C, which is the order of `memory`
                layer.memory.copy_(items)
            else:
                layer.items().copy_(items.view(self.num_items, *self.block_shape))
        return layer


DOT = {"similarity": "dot", "renormalize": True}
PEERS = {
    "memae-paper": Peer(memae_paper, (2, 8, 2, 2), 12, (8, 1, 1), 1 / 12, {"renormalize": True}),
    "memae-paper-1.5/N": Peer(
        memae_paper,
        (2, 4, 3, 3),
        12,
        (4, 1, 1),
        1.5 / 12,
        {"renormalize": True, "threshold": 1.5 / 12},
    ),
    "memae-code-video": Peer(
        memae_code, (1, 8, 2, 1, 2), 2000, (8, 1, 1, 1), 0.0025, DOT | {"threshold": 0.0025}, 0.7
    ),
    "hf2vad": Peer(hf2vad, (3, 4, 3, 2), 20, (4, 3, 2), 1 / 20, DOT, 0.2),
    "mnad": Peer(mnad, (2, 8, 3, 4), 10, (8, 1, 1), 0.0, {"threshold": 0.0}, unit_items=True),
    "daad": Peer(daad, (2, 3, 4, 6), 16, (3, 2, 3), 1 / 16, {}),
}
peers = pytest.mark.parametrize("peer", [pytest.param(p, id=name) for name, p in PEERS.items()])


def theirs_and_ours(peer: Peer, x: Tensor, items: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Answer, weights, gradient of the map and of the memory, in the peer's layout."""
    leaf, matrix = x.clone().requires_grad_(), items.clone().requires_grad_()
    answer, weights = peer.formula(leaf, matrix, peer.threshold)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    theirs = [answer, weights, *torch.autograd.grad(answer, (leaf, matrix), grad)]

    layer = peer.layer(items, peer.settings)
    ours_leaf = x.clone().requires_grad_()
    out, ours_weights = layer.read(ours_leaf)
    torch.testing.assert_close(layer(ours_leaf), out)
    out.backward(grad)
    of_memory = layer.memory.grad
    if peer.formula is not daad:
        channels, *space = peer.block_shape
        of_memory = of_memory.view(-1, *space, channels).movedim(-1, 1).flatten(start_dim=1)
    ours = [out, ours_weights.flatten(end_dim=1), ours_leaf.grad, of_memory]
    return [t.detach() for t in theirs], [t.detach() for t in ours]


@peers
@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.0, 1e-9), (1e-12, 2e-5)])
def test_settings_of_the_table_equal_the_peer(peer, epsilon, tolerance, monkeypatch):
    """Without the epsilon of their shrinkage to rounding; it counts for w / (w - threshold)^2 of
    it in a gradient, and is there against 0 / 0 alone."""
    monkeypatch.setattr(f"{__name__}.EPSILON", epsilon)
    x, items = peer.draw()
    theirs, ours = theirs_and_ours(peer, x, items)
    assert theirs[1].any(dim=1).all(), "an empty row tests nothing"
    assert peer.threshold == 0 or (theirs[1] == 0).any(), "a threshold that drops nothing neither"
    if peer.formula is mnad:  # its items stay unit vectors: they do not move along themselves
        ours[3], theirs[3] = (
            g - (g * items).sum(dim=1)[:, None] * items for g in (ours[3], theirs[3])
        )
    names = ("answer", "weights", "gradient of the map", "gradient of the memory")
    for name, found, expected in zip(names, ours, theirs, strict=True):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < tolerance, f"{name}: off by {error:.1e} of the largest"


def test_mnads_whole_read_with_and_without_its_detached_weights():
    """cat([query, answer]); its code detaches weights and items: the answer has no gradient."""
    peer = PEERS["mnad"]
    x, items = peer.draw()
    layer = peer.layer(items, peer.settings)

    def whole(leaf: Tensor, detached: bool) -> Tensor:
        answer = mnad(leaf, items, 0)[0]
        return torch.cat([F.normalize(leaf, dim=1), answer.detach() if detached else answer], dim=1)

    for detached in (False, True):
        leaf, ours_leaf = (x.clone().requires_grad_() for _ in range(2))
        expected = whole(leaf, detached)
        answer = layer(ours_leaf)
        found = torch.cat(
            [F.normalize(ours_leaf, dim=1), answer.detach() if detached else answer], dim=1
        )
        torch.testing.assert_close(found, expected)
        expected.square().sin().sum().backward()
        found.square().sin().sum().backward()
        torch.testing.assert_close(ours_leaf.grad, leaf.grad)


@pytest.mark.parametrize("name", sorted(PEERS.keys() - {"mnad"}))
def test_the_other_similarity_is_another_memory(name):
    peer = PEERS[name]
    x, items = peer.draw()
    expected = peer.formula(x, items, peer.threshold)[0]
    other = {"cosine": "dot", "dot": "cosine"}[peer.settings.get("similarity", "cosine")]
    settings = peer.settings | {"similarity": other}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a threshold that no cosine passes
        found = peer.layer(items, settings)(x)
    assert (found - expected).norm() > 0.1 * expected.norm()


def test_unit_vectors_have_one_similarity():
    peer = PEERS["mnad"]
    x, items = peer.draw()
    by_dot = peer.layer(items, peer.settings | {"similarity": "dot"})(F.normalize(x, dim=1))
    torch.testing.assert_close(by_dot, peer.layer(items, peer.settings)(x))


@pytest.mark.parametrize("name", ["hf2vad", "daad"])
def test_a_channels_first_matrix_copied_into_memory_is_another_memory(name):
    """It fits, and no error says so: the order of `memory` is `(*s, c)`, that of `items()` `(c, *s)`."""
    peer = PEERS[name]
    x, items = peer.draw()
    settings = {"dtype": torch.float64, **peer.settings}
    right, wrong = (
        blockmem.BlockwiseMemory(peer.num_items, peer.block_shape, **settings) for _ in range(2)
    )
    with torch.no_grad():
        right.items().copy_(items.view(-1, *peer.block_shape))
        wrong.memory.copy_(items)
    torch.testing.assert_close(right.items().flatten(start_dim=1), items)
    assert (right(x) - wrong(x)).norm() > 0.1 * right(x).norm()


def test_a_checkpoint_of_one_pixel_blocks_goes_in_either_way():
    """With blocks of one pixel both orders are one: MemAE's matrix may be copied as it is."""
    peer = PEERS["memae-paper"]
    _, items = peer.draw()
    layer = peer.layer(items, peer.settings)
    torch.testing.assert_close(layer.memory.detach(), items)


def test_a_weight_equal_to_the_threshold_is_kept_here_and_dropped_there():
    """At 1/N a block of zeros, or one far from all items, has weights of just 1/N."""
    items = torch.randn(8, 4, dtype=torch.float64)
    x = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    answer, weights = memae_code(x, items, 1 / 8)
    assert not weights.any()
    assert not answer.any()
    ours = blockmem.blockwise_memory(x, items, (4, 1, 1), similarity="dot", renormalize=True)
    torch.testing.assert_close(ours.flatten(), items.mean(dim=0))


@pytest.mark.parametrize("threshold", [0.0025, 3 / 2000])
def test_memaes_threshold_drops_all_items_of_cosine_logits(threshold):
    """N 2000 and the threshold of its code, or the largest that its paper advises.

    An item passes where its cosine exceeds log(t (N - 1) / (1 - t)) while the others' are 0: 1.6
    and 1.1, and a cosine is at most 1. In its code the logits are dot products, without a bound.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 256, 4, 4, generator=generator)
    items = x.movedim(1, -1).reshape(-1, 256)[:10]  # even of items that are the blocks themselves
    items = torch.cat([items, torch.randn(1990, 256, generator=generator)])
    passes = math.log(threshold * 1999 / (1 - threshold))
    assert passes == pytest.approx(1.61 if threshold == 0.0025 else 1.10, abs=0.01)
    settings = {"threshold": threshold, "renormalize": True}
    by_cosine = blockmem.blockwise_memory(x, items, (256, 1, 1), **settings)
    assert not by_cosine.any()
    by_dot = blockmem.blockwise_memory(x, items, (256, 1, 1), similarity="dot", **settings)
    assert by_dot.flatten(start_dim=2).any(dim=1).all()


@pytest.fixture
def page() -> dict[str, Any]:
    """What docs/coming-from.md defines."""
    namespace: dict[str, Any] = {}
    with torch.random.fork_rng():
        for block in PAGES["docs/coming-from.md"]:
            run(block, "docs/coming-from.md", namespace)
    return namespace


def test_mnads_update_and_losses_on_the_page_are_those_of_its_code(page):
    """Its loop over items (Eq. 3 to 5), and compactness and separateness as distances."""
    peer = PEERS["mnad"]
    x, items = peer.draw()
    layer = peer.layer(items, peer.settings).requires_grad_(False)
    queries = F.normalize(pixels(x), dim=1)
    scores = queries @ items.T
    order = scores.argsort(dim=1, descending=True)
    compact = (queries - items[order[:, 0]]).square().mean()
    to_first, to_second = ((queries - items[order[:, i]] + 1e-6).norm(dim=1) for i in (0, 1))
    separate = (to_first - to_second + 1).clamp(min=0).mean()
    torch.testing.assert_close(page["losses"](layer, x), (compact, separate))

    expected = items.clone()
    attention = scores.exp() / scores.exp().sum(dim=0)
    for item in range(len(items)):
        for k in (order[:, 0] == item).nonzero().flatten():
            expected[item] += attention[k, item] / attention[:, item].max() * queries[k]
    expected = expected / expected.norm(dim=1, keepdim=True)
    page["update"](layer, x)
    torch.testing.assert_close(layer.memory.detach(), expected)
    assert not torch.allclose(expected, items)
