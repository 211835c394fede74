import torch
from torch import nn

from blockmem import BlockwiseMemory

torch.manual_seed(0)
memory = BlockwiseMemory.from_division((32, 16, 16), (4, 4, 1), num_items=64)  # r_h, r_w, r_c
encoder, decoder = nn.Conv2d(3, 32, 4, stride=4), nn.ConvTranspose2d(32, 3, 4, stride=4)
x = torch.rand(8, 3, 64, 64)
features = encoder(x)
print(memory)
print(decoder(memory(features)).shape)  # the map in between: any strides, same shape out as in
weights = memory.address(features)
print(weights.shape, f"{(weights > 0).float().mean():.0%} of the weights are kept")
print(memory.items().shape)  # items as blocks one can look at
