"""What ``model.json`` may say, as a strict model: needs neither JAX nor the weights.

Unknown keys, wrong types and values out of range are errors, both where a bundle is read and where it is written. What
a description says of the network is held against the arrays themselves later, in :mod:`finetune.models.evidence`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from finetune.errors import CheckpointError, nearest
from finetune.images.spec import ImageSpec
from finetune.recipe.base import Fraction, Part, locate

FORMAT = 5
SetKind = Literal["lac", "aps", "raps"]
NoveltyKind = Literal["energy", "knn", "mahalanobis"]
_ERRORS_SHOWN = 3
_MOST = 1 << 31  # rows or classes: they are counted in int32

Count = Annotated[int, Field(ge=1, lt=_MOST)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, le=1e30)]  # finite in float32, too
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Share = Annotated[float, Field(ge=0, le=1)]


def _check_name(value: Any) -> str:
    # Not pydantic's own text: folders may have names that are no UTF-8.
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a class has a name that is not empty; received {value!r}")
    return value


def _check_plain(value: Any, depth: int = 8) -> Any:
    """JSON values, none of them infinite and not nested deeply."""
    if isinstance(value, dict | list | tuple) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth - 1)
    elif isinstance(value, float) and not abs(value) <= 1e30:
        raise ValueError(f"numbers are finite; received {value}")
    elif not isinstance(value, bool | int | float | str | None):
        raise ValueError("too many levels of lists" if isinstance(value, dict | list | tuple) else f"{value!r}")
    return value


class BackboneDescription(Part):
    """The arguments of :func:`finetune.models.build.build_module`."""

    family: Annotated[str, Field(min_length=1, max_length=100)]
    config: Annotated[dict[str, Any], PlainValidator(lambda value: _check_config(value))]


def _check_config(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("a mapping of names to values")
    return dict(_check_plain(value))


class KnnDescription(Part):
    """Of a :class:`finetune.models.heads.KnnConfig`."""

    size: Count
    k: Count
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)]

    @model_validator(mode="after")
    def _neighbours_are_rows(self) -> Self:
        if self.k > self.size:
            raise ValueError(f"k: of {self.size} images, at most so many vote; received {self.k}")
        return self


class TipAdapterDescription(Part):
    """Of a :class:`finetune.models.heads.TipAdapterConfig`."""

    size: Count
    embedding: Count


_HEADS: dict[str, type[Part]] = {"knn": KnnDescription, "tip_adapter": TipAdapterDescription}


class HeadDescription(Part):
    """The head; of a headless classifier, what its complete model gives."""

    num_classes: Count
    pool: Literal["pooler", "cls", "mean"] | None = None
    dropout: Fraction = 0.0
    headless: bool = False
    type: Literal["knn", "tip_adapter"] | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _config_is_of_the_type(self) -> Self:
        if (self.type is None) != (self.config is None):
            raise ValueError("type and config stand together")
        if self.type is not None:
            if self.headless:
                raise ValueError(f"headless, and of type {self.type}")
            try:
                _HEADS[self.type].model_validate(self.config)
            except ValidationError as error:
                raise ValueError(explain(_HEADS[self.type], error, "config")) from None
        return self


class ConfidenceDescription(Part):
    """A :class:`finetune.export.confidence.Confidence`, but for the arrays of its novelty."""

    scale: list[Positive]
    bias: list[Number]
    scores: dict[SetKind, list[Number]]
    novelty: NoveltyKind
    novelties: Annotated[list[Number], Field(min_length=1)]
    certainties: list[Annotated[float, Field(ge=0, le=1.001)]]  # float32 sums of shares
    right: list[bool]
    thresholds: list[Share]

    def check(self, num_classes: int) -> None:
        """
        Raises:
            ValueError: parts that do not fit each other, or another number of classes.
        """
        if len(self.scale) not in (1, num_classes) or len(self.bias) != len(self.scale):
            raise ValueError(
                f"confidence: scale of {len(self.scale)} and bias of {len(self.bias)} numbers for {num_classes} classes"
            )
        images = len(self.novelties)
        if len(self.certainties) != len(self.right) or len(self.right) not in (0, images):
            raise ValueError(f"confidence: certainties and right: one of each for the {images} novelties, or none")
        if self.thresholds and (len(self.thresholds) != num_classes or self.scores or self.certainties):
            raise ValueError(
                f"confidence: thresholds: one for each of {num_classes} classes, and no scores beside them"
            )
        if not self.thresholds and self.scores.keys() != set(get_args(SetKind)):
            raise ValueError(
                f"confidence: scores: of {', '.join(get_args(SetKind))}; received {', '.join(self.scores)}"
            )
        for name, values in [*self.scores.items(), ("novelties", self.novelties)]:
            if len(values) != images or any(before > after for before, after in pairwise(values)):
                raise ValueError(f"confidence: {name}: {images} numbers in ascending order")


class Description(Part):
    """All of ``model.json``, in the current format.

    ``sha256`` is over everything else in it, with ``weights_sha256`` and ``novelty_sha256`` among it: one digest of the
    whole bundle.
    """

    format: Literal[5]
    backbone: BackboneDescription
    head: HeadDescription
    class_names: Annotated[list[Annotated[str, PlainValidator(_check_name)]], Field(min_length=1)]
    multi_label: bool
    image_spec: Annotated[
        ImageSpec,
        PlainValidator(lambda value: value if isinstance(value, ImageSpec) else ImageSpec.from_json(value)),
        PlainSerializer(ImageSpec.to_json),
    ]
    confidence: ConfidenceDescription | None
    weights_sha256: Digest
    novelty_sha256: Digest

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        count, names = self.head.num_classes, self.class_names
        if len(names) != count:
            raise ValueError(f"class_names: the head gives {count} numbers, and there are {len(names)} names")
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in set(names[:i]))
            raise ValueError(f"class_names: {twice!r} is there twice")
        if self.confidence is not None:
            self.confidence.check(count)
            if bool(self.confidence.thresholds) != self.multi_label:
                raise ValueError(
                    "confidence: thresholds: there where an image may be of several classes, and only there"
                )
        return self

    def to_json(self) -> dict[str, Any]:
        """JSON values, which :meth:`read` takes."""
        return self.model_dump()

    @classmethod
    def read(cls, data: Mapping[str, Any], file: Path) -> Self:
        """
        Args:
            data: the content of ``model.json`` in the current format, without its own digest.
            file: for messages.

        Raises:
            CheckpointError: it is not such a description; says where.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise CheckpointError(f"{file}: not a model description: {explain(cls, error)}") from None


def explain(kind: type[Part], error: ValidationError, above: str = "") -> str:
    """What pydantic found wrong, in one line."""
    lines = []
    for problem in error.errors()[:_ERRORS_SHOWN]:
        at, valid = locate(kind, problem["loc"])
        where = ".".join(str(key) for key in ([above] if above else []) + list(at))
        message = re.sub(r"^(Value error, |(Input|String|List) (?=should))", "", problem["msg"])
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{nearest(str(at[-1]), valid)}"
        elif problem["type"] == "missing":
            message = "missing"
        elif problem["type"] not in ("value_error", "mistake"):
            received = re.sub(r"\s+", " ", repr(problem["input"]))[:80]
            message = f"{message}; received {received}"
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(lines)
