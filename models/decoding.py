"""Decoding one position at a time: the cache of keys and values, and the preparation of a model."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from models.transformer import Transformer, UnitHead, attend

# On the CPU, all measured in docs/experiments.md, "How fast":
NARROW = 256  # width below which a product in float32 takes longer with oneDNN than without
WIDE = 32  # width from which heads attend faster in bfloat16 than in float32


def attention_dtype(weight: torch.Tensor, head_dim: int, queries: int = 1) -> torch.dtype:
    """The dtype in which `queries` rows that share their keys attend.

    On the CPU the products of one query with narrow heads take longer in bfloat16 than in float32.
    """
    is_slow = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and queries == 1 and head_dim < WIDE
    return torch.float32 if is_slow else weight.dtype


class KVCache:
    """Keys and values of all layers, one row per hypothesis.

    With a sliding window, slot 0 holds position 0, and the other slots form a ring buffer. Positions are absolute, so a
    key stays valid in any slot.
    """

    def __init__(self, model: Transformer, rows: int) -> None:
        config, weight = model.config, model.embed.token.weight
        length = model.positions.length
        self.capacity = length if model.window is None else min(length, model.window + 1)
        heads, head_dim = config.self_attn_heads, config.in_dim // config.self_attn_heads
        shape = config.num_dec_layers, rows, heads, self.capacity, head_dim
        self.keys = weight.new_empty(shape, dtype=attention_dtype(weight, head_dim))
        self.values = torch.empty_like(self.keys)
        self.position = 0  # of the next input
        self.parents = [0] * rows  # of the last reordering
        self.reordered = 0  # position of the last reordering

    def slot(self, position: int) -> int:
        return 1 + (position - 1) % (self.capacity - 1) if position else 0

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k and v (R, heads, 1, head_dim) of this position → the keys and values to attend to, in any order."""
        slot, seen = self.slot(self.position), min(self.position + 1, self.capacity)
        self.keys[layer, :, :, slot : slot + 1], self.values[layer, :, :, slot : slot + 1] = k, v
        return self.keys[layer, :, :, :seen], self.values[layer, :, :, :seen]

    def reorder(self, rows: torch.Tensor) -> None:
        """Continue row i from the state of row `rows[i]`; a row that stays is not copied.

        Rows with the same parent are equal up to the last reordering. If each row continues from a row with the same
        parent as its own, as when an image keeps one beam, only the positions since then are copied.
        """
        order = rows.tolist()  # the only synchronisation with the device
        since = self.reordered if [self.parents[row] for row in order] == self.parents else 0
        slots = sorted({self.slot(position) for position in range(since, self.position)})
        moved = [row for row, parent in enumerate(order) if row != parent]
        if slots:  # inside a cell there may be none
            slots, moved = (torch.tensor(part, dtype=torch.int64).to(rows.device) for part in (slots, moved))
            moved, parents = moved[:, None], rows[moved][:, None]
            for tensor in (*self.keys, *self.values):  # of one layer, (R, heads, capacity, head_dim)
                tensor[moved, :, slots] = tensor[parents, :, slots]
        self.parents, self.reordered = order, self.position


