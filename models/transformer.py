"""The transformer of every stage: a decoder over a grid of tokens, and in a cascade stage an encoder of a coarser grid.

Sources: pre-norm and gated MLP (Shazeer 2020, "GLU variants improve transformer"), query-key normalisation (Henry et
al. 2020). Positions are learned: one vector per row and one per column.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.activations import ACTIVATIONS
from utils.core.options import check_ranges, option
from utils.runtime.draws import draw

Attend = Callable[..., torch.Tensor]
LARGEST = 2**16  # limit of rows, columns, units and widths, because a config may come from an untrusted source


@dataclass(frozen=True)
class TransformerConfig:
    model_lr: float = option(
        "peak learning rate of a step with 2,048 tokens; it follows the root of their number", low=0
    )
    use_sliding_window: bool = option("whether a token attends only to a window of tokens and to the first token")
    sliding_window: int = option("tokens in the window, including the token itself; of `cell`, whole cells", low=2)
    num_enc_layers: int = option("layers of the encoder; a base stage has none", low=0, high=1024)
    num_dec_layers: int = option("layers of the decoder", low=1, high=1024)
    self_attn_heads: int = option("heads of self-attention; they must divide `in_dim`", low=1)
    cross_attn_heads: int = option("heads of cross-attention; they must divide `in_dim`", low=1)
    in_dim: int = option("width", low=1, high=LARGEST)
    hidden_dim: int = option("hidden width of the gated MLP", low=1, high=LARGEST)
    hidden_activation: str = option("activation of the MLP", choices=ACTIVATIONS)
    dropout: float = option("share of channels dropped in embeddings and blocks", 0.0, low=0, below=1)
    weight_decay: float = option("decay of matrices per step at the peak rate", 3e-4, low=0, below=0.01)
    condition_dropout: float = option("share of images without a condition; needed for guidance", 0.0, low=0, below=1)
    condition_noise: float = option("share of coarse tokens replaced by one of 8 near units", 0.0, low=0, below=1)
    use_labels: bool = option("whether a base stage learns the labels of the images, for `--label`", False)
    head_features: int = option(
        "features by which similar units share weights of the head; 0: none", 0, low=0, high=LARGEST
    )
    cell: int = option("side of the block of tokens written at once, one for each coarse token", 1, low=1, high=8)

    def __post_init__(self) -> None:
        check_ranges(self)
        for key in ("self_attn_heads", "cross_attn_heads"):
            if self.in_dim % getattr(self, key):
                raise ValueError(f"'in_dim' is {self.in_dim}, expected a multiple of {key!r} {getattr(self, key)}")


@dataclass(frozen=True)
class Grid:
    height: int
    width: int
    num_units: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 1 <= getattr(self, field.name) <= LARGEST:
                raise ValueError(f"{field.name!r} is {getattr(self, field.name)}, expected 1 to {LARGEST}")

    @property
    def shown(self) -> str:
        return f"{self.width}×{self.height}"

    @property
    def length(self) -> int:
        return self.height * self.width


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, *, is_causal: bool = False
) -> torch.Tensor:
    """Attention of q (…, T, d) to k and v (…, S, d), where `mask` is true, or causal.

    On the CPU, plain matrix products replace the fused kernel where they are faster: with gradients, and for few
    queries of each of many rows, as in decoding; both only if there are few enough scores to keep in memory.
    """
    number = q.shape[:-1].numel()
    is_decoding = number > 32 and 4 * q.shape[-2] <= k.shape[-2]
    is_plain = q.device.type == "cpu" and number * k.shape[-2] <= 2**24 and (q.requires_grad or is_decoding)
    if not is_plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    q = q * q.shape[-1] ** -0.5
    is_one = q.shape[-2] == 1 and q.dtype == torch.bfloat16  # for which keys times queries are faster
    scores = (k @ q.mT).mT if is_one else q @ k.mT
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores += torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention (B, heads, T, d) of each token to itself, the tokens before it within `window`, and position 0.

    Token t attends to t − window + 1 … t and 0. Of long grids memory is linear in T: each block of `window` queries is
    multiplied with the `2·window` keys in its range, and position 0.
    """
    batch, _, length, _ = q.shape
    if window is None or window >= length:
        return attend(q, k, v, is_causal=True)
    num = -(-length // window)
    if length**2 <= num * window * (2 * window + 1):  # the blocks would hold more scores than the square
        key = torch.arange(length, device=q.device)
        query = key[:, None]
        return attend(q, k, v, (key <= query) & ((key > query - window) | (key == 0)))
    q, k, v = (_blocks(x, num, window) for x in (q, k, v))  # (num, B·heads, window, d)
    k, v = (_with_keys_in_range(x) for x in (k, v))  # (num, B·heads, 1 + 2·window, d)
    start = torch.arange(num, device=q.device)[:, None, None] * window
    query = start + torch.arange(window, device=q.device)[:, None]
    key = start + torch.arange(-window, window, device=q.device)
    in_band = (key >= 0) & (key <= query) & (key > query - window)  # (num, window, 2·window)
    mask = torch.cat((query >= window, in_band), dim=-1)[:, None]  # position 0 if it is outside the band
    y = attend(q, k, v, mask)
    y = y.unflatten(1, (batch, -1)).permute(1, 2, 0, 3, 4)  # (B, heads, num, window, d)
    return y.flatten(2, 3)[:, :, :length]


def _blocks(x: torch.Tensor, num: int, window: int) -> torch.Tensor:
    """(B, heads, T, d) → (num, B·heads, window, d), padded with zeros."""
    x = F.pad(x, (0, 0, 0, num * window - x.shape[2]))
    return x.unflatten(2, (num, window)).permute(2, 0, 1, 3, 4).flatten(1, 2)


def _with_keys_in_range(x: torch.Tensor) -> torch.Tensor:
    """(num, N, W, d) → (num, N, 1 + 2·W, d): each block, preceded by position 0 and the block before it."""
    before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
    pinned = x[:1, :, :1].expand(x.shape[0], -1, -1, -1)
    return torch.cat((pinned, before, x), dim=2)


def norm(dim: int) -> nn.LayerNorm:
    """Layer normalisation without bias; unlike `nn.RMSNorm` it has a fused gradient on the CPU."""
    return nn.LayerNorm(dim, bias=False)


class Attention(nn.Module):
    """The projections of multi-head attention, with normalised queries and keys; the caller computes the attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.query_norm = norm(dim // num_heads)
        self.key_norm = norm(dim // num_heads)
        self.out = nn.Linear(dim, dim, bias=False)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) → (B, heads, T, head_dim)."""
        q = self.query(x).unflatten(-1, (self.num_heads, -1))
        return self.query_norm(q).transpose(1, 2)

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, dim) → keys and values, each (B, heads, S, head_dim)."""
        k, v = self.key_value(x).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return self.key_norm(k).transpose(1, 2), v.transpose(1, 2)

    def merge(self, y: torch.Tensor) -> torch.Tensor:
        """(B, heads, T, head_dim) → (B, T, dim), mixed by the output projection."""
        return self.out(y.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.in_dim, 2 * config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.in_dim, bias=False)
        self.activation = ACTIVATIONS[config.hidden_activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) → the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class ChannelDropout(nn.Module):
    """Dropout of a channel at all positions of an image (Gal and Ghahramani 2016), which needs few random numbers."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, dim) → the same shape."""
        if not self.training or self.share == 0:
            return x
        return x * draw(lambda number: F.dropout(x.new_ones(number, 1, x.shape[-1]), self.share), len(x))


