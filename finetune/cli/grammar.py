"""What the program says around its verbs: examples, and hints for words that other tools use."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "finetune run quickstart",
        "finetune run quickstart --dry-run",
        "finetune run clip_vit_b32 data.source=photos stages.1.epochs=5 -o checkpoints/photos",
        "finetune run quickstart -o checkpoints/quickstart --resume",
    ),
    "train": (
        "finetune train photos",
        "finetune train photos --backbone facebook/dinov2-base --minutes 60",
    ),
    "resume": (
        "finetune resume checkpoints/quickstart",
        "finetune resume checkpoints/quickstart evaluate.batch_size=64",
    ),
    "predict": (
        "finetune predict checkpoints/quickstart digit.png",
        "finetune predict checkpoints/quickstart photos --csv",
    ),
    "demo": ("finetune demo checkpoints/quickstart", "finetune demo checkpoints/quickstart --port 8080"),
    "evaluate": ("finetune evaluate checkpoints/quickstart", "finetune evaluate checkpoints/quickstart --data photos"),
    "compare": ("finetune compare checkpoints/a checkpoints/b --html side.html",),
    "soup": ("finetune soup checkpoints/a checkpoints/b -o checkpoints/soup",),
    "push": (
        "finetune push checkpoints/quickstart me/digits",
        "finetune push checkpoints/quickstart me/digits --private",
    ),
    "leaderboard": ("finetune leaderboard photos --backbones builtin:tiny-clip,facebook/dinov2-small",),
    "check-data": ("finetune check-data clip_vit_b32 data.source=photos",),
    "doctor": ("finetune doctor clip_vit_b32 data.source=photos",),
    "plan": ("finetune plan quickstart", "finetune plan clip_vit_b32 data.source=photos mesh.fsdp=2"),
    "bench": ("finetune bench quickstart", "finetune bench clip_vit_b32 --synthetic head.num_classes=10"),
    "lr-find": ("finetune lr-find quickstart", "finetune lr-find quickstart --stage finetune --steps 200"),
    "inspect": ("finetune inspect builtin:tiny-clip", "finetune inspect checkpoints/quickstart --param head"),
    "validate": ("finetune validate mine.yaml", "finetune validate mine.yaml stages.1.epochs=5"),
    "cat": ("finetune cat quickstart", "finetune cat quickstart stages.1.epochs=3 --all"),
    "cp": ("finetune cp quickstart mine.yaml",),
    "schema": ("finetune schema > recipe.schema.json",),
    "ls": ("finetune ls",),
    "models": ("finetune models",),
}
_OTHER_WORDS = {  # of timm, Ultralytics, Lightning, Keras, AutoGluon, Hugging Face and torchtune
    "run": ("start", "launch", "dry-run"),
    "train": ("fit", "finetune", "fine-tune", "tune"),
    "resume": ("continue",),
    "evaluate": ("val", "eval", "test", "score"),
    "predict": ("classify", "infer", "inference", "serve"),
    "demo": ("gradio", "app", "ui", "gui", "web"),
    "compare": ("diff",),
    "soup": ("average", "merge", "swa"),
    "push": ("upload", "publish", "share"),
    "bench": ("benchmark", "profile", "speed"),
    "lr-find": ("lr_find", "lrfind", "find-lr", "tuner"),
    "plan": ("summary", "memory"),
    "inspect": ("info", "show", "describe"),
    "check-data": ("check", "data"),
    "validate": ("lint",),
    "ls": ("list", "recipes"),
    "cat": ("config", "print"),
    "cp": ("copy", "init", "new"),
    "models": ("backbones", "zoo", "list-models"),
}
HINTS = {word: verb for verb, words in _OTHER_WORDS.items() for word in words}


def epilog(verb: str) -> str:
    """The examples below a verb's help; a blank line keeps each on a line of its own."""
    return "\n\n".join(("Examples:", *EXAMPLES[verb]))


class Verbs(TyperGroup):
    """The verbs, with hints for those of other tools."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb = HINTS.get(args[0]) if args else None
        if verb is not None and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command '{args[0]}'. Here it is '{verb}': finetune {verb} --help")
        return super().resolve_command(ctx, args)
