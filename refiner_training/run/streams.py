"""The stream of training batches that a configuration names.

Batch ``i`` of a stream depends on the seed and ``i`` alone, so a run that is resumed sees what an undisturbed one
would have seen.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from bpr_service.errors import ConfigError
from refiner_training.config import PatchData, SimulatedData, TrainConfig

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

VALIDATION_SEED = 1_000_003


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def open_data(
    data: SimulatedData | PatchData, config: TrainConfig, *, seed: int, first: int = 0, augment: bool = True
) -> IterableDataset[Any]:
    """The stream of batches that a configuration names; every check of the data happens here.

    Raises:
        FormatError: a store that is missing or not finished.
        ConfigError: one that does not fit the configuration.
    """
    rank, ranks = processes()
    patch = config.patch
    if isinstance(data, PatchData):
        from refiner_training.data.patch_set import PatchSet, PatchSetStream

        patches = PatchSet(data.patches)
        built = patches.manifest["settings"]["patch"]
        for key in ("patch_size_px", "padding_px", "scheme"):
            if built[key] != getattr(patch, key):
                raise ConfigError(
                    f"patch.{key}",
                    expected=f"{built[key]}, as {data.patches} was built",
                    got=str(getattr(patch, key)),
                    fix="change it, or build another patch set",
                )
        size = patch.network_size_px
        return PatchSetStream(
            patches, config.run.batch_size, seed, first, network_size_px=size, rank=rank, ranks=ranks, augment=augment
        )
    from refiner_training.data.scenes.store import SceneStore
    from refiner_training.data.scenes.stream import PatchStream, StreamConfig

    if patch.scheme == "instance":
        raise ConfigError(
            "simulated data",
            expected="patches of one size, as scheme dense cuts them",
            got="scheme instance, whose crops are as large as their objects",
            fix="set patch.scheme to dense, or build a patch set",
        )
    stream = StreamConfig(
        patch_size_px=patch.patch_size_px,
        padding_px=patch.padding_px,
        network_size_px=patch.network_size_px,
        batch_size=config.run.batch_size,
        sources=data.used(config.notes),
        **data.model_dump(exclude={"kind", "scenes", "sources", "leave_out", "stated_terms_only"}),
    )
    return PatchStream(SceneStore(data.scenes), stream, seed, first, rank, ranks)


def loader(stream: IterableDataset[Any], workers: int) -> DataLoader[Any]:
    """Batches as they are, in the order of their index."""
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
