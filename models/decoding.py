"""Decoding one position at a time: the cache of keys and values, and the model made ready for it.

The beams of an image that go on from the same survivor share its prefix: they are the queries of one attention to it,
and beside it lie the few keys that each has added since, which a mask shows to their beam alone.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from models.transformer import Transformer
from utils.sampling import SamplingConfig


@dataclass(frozen=True)
class View:
    """What one position sees of a cache: slots up to `end`, but for what the masks say. The newest lie at `slot`."""

    slot: int
    end: int
    base: int  # where the open block begins
    stale: tuple[slice, ...]  # slots that the window has left


class KVCache:
    """Keys and values of all layers, of `prefixes` rows that `share` beams each go on from, `block` tokens long.

    Of a prefix slot 0 keeps position 0 and the others roll, as far as the window reaches; positions are absolute, so
    keys stay valid wherever they lie. Behind what a prefix holds come the keys of the open block, a slot a position and
    beam. A beam alone on its prefix (`share` 1) has no block: it writes to the prefix.
    """

    def __init__(self, model: Transformer, prefixes: int, share: int = 1, block: int = 1) -> None:
        config, weight = model.config, model.embed.token.weight
        self.share, self.ring = share, prefix_length(model)
        capacity = self.ring + (share * block if share > 1 else 0)
        heads, head_dim = config.self_attn_heads, config.in_dim // config.self_attn_heads
        self.keys = weight.new_empty(config.num_dec_layers, prefixes, heads, head_dim, capacity)
        self.values = weight.new_empty(config.num_dec_layers, prefixes, heads, capacity, head_dim)
        own = torch.eye(share, dtype=torch.bool, device=weight.device).repeat(1, block)
        self.own = weight.new_zeros(own.shape).masked_fill(~own, -torch.inf)  # (share, share·block), of the open block
        self.position = 0  # that comes next
        self.settled = 0  # positions that have been written to the prefixes

    def advance(self) -> View:
        """Make room for the next position."""
        position, self.position = self.position, self.position + 1
        if self.share == 1:
            self.settled = self.position
            end = min(self.settled, self.ring)
            return View(self._slot(position), end, end, ())
        base = min(self.settled, self.ring)
        slot = base + (position - self.settled) * self.share
        window = self.ring - 1
        oldest, newest_stale = max(1, self.settled - window), position - window
        if newest_stale < oldest:
            return View(slot, slot + self.share, base, ())
        first, end = self._slot(oldest), self._slot(oldest) + newest_stale - oldest + 1
        wrapped = max(0, end - self.ring)
        return View(slot, slot + self.share, base, (slice(first, end - wrapped), slice(1, 1 + wrapped)))

    def _slot(self, position: int) -> int:
        """Where a position lies in a prefix."""
        return 1 + (position - 1) % (self.ring - 1) if position else 0

    @torch.compiler.disable  # its shapes change at each position
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, view: View) -> torch.Tensor:
        """Store k and v of a position in a layer, and attend to all that it sees.

        Each (prefixes, heads, share, head_dim).
        """
        keys, values = self.keys[layer, ..., : view.end], self.values[layer, ..., : view.end, :]
        keys[..., view.slot : view.slot + self.share] = k.mT
        values[..., view.slot : view.slot + self.share, :] = v
        scores = (q * q.shape[-1] ** -0.5) @ keys
        for slots in view.stale:
            scores[..., slots] = -torch.inf
        if self.share > 1:
            scores[..., view.base :] += self.own[:, : view.end - view.base]
        return scores.softmax(-1) @ values

    def reorder(self, rows: torch.Tensor) -> None:
        """Let beam i go on from what beam `rows[i]` has seen; beams that share a prefix go on from the same one.

        What stays in its place is not copied.
        """
        parents = rows[:: self.share]
        source, beam = parents // self.share, parents % self.share
        filled = min(self.settled, self.ring)
        own = filled + torch.arange(self.settled, self.position, device=rows.device).sub(self.settled) * self.share
        by_slot = [self.keys.permute(1, 4, 0, 2, 3), self.values.permute(1, 3, 0, 2, 4)]
        # What the parents have added since: (prefixes, positions, layers, heads, head_dim).
        added = [tensor[source[:, None], own + beam[:, None]] for tensor in by_slot]
        moved = (source != torch.arange(len(source), device=rows.device)).nonzero().flatten()
        if len(moved):
            for tensor in by_slot:
                tensor[moved, :filled] = tensor[source[moved], :filled]
        slots = [self._slot(position) for position in range(self.settled, self.position)]
        for tensor, part in zip(by_slot, added, strict=True):
            tensor[:, slots] = part
        self.settled = self.position


def prefix_length(model: Transformer) -> int:
    """Positions that a prefix keeps: all, or the window's and position 0."""
    return model.grid.length if model.window is None else min(model.grid.length, model.window + 1)


