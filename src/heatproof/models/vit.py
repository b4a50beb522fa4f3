"""A vision transformer for small pictures, with timm's names of modules and weights.

It takes (N, in_channels, H, W) and returns logits (N, num_classes). Its attention runs in torch's fused kernel, so no
module ever holds the probabilities; what needs them computes them from `qkv`, `num_heads` and `scale`.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import Tensor, nn

from heatproof.errors import InputError

RESULTS_VERSION = 1


class PatchEmbed(nn.Module):
    """Cuts pictures into square patches and maps each to a token, row by row.

    Args:
        img_size: height and width of the pictures.
        patch_size: side of a patch.
        in_channels: 3 for RGB, 1 for grey pictures.
        embed_dim: length of a token.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.img_size = img_size
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (N, h * w, D)."""
        if tuple(images.shape[2:]) != self.img_size:
            raise InputError(
                f"images: {images.shape[2]} x {images.shape[3]} pixels; "
                f"this transformer was built for {self.img_size[0]} x {self.img_size[1]} (option img_size)"
            )
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention of several heads over all tokens, softmax(Q K' / sqrt(d)) V.

    Args:
        dim: length of a token.
        num_heads: divides `dim`; a head is d = dim / num_heads wide.

    Reference:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D)."""
        N, T, D = tokens.shape
        # The rows of qkv are all queries, all keys, all values; within each, head after head.
        query, key, value = self.qkv(tokens).reshape(N, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)  # (N, A, T, d)
        return self.proj(mixed.transpose(1, 2).reshape(N, T, D))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, for each token alone."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D)."""
        return self.fc2(self.act(self.fc1(tokens)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the token-wise network, each on normalised tokens and added to what came in."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class ViTTiny(nn.Module):
    """A vision transformer that a CPU trains in minutes: 683,242 parameters for 10 classes of 32 x 32 pictures.

    Weights load strictly into timm's `VisionTransformer` of the same sizes, and the other way round. Fresh weights are
    drawn so that each token attends to its neighbours at first (`mimetic`), without which a transformer needs many more
    pictures.

    Args:
        num_classes: length of the logits.
        in_channels: 3 for RGB, 1 for grey pictures.
        img_size: side of the pictures, or (height, width).
        patch_size: side of a patch; divides both sides of the picture.
        embed_dim: length D of a token, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads of a block.

    Raises:
        InputError: where the sizes do not fit each other.

    Reference:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.

    >>> ViTTiny(num_classes=4, depth=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4])
    """

    num_prefix_tokens = 1  # the class token, in front of the patches

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        embed_dim: int = 96,
        depth: int = 6,
        num_heads: int = 3,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % patch_size or width % patch_size:
            raise InputError(f"ViTTiny: patch_size {patch_size} does not divide the picture, {height} x {width}")
        if embed_dim % num_heads or embed_dim % 4:
            raise InputError(f"ViTTiny: embed_dim {embed_dim} must be a multiple of 4 and of num_heads {num_heads}")
        self.patch_embed = PatchEmbed((height, width), patch_size, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        grid = self.patch_embed.grid_size
        self.pos_embed = nn.Parameter(
            torch.cat([torch.zeros(1, embed_dim), sin_cos_positions(grid, embed_dim)]).unsqueeze(0)
        )
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])  # type: ignore[no-any-return]

    def _initialise(self) -> None:
        nn.init.normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                mimetic(module)


def sin_cos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of a patch's row and column at growing wave lengths: (h * w, dim), patches row by row.

    Args:
        grid: rows and columns of patches.
        dim: a multiple of 4.

    Reference:
        Chen, Xie, He: "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, section 4.3.

    >>> sin_cos_positions((1, 2), 4)[:, :2]
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 4) / (dim / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def mimetic(attention: Attention) -> None:
    """Draws an attention's weights as they look after long training: tokens attend to those that are like them.

    For each head, Q' K is about 0.7 I and for all heads together V followed by the projection is about -0.4 I, each with as
    much noise; biases stay. With sines and cosines as positions, what is alike at first is what is near.

    Reference:
        Trockman, Kolter: "Mimetic Initialization of Self-Attention Layers", ICML 2023.
    """
    D, d = attention.proj.in_features, attention.head_dim
    query, key, value = attention.qkv.weight.reshape(3, D, D)
    for head in range(attention.num_heads):
        rows = slice(head * d, (head + 1) * d)
        left, spectrum, right = torch.linalg.svd(0.7 * torch.randn(D, D) / math.sqrt(D) + 0.7 * torch.eye(D))
        root = spectrum[:d].sqrt()[:, None]
        query[rows], key[rows] = root * left[:, :d].T, root * right[:d]
    left, spectrum, right = torch.linalg.svd(0.4 * torch.randn(D, D) / math.sqrt(D) - 0.4 * torch.eye(D))
    root = spectrum.sqrt()
    value.copy_(root[:, None] * right)
    attention.proj.weight.copy_(left * root)