class CachedDecoder:
    """`next_logits` continues from a cache instead of recomputing the prefix.

    `source` (N, S) are the coarse tokens of N images, encoded once; the rows of an image are consecutive.
    """

    def __init__(self, model: Transformer, rows: int, source: torch.Tensor | None = None) -> None:
        self.model, self.cache = model, KVCache(model, rows)
        weight = model.embed.token.weight
        self.places = model.embed.places(torch.arange(model.positions.length, device=weight.device))
        self.own, memory = (None, []) if source is None else model.encode(source)
        head_dim = model.config.in_dim // model.config.cross_attn_heads
        dtype = attention_dtype(weight, head_dim, 1 if source is None else rows // len(source))
        memory = [(k.to(dtype).contiguous(), v.to(dtype).contiguous()) for k, v in memory]
        self.reads = [partial(self._cross_attend, k=k, v=v) for k, v in memory]
        self.reads = self.reads or [None] * len(model.decoder)
        # Of the cell that is being written: its tokens so far, and the sum from which its next token is written.
        self.inside: list[torch.Tensor] = []
        self.sum: torch.Tensor | None = None

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i continues from row `rows[i]` of the same image."""
        self.cache.reorder(rows)
        self.inside = [tokens[rows] for tokens in self.inside]
        self.sum = None if self.sum is None else self.sum[rows]

    def _self_attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Self-attention (R, heads, 1, d) of each row to its cached positions and the new one."""
        keys, values = self.cache.update(layer, k, v)
        return attend(q.to(keys.dtype), keys, values).to(q.dtype)

    def _cross_attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Cross-attention (R, heads, 1, d): the rows of an image are the queries of one product."""
        rows = q.squeeze(2).unflatten(0, (len(k), -1)).transpose(1, 2)  # (N, heads, rows of an image, d)
        return attend(rows.to(k.dtype), k, v).transpose(1, 2).flatten(0, 1)[:, :, None].to(q.dtype)

    @property
    def position(self) -> int:
        return self.cache.position

    def next_logits(self, inputs: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """The next input of each row (R,) → logits (R, num_units) of the token after it.

        `start` (R, dim), if any, is added to the embeddings of the first inputs.
        """
        model = self.model
        if model.per_position == 1:
            x = model.embed.token(inputs) + self.places[self.position]
            x = self._next_position(x if start is None else x + start.to(x.dtype))
        else:
            x = self._next_in_cell(inputs)
        return model.head(model.norm(x.to(model.norm.weight.dtype))).squeeze(1)

    def _next_position(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the next position, (R, dim) → its output (R, 1, dim)."""
        x = x[:, None]
        for layer, (block, cross_attend) in enumerate(zip(self.model.decoder, self.reads, strict=True)):
            x = block(x, partial(self._self_attend, layer=layer), cross_attend)
        self.cache.position += 1
        return x

    def _next_in_cell(self, inputs: torch.Tensor) -> torch.Tensor:
        """The next input of each row (R,) → the output (R, 1, dim) for the next token of a cell."""
        cell, size = self.model.cell, self.model.per_position
        self.inside.append(inputs)
        if len(self.inside) == size or self.sum is None:  # a cell is complete, or nothing is written yet
            before = torch.stack(self.inside * (size // len(self.inside)), dim=1)
            own = self.own[:, self.position].repeat_interleave(len(inputs) // len(self.own), dim=0)
            x = cell.join(self.model.embed.token(before).flatten(1)) + self.places[self.position] + own
            self.sum, self.inside = self._next_position(x), []
        else:
            token = self.model.embed.token(inputs)[:, None]
            self.sum = self.sum + cell.before[len(self.inside) - 1](token.to(self.sum.dtype))
        x = self.sum + cell.place.weight[len(self.inside)]
        return x + cell.mlp(cell.norm(x))


def make_ready(model: Transformer, dtype: torch.dtype, compiled: bool = False) -> None:
    """Prepare a model in place to only decode, in `dtype` except for the logits.

    On the CPU a narrow model decodes in float32, with weights that are rounded all the same: for few rows this is
    faster, and whether there are few must not decide which tokens are written. The decoder's layers become plain
    functions, which are called faster than modules.
    """
    is_cpu, is_narrow = model.head.weight.device.type == "cpu", model.config.in_dim < NARROW
    model.eval().to(dtype)
    if is_cpu and is_narrow:
        dtype = torch.float32
        model.to(dtype)
    model.norm.float()
    model.head.float()
    if isinstance(model.head, UnitHead):  # whose parts are rounded by now, as in an exported model
        model.head = model.head.folded()
    if compiled:
        # Their shapes change; as a decorator this takes a second at each start.
        for name in ("_self_attend", "_cross_attend"):
            setattr(CachedDecoder, name, torch.compiler.disable(getattr(CachedDecoder, name)))
        for block in model.decoder:
            block.compile()
        return
    if not is_cpu:
        return
    is_packed = torch.backends.mkldnn.is_available() and not (is_narrow and dtype == torch.float32)
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        is_packed = False
    parts = (model.decoder, model.cell) if model.per_position > 1 else (model.decoder,)
    for parent in [each for part in parts for each in part.modules() if not isinstance(each, nn.ModuleList)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | nn.LayerNorm):
                delattr(parent, name)
                setattr(parent, name, as_function(child, is_packed))


def as_function(layer: nn.Linear | nn.LayerNorm, is_packed: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer as a function, the weight of a linear one perhaps in the layout that oneDNN prefers."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.LayerNorm):
        return partial(F.layer_norm, normalized_shape=layer.normalized_shape, weight=weight, bias=bias)
    if not is_packed:
        return partial(F.linear, weight=weight, bias=bias)
    weight, product = torch.ops.mkldnn._reorder_linear_weight(weight), torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, weight, bias, "none", [], "")
