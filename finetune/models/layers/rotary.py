"""Rotary position embeddings of image patches (Su et al. 2021, arXiv:2104.09864; for images Heo et al. 2024,
arXiv:2403.13298).

Queries and keys are split into pairs of channels, and each pair is rotated by an angle that grows with the patch's
row (one half of the pairs) or column (the other half). There is no table of learned positions, so any grid will do.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# What the angles are of. "centers": the patches' centres, from -1 to 1 on each axis whatever the grid, in full turns
# (DINOv3). "indices": the patches' indices, rows before columns (EVA-02). "indices_xy": columns before rows (PE).
Rope = Literal["centers", "indices", "indices_xy"]


@struct.dataclass
class Rotation:
    """The rotation of each token's queries and keys.

    Attributes:
        cos, sin: float32 [tokens, head_dim / 2], of the angle of each pair of channels.
        adjacent: pairs are channels (0, 1), (2, 3), ...; otherwise a channel of the first half and one of the second.
    """

    cos: jax.Array
    sin: jax.Array
    adjacent: bool = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Queries or keys of the first t tokens [N, t, heads, head_dim], rotated in float32; same shape and dtype."""
        cos, sin = (table[: x.shape[1], None] for table in (self.cos, self.sin))
        wide = x.astype(jnp.float32)
        first, second = (wide[..., 0::2], wide[..., 1::2]) if self.adjacent else jnp.split(wide, 2, axis=-1)
        rotated = first * cos - second * sin, second * cos + first * sin
        joined = jnp.stack(rotated, axis=-1).reshape(x.shape) if self.adjacent else jnp.concatenate(rotated, axis=-1)
        return joined.astype(x.dtype)


def patch_rotation(
    rope: Rope,
    grid: tuple[int, int],
    head_dim: int,
    *,
    prefix: int,
    base: float,
    reference: int | None = None,
    offset: float = 0.0,
) -> Rotation:
    """The rotation of the patches of a grid, and none of the tokens in front of them.

    Args:
        grid: rows and columns of patches.
        head_dim: channels of one head, a multiple of 4.
        prefix: number of tokens in front of the patches.
        base: each pair of channels turns slower than the one before it; the last one almost ``base`` times slower.
        reference: patches along an edge in pretraining, to which the indices are scaled; None for no scaling.
        offset: added to the indices.
    """
    axes = []
    for patches in grid:
        index = np.arange(patches, dtype=np.float64)
        scaled = (index + offset) * (reference / patches if reference else 1.0)
        axes.append((2 * (index + 0.5) / patches - 1) * 2 * np.pi if rope == "centers" else scaled)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))
    positions = np.stack((column, row) if rope == "indices_xy" else (row, column), axis=1)
    frequencies = base ** -(np.arange(head_dim // 4) / (head_dim // 4))
    angles = (positions[:, :, None] * frequencies).reshape(len(positions), head_dim // 2)
    angles = np.concatenate([np.zeros((prefix, head_dim // 2)), angles])
    cos, sin = (jnp.asarray(table, jnp.float32) for table in (np.cos(angles), np.sin(angles)))
    return Rotation(cos, sin, adjacent=rope != "centers")