class Block(nn.Module):
    """Self-attention, then cross-attention to the output of the encoder, if there is one, then the MLP."""

    def __init__(self, config: TransformerConfig, has_cross_attention: bool = False) -> None:
        super().__init__()
        self.self_norm, self.mlp_norm = norm(config.in_dim), norm(config.in_dim)
        self.self_attention = Attention(config.in_dim, config.self_attn_heads)
        if has_cross_attention:
            self.cross_norm = norm(config.in_dim)
            self.cross_attention = Attention(config.in_dim, config.cross_attn_heads)
        self.mlp = GatedMLP(config)
        self.dropout = ChannelDropout(config.dropout)

    def forward(
        self, x: torch.Tensor, self_attend: Attend = attend, cross_attend: Attend | None = None
    ) -> torch.Tensor:
        """(B, T, dim) → the same shape. `self_attend(q, k, v)` and `cross_attend(q)` are its two attentions."""
        attention, normed = self.self_attention, self.self_norm(x)
        y = self_attend(attention.queries(normed), *attention.keys_values(normed))
        x = x + self.dropout(attention.merge(y))
        if cross_attend is not None:
            y = cross_attend(self.cross_attention.queries(self.cross_norm(x)))
            x = x + self.dropout(self.cross_attention.merge(y))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Cells(nn.Module):
    """How a decoder reads and writes cells of n tokens: RQ-Transformer's idea (Lee et al. 2022), with an MLP as depth.

    The tokens of a cell are joined to one input of the decoder, which also reads the coarse token at its own cell. Each
    token is written from the decoder's output for the cell and from the tokens before it in the cell.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        number, dim = config.cell**2, config.in_dim
        self.join = nn.Linear(number * dim, dim, bias=False)
        self.read = nn.Linear(dim, dim, bias=False)
        self.before = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(number - 1))
        self.place = nn.Embedding(number, dim)
        self.norm, self.mlp = norm(dim), GatedMLP(config)

    def write(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Outputs (B, P, dim), vectors of all but the last token of each cell (B, P, n − 1, dim) → (B, P, n, dim)."""
        seen = [x, *(layer(part) for layer, part in zip(self.before, tokens.unbind(2), strict=True))]
        x = torch.stack(seen, dim=2).cumsum(2) + self.place.weight.to(x.dtype)
        return x + self.mlp(self.norm(x))


