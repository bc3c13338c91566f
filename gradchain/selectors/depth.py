"""How deep a parameter lies: functions `(name, parameter, owner) -> int`, for `layer_decay`.

Depth 0 is next to the input; `total` is the number of depths, and the head has total - 1. Names are read after a
prefix, such as "backbone."; a parameter outside it belongs to the head.

>>> import gradchain as gch
>>> deep = gch.selectors.depth.vit(12, prefix="backbone.")
>>> deep.total, deep("backbone.layers.3.norm.weight"), deep("backbone.pos_embed"), deep("head.weight")
(14, 4, 0, 13)
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from gradchain._numbers import as_number
from gradchain.selectors.source import code
from gradchain.selectors.written import Written


class Depth(Written):
    """The depth of each parameter, by its name."""

    @property
    def total(self) -> int:
        """How many depths there are; the head has total - 1."""
        raise NotImplementedError(f"{type(self).__name__}: needs total.")

    def __call__(self, name: str, parameter: object = None, owner: object = None) -> int:
        """The depth of the parameter of this name."""
        prefix: str = getattr(self, "prefix", "")
        found = self.inside(name[len(prefix) :].split(".")) if name.startswith(prefix) else None
        return self.total - 1 if found is None else found

    def inside(self, parts: list[str]) -> int | None:
        """The depth of a name that had the prefix, in its parts; None for the head."""
        raise NotImplementedError(f"{type(self).__name__}: needs inside(parts).")

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        required = tuple(getattr(self, f.name) for f in fields(self) if f.default is MISSING)
        optional = {f.name: getattr(self, f.name) for f in fields(self) if f.default is not MISSING}
        defaults = {f.name: f.default for f in fields(self)}
        return required, {name: value for name, value in optional.items() if value != defaults[name]}

    def __repr__(self) -> str:
        return f"depth.{super().__repr__()}"


class vit(Depth):
    """Depths of a plain transformer: ViT, BEiT, MAE, DeiT.

        stem → 0;  block i → i + 1;  all else → layers + 1

    Args:
        layers: how many blocks.
        prefix: what names begin with, such as "backbone.".
        blocks: what the list of blocks is called: "layers" in OpenMMLab, "blocks" in timm.
        stem: parameters and modules before the first block.

    Equals: get_layer_depth of MMPretrain's VisionTransformer with stem=("cls_token", "pos_embed", "patch_embed");
        layer_wise_vit of MMSegmentation.
    """

    layers: int
    prefix: str = ""
    blocks: str = "layers"
    stem: tuple[str, ...] = ("cls_token", "mask_token", "pos_embed", "patch_embed")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", *_counts("vit", "layers", (self.layers,)))

    @property
    def total(self) -> int:
        return self.layers + 2

    def inside(self, parts: list[str]) -> int | None:
        return _in_a_row(parts, self.stem, self.blocks)


class swin(Depth):
    """Depths of a Swin transformer.

        stem → 0;  block j of stage s → depths_0 + … + depths_(s-1) + j + 1;  a downsampling → its stage's last block

    Args:
        depths: how many blocks each stage has.
        prefix: what names begin with, such as "backbone.".
        stages: what the list of stages is called: "stages" in OpenMMLab, "layers" in the original.
        stem: parameters and modules before the first stage.

    Equals: get_layer_depth of MMPretrain's SwinTransformer.
    """

    depths: tuple[int, ...]
    prefix: str = ""
    stages: str = "stages"
    stem: tuple[str, ...] = ("patch_embed",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", _counts("swin", "depths", tuple(self.depths)))

    @property
    def total(self) -> int:
        return sum(self.depths) + 2

    def inside(self, parts: list[str]) -> int | None:
        if parts[0] in self.stem:
            return 0
        if parts[0] != self.stages:
            return None
        stage = int(parts[1])
        in_block = parts[2] == "blocks"
        return sum(self.depths[:stage]) + int(parts[3]) + 1 if in_block else sum(self.depths[: stage + 1])


class convnext(Depth):
    """Depths of a ConvNeXt, three blocks of its long third stage to one.

        downsampling 0, 1, 2, 3 → 0, 2, 3, last;  stage 0 → 1, 1 → 2, 2 → 3 + block // 3, 3 → last;  else → last + 1

    Args:
        depths: how many blocks each of the four stages has.
        prefix: what names begin with, such as "backbone.".
        last: the depth of the last stage; None is 12 where the third stage has more than 9 blocks, else 6.
        stem: parameters before the first stage.

    Equals: get_layer_depth of MMPretrain's ConvNeXt; layer_wise decay of MMSegmentation with num_layers=last and
        stem=("cls_token", "mask_token", "pos_embed").
    """

    depths: tuple[int, ...]
    prefix: str = ""
    last: int | None = None
    stem: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", _counts("convnext", "depths", tuple(self.depths)))
        if len(self.depths) != 4:
            raise ValueError(f"depth.convnext: depths must be four numbers, got {self.depths!r}.")
        if self.last is not None:
            object.__setattr__(self, "last", *_counts("convnext", "last", (self.last,)))

    @property
    def _last(self) -> int:
        return self.last if self.last is not None else 12 if self.depths[2] > 9 else 6

    @property
    def total(self) -> int:
        return self._last + 2

    def inside(self, parts: list[str]) -> int | None:
        if parts[0] in self.stem:
            return 0
        if parts[0] == "downsample_layers":
            return (0, 2, 3, self._last)[int(parts[1])]
        if parts[0] == "stages":
            return (1, 2, 3 + int(parts[2]) // 3, self._last)[int(parts[1])]
        return None


class convnext_stages(Depth):
    """Depths of a ConvNeXt, one to each stage.

        stem and downsamplings → 0;  stage s → s + 1;  all else → layers + 1

    Args:
        layers: how many stages, or more.
        prefix: what names begin with, such as "backbone.".
        stem: what lies before the first stage, the downsamplings with it.

    Equals: stage_wise decay of MMSegmentation and MMDetection with num_layers=layers.
    """

    layers: int = 4
    prefix: str = ""
    stem: tuple[str, ...] = ("cls_token", "mask_token", "pos_embed", "downsample_layers")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", *_counts("convnext_stages", "layers", (self.layers,)))

    @property
    def total(self) -> int:
        return self.layers + 2

    def inside(self, parts: list[str]) -> int | None:
        return _in_a_row(parts, self.stem, "stages")


class resnet(Depth):
    """Depths of a ResNet.

        stem → 0;  then, stage by stage, each `together` blocks are one depth;  all else → the last

    Args:
        depths: how many blocks each stage has.
        together: of each stage, how many blocks in a row share a depth; None for one block to a depth.
        prefix: what names begin with, such as "backbone.".
        stem: modules before the first stage.

    Equals: get_layer_depth of MMPretrain's ResNet-50 with together=(3, 2, 3, 3).

    >>> import gradchain as gch
    >>> deep = gch.selectors.depth.resnet((3, 4, 6, 3), together=(3, 2, 3, 3))
    >>> deep.total, deep("conv1.weight"), deep("layer2.3.conv1.weight"), deep("layer4.0.bn1.bias"), deep("fc.bias")
    (8, 0, 3, 6, 7)
    """

    depths: tuple[int, ...]
    together: tuple[int, ...] | None = None
    prefix: str = ""
    stem: tuple[str, ...] = ("stem", "conv1", "bn1")

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", _counts("resnet", "depths", tuple(self.depths)))
        if self.together is not None:
            object.__setattr__(self, "together", _counts("resnet", "together", tuple(self.together)))
            if len(self.together) != len(self.depths):
                raise ValueError(
                    f"depth.resnet: together must have a number for each of the {len(self.depths)} stages, got "
                    f"{self.together!r}."
                )

    @property
    def _shared(self) -> tuple[int, ...]:
        return self.together or (1,) * len(self.depths)

    def _before(self, stage: int) -> int:
        """How many depths the stages before this one take."""
        return sum(-(-blocks // k) for blocks, k in zip(self.depths[:stage], self._shared, strict=False))

    @property
    def total(self) -> int:
        return self._before(len(self.depths)) + 2

    def inside(self, parts: list[str]) -> int | None:
        if parts[0] in self.stem:
            return 0
        if not parts[0].startswith("layer") or not parts[0][5:].isdigit():
            return None
        stage = int(parts[0][5:]) - 1
        return self._before(stage) + int(parts[1]) // self._shared[stage] + 1


def _in_a_row(parts: list[str], stem: tuple[str, ...], row: str) -> int | None:
    """The stem is 0, what is numbered in a row comes after it one by one, and all else is the head's."""
    if parts[0] in stem:
        return 0
    return int(parts[1]) + 1 if parts[0] == row else None


def _counts(owner: str, name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    """The values as Python's integers, of at least 1."""
    counts = []
    for value in values:
        count = as_number(value)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"depth.{owner}: {name} must be integers of at least 1, got {code(value)}.")
        counts.append(count)
    return tuple(counts)
