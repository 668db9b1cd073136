"""What the tables of names of transformers' and timm's Swin share."""

from __future__ import annotations

from finetune.weights.names import Drop, Rename, Row, linear, weight_and_bias

# for patterns whose first two groups are the numbers of the stage and of the block
BLOCK = r"stages_\1.blocks_\2"
DROPPED = Drop(r".*\.(?:relative_position_index|relative_coords_table|attn_mask)|.*mask_token")


def merging_rows(stage: str, path: str) -> tuple[Row, ...]:
    """The rows of one patch merging; ``stage`` is the pattern of the stage that has it in the checkpoint."""
    return (
        *weight_and_bias(rf"{stage}\.downsample\.norm", f"{path}.downsample.norm", "scale"),
        Rename(rf"{stage}\.downsample\.reduction\.weight", f"{path}.downsample.reduction.kernel", linear),
    )
