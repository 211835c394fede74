"""Block-wise memory for PyTorch: `BlockwiseMemory`, exact, lean in memory, and differentiable."""

from blockmem.division import assemble, divide
from blockmem.functional import blockwise_memory
from blockmem.layer import BlockwiseMemory
from blockmem.starting import fill_memories
from blockmem.statistics import Usage, entropy, usage
from blockmem.version import __version__

__all__ = [
    "BlockwiseMemory",
    "Usage",
    "__version__",
    "assemble",
    "blockwise_memory",
    "divide",
    "entropy",
    "fill_memories",
    "usage",
]
