"""What the network is made of, in numbers: modalities and widths. Apart from the network, so that reading a config
needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from accel_train.errors import UserError

Kind = Literal["frames", "mel", "codes", "vectors"]
Preset = Literal["default", "legacy"]


@dataclass(frozen=True)
class Modality:
    """One stream of the stimulus.

    Args:
        name: video, audio, text, or that of any further feature.
        kind: ``frames`` [F, H, W, 3] of a TR, ``mel`` [frames, mels], ``codes`` [codebooks, frames] of a codec,
            ``vectors`` [D].
        shape: of one TR.
        codes: how many different codes there are; 0 for what is no ``codes``.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    codes: int = 0

    @property
    def features(self) -> int:
        """Numbers of one TR."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Branch:
    """Widths of what is of one modality alone.

    Args:
        convolutions: channels of convolutions of kernel 3 and stride 2 over the picture (frames) or over the mels; the
            frames of a TR are channels, too. None for a dense encoder.
        encoder: widths of the dense layers, the last one being what the modality gives to the fusion.
        decoder: widths between the decoder's trunk and the reconstruction.
    """

    convolutions: tuple[int, ...] = ()
    encoder: tuple[int, ...] = (64,)
    decoder: tuple[int, ...] = (64,)


@dataclass(frozen=True)
class Sizes:
    """Every width of the network.

    Args:
        branches: by kind of modality; a kind that is not named has a plain ``Branch``.
        fusion: widths between the modalities and the latent.
        latent: numbers of a TR in the latent.
        latent_norm: normalise it.
        voxels: widths between the latent and the voxels.
        decoder: widths of the decoder's trunk.
        skip: a linear path beside each encoder and beside the fusion, so that whatever is linear in the stimulus need
            not be learned through normalisation.
        activation: between layers.
        code_width: numbers that an embedding of a code has.
    """

    branches: Mapping[Kind, Branch]
    fusion: tuple[int, ...]
    latent: int
    voxels: tuple[int, ...]
    decoder: tuple[int, ...]
    latent_norm: bool = False
    skip: bool = True
    activation: Literal["gelu", "relu"] = "gelu"
    code_width: int = 8

    def branch(self, kind: Kind) -> Branch:
        return self.branches.get(kind, Branch())


PRESETS: dict[Preset, Sizes] = {
    "default": Sizes({}, fusion=(128,), latent=32, voxels=(), decoder=(128,)),
    "legacy": Sizes(
        {
            "frames": Branch((32, 64, 128, 256), (1024,), (8192, 4096)),
            "mel": Branch((32, 64, 128), (256,), (2048, 1024)),
            "vectors": Branch((), (512, 256), (2048, 2048)),
        },
        fusion=(1536, 4096), latent=8000, voxels=(16384,), decoder=(2048, 4096, 8192),
        latent_norm=True, skip=False, activation="relu",
    ),
}  # fmt: skip
"""``legacy``: the widths of the guide's system, with layer normalisation where that had batch normalisation. For one
frame of 90 x 160, 128 mels, 1,024 numbers of text and 85,810 voxels it has the guide's 1,974,067,762 parameters."""


def sizes_of(
    preset: Preset,
    latent: int | None = None,
    encoder: list[int] | None = None,
    fusion: list[int] | None = None,
    voxels: list[int] | None = None,
    decoder: list[int] | None = None,
) -> Sizes:
    """A preset, with some of its widths replaced. ``encoder`` is that of every modality, and reversed its decoder.

    Raises:
        UserError: an encoder without a width.
    """
    sizes = PRESETS[preset]
    if encoder == []:
        raise UserError("encoder_widths: at least one is needed, the width that a modality gives to the fusion")
    if encoder is not None:
        kinds: tuple[Kind, ...] = ("frames", "mel", "codes", "vectors")
        widths = tuple(encoder)
        of = {k: replace(sizes.branch(k), encoder=widths, decoder=widths[::-1]) for k in kinds}
        sizes = replace(sizes, branches=of)
    given = {"fusion": fusion, "voxels": voxels, "decoder": decoder}
    sizes = replace(sizes, **{name: tuple(widths) for name, widths in given.items() if widths is not None})
    return sizes if latent is None else replace(sizes, latent=latent)