class UnitHead(nn.Linear):
    """A linear layer to the logits of units, part of whose weights is a smooth function of the units.

    The weight is W + Φ·V, where row k of the fixed Φ (K, features) describes unit k: what is learned of one unit is
    learned of those near to it too.
    """

    def __init__(self, dim: int, num_units: int, features: int) -> None:
        super().__init__(dim, num_units)
        # A parameter, so that a warm start loads it with `shared`, which was learned for these features; buffers stay.
        self.features = nn.Parameter(torch.zeros(num_units, features), requires_grad=False)
        self.shared = nn.Parameter(torch.zeros(features, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) → (…, num_units)."""
        return F.linear(x, self.weight + self.features @ self.shared, self.bias)

    def folded(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features)
        layer.weight, layer.bias = nn.Parameter(self.weight + self.features @ self.shared), self.bias
        return layer


class GridEmbedding(nn.Module):
    """The sum of three learned embeddings: of the token, its row and its column."""

    def __init__(self, grid: Grid, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.width = grid.width
        self.token = nn.Embedding(num_tokens, dim)
        self.row, self.column = nn.Embedding(grid.height, dim), nn.Embedding(grid.width, dim)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) at positions (T,) in raster order → (B, T, dim), in the dtype of autocast, if enabled."""
        return in_autocast(self.token(tokens) + self.places(positions))

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """The vectors (T, dim) of positions (T,), without a token."""
        return self.row(positions // self.width) + self.column(positions % self.width)


def in_autocast(x: torch.Tensor) -> torch.Tensor:
    """In the dtype of autocast, if enabled: it does not cast sums, but the residual stream should be in its dtype."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class Transformer(nn.Module):
    """Logits of the tokens of a grid, in raster order, given the tokens before them and a coarser grid.

    The decoder writes `grid`; the encoder reads `source`. Their inputs come from vocabularies of `num_inputs` and
    `num_sources`, which may be larger than those of the grids: `models.stage` defines that layout. Input i has the
    position of the token that it predicts.

    With `cell` above 1, a position of the decoder is a cell of `cell`² tokens, and tokens come in the order in which
    they are written: cell by cell, and in raster order within a cell.
    """

    def __init__(
        self, config: TransformerConfig, grid: Grid, num_inputs: int, source: Grid | None = None, num_sources: int = 0
    ) -> None:
        super().__init__()
        self.config, self.source = config, source
        self.per_position = config.cell**2  # tokens of a position
        self.positions = Grid(grid.height // config.cell, grid.width // config.cell, grid.num_units)
        self.window = -(-config.sliding_window // self.per_position) if config.use_sliding_window else None  # positions
        self.use_activation_checkpoint = False
        dim = config.in_dim
        self.embed = GridEmbedding(self.positions, num_inputs, dim)
        self.dropout = ChannelDropout(config.dropout)
        self.decoder = nn.ModuleList(Block(config, source is not None) for _ in range(config.num_dec_layers))
        self.norm = norm(dim)
        features = config.head_features
        self.head = UnitHead(dim, grid.num_units, features) if features else nn.Linear(dim, grid.num_units)
        if source is not None:
            self.source_embed = GridEmbedding(source, num_sources or source.num_units, dim)
            self.encoder = nn.ModuleList(Block(config) for _ in range(config.num_enc_layers))
            self.encoder_norm = norm(dim)
        if config.cell > 1:
            self.cell = Cells(config)
        self._initialise()

    def _initialise(self) -> None:
        """Blocks start as the identity and the head as a uniform distribution: their last matrices are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        for name, parameter in self.named_parameters():
            if name.startswith("head.") or name.endswith((".out.weight", ".down.weight")):
                nn.init.zeros_(parameter)

    @property
    def block_weights(self) -> list[nn.Parameter]:
        blocks = (*self.decoder, *getattr(self, "encoder", ()), *([self.cell] if self.per_position > 1 else ()))
        return [layer.weight for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]

    def encode(self, source: torch.Tensor) -> tuple[torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Coarse tokens (B, S) → what each cell reads of its own coarse token (B, S, dim), None without cells, and the
        cross-attention keys and values of each decoder layer, (B, heads, S, head_dim).
        """
        x = self.dropout(self.source_embed(source, torch.arange(self.source.length, device=source.device)))
        for block in self.encoder:
            x = self._run(block, x)
        x = self.encoder_norm(x)
        own = self.cell.read(x) if self.per_position > 1 else None
        return own, [block.cross_attention.keys_values(x) for block in self.decoder]

    def forward(
        self, inputs: torch.Tensor, source: torch.Tensor | None = None, start: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Inputs (B, T) and coarse tokens (B, S) → logits (B, T, num_units) of the token at each position.

        `start` (B, dim), if any, is added to the embedding of the first input.
        """
        own, memory = (None, []) if source is None else self.encode(source)
        before = self.by_position(inputs)
        own = own if own is None else own[:, : before.shape[1]]  # a prefix may be given
        x = self.dropout(self.embed_inputs(before, torch.arange(before.shape[1], device=inputs.device), start, own))
        self_attend = partial(causal_attention, window=self.window)
        reads = [partial(attend, k=k, v=v) for k, v in memory] or [None] * len(self.decoder)
        for block, cross_attend in zip(self.decoder, reads, strict=True):
            x = self._run(block, x, self_attend, cross_attend)
        if self.per_position > 1:
            tokens = self.embed.token(inputs.unflatten(1, (-1, self.per_position))[:, :, 1:])
            x = self.cell.write(x, tokens.to(x.dtype)).flatten(1, 2)
        return self.head(self.norm(x))

    def by_position(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (B, T) → those of each position: itself (B, T), or the tokens of the cell before it (B, P, cell²).

        Before the first cell there is only its first input.
        """
        if self.per_position == 1:
            return inputs
        first = inputs[:, :1].expand(-1, self.per_position - 1)
        return torch.cat((first, inputs), dim=1)[:, : inputs.shape[1]].unflatten(1, (-1, self.per_position))

    def embed_inputs(
        self, before: torch.Tensor, cells: torch.Tensor, start: torch.Tensor | None, own: torch.Tensor | None
    ) -> torch.Tensor:
        """Inputs of the positions `cells` (P,), as `by_position` gives them → (B, P, dim).

        `start` (B, dim) is added to the first, `own` (B, P, dim) to all.
        """
        if own is None:
            x = self.embed(before, cells)
        else:
            joined = self.cell.join(in_autocast(self.embed.token(before)).flatten(2))
            x = in_autocast(joined + self.embed.places(cells) + own)
        return x if start is None else torch.cat((x[:, :1] + start[:, None].to(x.dtype), x[:, 1:]), dim=1)

    def _run(self, block: nn.Module, *args: object) -> torch.Tensor:
        if self.use_activation_checkpoint and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
