"""Decoding one position at a time: the cache of keys and values, and the preparation of a model."""

from functools import partial

import torch
from torch import nn

from models.transformer import Transformer, UnitHead, attend


class KVCache:
    """Keys and values of all layers, one row per hypothesis.

    With a sliding window, slot 0 holds position 0, and the other slots form a ring buffer. Positions are absolute, so a
    key stays valid in any slot.
    """

    def __init__(self, model: Transformer, rows: int) -> None:
        config, weight = model.config, model.embed.token.weight
        length = model.cells.length
        self.capacity = length if model.window is None else min(length, model.window + 1)
        heads, head_dim = config.self_attn_heads, config.in_dim // config.self_attn_heads
        self.keys = weight.new_empty(config.num_dec_layers, rows, heads, self.capacity, head_dim)
        self.values = torch.empty_like(self.keys)
        self.position = 0  # of the next input
        self.parents = [0] * rows  # of the last reordering
        self.reordered = 0  # position of the last reordering

    def slot(self, position: int) -> int:
        """The slot of a position."""
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
        self.own, memory = (None, []) if source is None else model.encode(source)
        self.reads = [partial(self._read, k=k.contiguous(), v=v.contiguous()) for k, v in memory]
        self.reads = self.reads or [None] * len(model.decoder)
        # Of the cell that is being written: its tokens so far, and the sum from which its next token is written.
        self.inside: list[torch.Tensor] = []
        self.sum: torch.Tensor | None = None

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i continues from row `rows[i]` of the same image."""
        self.cache.reorder(rows)
        self.inside = [tokens[rows] for tokens in self.inside]
        self.sum = None if self.sum is None else self.sum[rows]

    def _see(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        """Self-attention (R, heads, 1, d) of each row to its cached positions and the new one."""
        return attend(q, *self.cache.update(layer, k, v))

    def _read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Cross-attention (R, heads, 1, d): the rows of an image are the queries of one product."""
        q = q.squeeze(2).unflatten(0, (len(k), -1)).transpose(1, 2)  # (N, heads, rows of an image, d)
        return attend(q, k, v).transpose(1, 2).flatten(0, 1)[:, :, None]

    @property
    def position(self) -> int:
        """The position of the next input, of the decoder's."""
        return self.cache.position

    def next_logits(self, inputs: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """The next input of each row (R,) → logits (R, num_units) of the token after it.

        `start` (R, dim), if any, is added to the embeddings of the first inputs.
        """
        model = self.model
        x = self._next_position(inputs[:, None], start) if model.in_cell == 1 else self._next_in_cell(inputs)
        return model.head(model.norm(x.to(model.norm.weight.dtype))).squeeze(1)

    def _next_position(
        self, before: torch.Tensor, start: torch.Tensor | None = None, own: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the next position reads of the tokens before it, (R, 1) or (R, 1, in_cell) → its output (R, 1, dim)."""
        cells = torch.full((1,), self.position, device=before.device)
        x = self.model.embed_inputs(before, cells, start, own)
        for layer, (block, read) in enumerate(zip(self.model.decoder, self.reads, strict=True)):
            x = block(x, partial(self._see, layer=layer), read)
        self.cache.position += 1
        return x

    def _next_in_cell(self, inputs: torch.Tensor) -> torch.Tensor:
        """The next input of each row (R,) → the output (R, 1, dim) for the next token of a cell."""
        cell, size = self.model.cell, self.model.in_cell
        self.inside.append(inputs)
        if len(self.inside) == size or self.sum is None:  # a cell is complete, or nothing is written yet
            before = torch.stack(self.inside * (size // len(self.inside)), dim=1)[:, None]
            own = self.own[:, self.position, None].repeat_interleave(len(inputs) // len(self.own), dim=0)
            self.sum, self.inside = self._next_position(before, own=own), []
        else:
            token = self.model.embed.token(inputs)[:, None]
            self.sum = self.sum + cell.before[len(self.inside) - 1](token.to(self.sum.dtype))
        x = self.sum + cell.place.weight[len(self.inside)]
        return x + cell.mlp(cell.norm(x))


class PackedLinear(nn.Module):
    """A linear layer without bias on the CPU, whose weight is in the layout that oneDNN prefers."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


def make_ready(model: Transformer, dtype: torch.dtype, rows: int, compiled: bool = False) -> None:
    """Prepare a model in place to only decode, `rows` rows at once, in `dtype` except for the logits.

    On the CPU the decoder's weights are packed, unless this is slower (one row in float32) or not supported (bfloat16
    on some processors).
    """
    model.eval()
    if isinstance(model.head, UnitHead):
        model.head = model.head.folded()
    model.to(dtype)
    model.norm.float()
    model.head.float()
    if compiled:
        for name in ("_see", "_read"):  # their shapes change; as a decorator this takes a second at each start
            setattr(CachedDecoder, name, torch.compiler.disable(getattr(CachedDecoder, name)))
        for block in model.decoder:
            block.compile()
        return
    is_cpu = model.head.weight.device.type == "cpu"
    if not is_cpu or not torch.backends.mkldnn.is_available() or (rows == 1 and dtype == torch.float32):
        return
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for parent in list(model.decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight.detach()))
