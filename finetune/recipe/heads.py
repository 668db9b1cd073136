"""Stages that fit a head to the frozen backbone's features, which are computed once for each image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.base import Name, Part


class HeadStage(Part):
    """Base of these stages."""

    type: str
    name: Name


class LinearProbeStage(HeadStage):
    """Logistic regression by L-BFGS (Radford et al. 2021, arXiv:2103.00020): multinomial, or for images with several
    labels one for each class.

    Attributes:
        name: what logs and results call the stage.
        l2: strength of the regularization, the inverse of scikit-learn's C; by default the one of the least held-out
            loss is chosen.
        select_on: what that loss is measured on: the ``validation`` images, or the ``folds`` of a cross-validation on
            the training images; by default the first where there are some.
        class_weights: how much each class counts: a number for each, or ``balanced``, inversely to their frequency.
        standardize: scale each feature to unit variance, which changes what the regularization acts on.
    """

    type: Literal["linear_probe"]
    name: Name = "probe"
    l2: float | None = Field(None, gt=0)
    select_on: Literal["validation", "folds"] | None = None
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None
    standardize: bool = False

    def without_effect(self) -> dict[str, str]:
        return (
            {} if self.l2 is None else {"select_on": "with l2, which leaves nothing to choose: leave one of them out"}
        )


class KnnStage(HeadStage):
    """A vote of the nearest training images by cosine similarity, weighted by exp(similarity / temperature) (Wu et al.
    2018, arXiv:1805.01978; Caron et al. 2021, arXiv:2104.14294). The model holds their features.

    Attributes:
        name: what logs and results call the stage.
        k: how many vote.
        temperature: smaller gives the nearest more weight.
    """

    type: Literal["knn"]
    name: Name = "knn"
    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)


class PrototypeStage(HeadStage):
    """The class with the nearest mean (Mensink et al. 2013; Snell et al. 2017, arXiv:1703.05175), as a linear head.

    Attributes:
        name: what logs and results call the stage.
        distance: ``cosine``, of features of unit length, or ``euclidean``.
    """

    type: Literal["prototype"]
    name: Name = "prototype"
    distance: Literal["cosine", "euclidean"] = "cosine"


class TextStage(HeadStage):
    """Base of the heads that start from the class names: ``head.templates`` are their prompts."""


class TipAdapterStage(TextStage):
    """The zero-shot head and a cache of the training images, by similarity (Zhang et al. 2022, arXiv:2111.03930).

    Attributes:
        name: what logs and results call the stage.
        alpha: weight of the cache; by default the best on the validation images, or the paper's first value.
        beta: sharpness of its similarities; likewise.
        epochs: of fine-tuning of the cache's keys (Tip-Adapter-F); 0 leaves them as they are.
        learning_rate: of that.
    """

    type: Literal["tip_adapter"]
    name: Name = "tip_adapter"
    alpha: float | None = Field(None, gt=0)
    beta: float | None = Field(None, gt=0)
    epochs: int = Field(0, ge=0)
    learning_rate: float = Field(1e-3, gt=0)

    def without_effect(self) -> dict[str, str]:
        return {} if self.epochs else {"learning_rate": "without epochs: give some, or leave it out"}


class LpPlusPlusStage(TextStage):
    """Class means and class names blended by class, with step sizes from the data (Huang et al. 2024,
    arXiv:2404.02285), as a linear head.

    Attributes:
        name: what logs and results call the stage.
        steps: of gradient descent on all training images at once.
    """

    type: Literal["lp++"]
    name: Name = "lp_plus_plus"
    steps: int = Field(300, ge=1)


class ClapStage(TextStage):
    """A linear probe that each class's zero-shot weights hold back as far as they are right (Silva-Rodriguez et al.
    2024, arXiv:2312.12730).

    Attributes:
        name: what logs and results call the stage.
    """

    type: Literal["clap"]
    name: Name = "clap"