class CachedDecoder:
    """`next_logits` goes on from a cache instead of computing the prefix again.

    `source` (N, S) are the coarse tokens of N images, encoded once; each image has the beams of `config`, a row each.
    """

    def __init__(
        self, model: Transformer, images: int, source: torch.Tensor | None = None, config: SamplingConfig | None = None
    ) -> None:
        config = config or SamplingConfig()
        self.model = model
        self.share = config.num_beam // config.num_prefix
        if self.share * config.beam_width > prefix_length(model):
            self.share = 1  # the open block would cost more than prefixes of one's own
        self.cache = KVCache(model, images * config.num_beam // self.share, self.share, config.beam_width)
        memory = [] if source is None else model.encode(source)
        self.reads = [partial(self._read, keys=k.mT.contiguous(), values=v.contiguous()) for k, v in memory]
        self.reads = self.reads or [None] * len(model.decoder)

    @torch.compiler.disable
    def _read(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention (prefixes, heads, share, d) to the images' memory: an image's beams are queries of one product."""
        images = len(keys)
        q = q.unflatten(0, (images, -1)).transpose(1, 2).flatten(2, 3)  # (N, heads, beams, d)
        y = (q * q.shape[-1] ** -0.5 @ keys).softmax(-1) @ values
        return y.unflatten(2, (-1, self.share)).transpose(1, 2).flatten(0, 1)

    @property
    def position(self) -> int:
        """Of the next input."""
        return self.cache.position

    def next_logits(self, inputs: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """The next input of each row (R,) → logits (R, num_units) of the cell at that position.

        `start` (R, dim), if any, is added to the embeddings of the first inputs.
        """
        model, cache = self.model, self.cache
        cell = torch.tensor([self.position], device=inputs.device)
        x = model.embed_inputs(inputs[:, None], cell, start)  # (R, 1, dim)
        x = x.view(-1, self.share, x.shape[-1])  # (prefixes, share, dim)
        view = cache.advance()
        for layer, (block, read) in enumerate(zip(model.decoder, self.reads, strict=True)):
            x = block(x, partial(cache.attend, layer=layer, view=view), read)
        return model.head(model.norm(x.to(model.norm.weight.dtype))).flatten(0, 1)

    def reorder(self, rows: torch.Tensor) -> None:
        """Let row i go on from row `rows[i]`, of the same image."""
        self.cache.reorder(rows)


class PackedLinear(nn.Module):
    """A linear layer without bias, on the CPU, whose weight lies as oneDNN multiplies it best."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


def make_ready(model: Transformer, dtype: torch.dtype, rows: int, compiled: bool = False) -> None:
    """Turn a model into one that only decodes `rows` rows at once, in `dtype` but for its last step, to the logits.

    On the CPU the decoder's weights are packed, unless that is slower: for a single row of float32.
    """
    model.eval().to(dtype)
    model.norm.float()
    model.head.float()
    if compiled:
        for block in model.decoder:
            block.compile()
        return
    is_cpu = model.head.weight.device.type == "cpu"
    if not is_cpu or not torch.backends.mkldnn.is_available() or (rows == 1 and dtype == torch.float32):
        return
    for parent in list(model.decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight.detach()))
