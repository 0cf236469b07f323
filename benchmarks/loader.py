"""Does the loader feed the trainer? The share of a training step that is spent waiting for its batch.

    python benchmarks/loader.py refiner_training/configs/corpus_balanced.yaml refiner_training/configs/corpus_fast.yaml

The recipe's own network, batch size, precision and loader processes; forward, loss, backward and optimiser are run for
every batch. The first steps, in which the loader starts, are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

WARM_UP = 10


def measure(config: Any, steps: int) -> dict[str, float]:
    """Seconds a step waiting for data and computing, and the share of the time that was computing."""
    import torch

    from bpr_service.network.normalise import normalise_tensor
    from refiner_training.run.loss import boundary_loss
    from refiner_training.run.refiner import RefinerModule
    from refiner_training.run.streams import loader, open_data

    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    module = RefinerModule(config)
    module.network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(module.network.parameters(), config.optim.lr)
    batches = iter(loader(open_data(config.data, config, seed=config.run.seed), config.run.workers))
    waited = computed = 0.0
    for step in range(WARM_UP + steps):
        begin = perf_counter()
        patches, targets = next(batches)
        got = perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.run.precision == "bf16"):
            logits = module.network(normalise_tensor(patches))
            loss = boundary_loss(logits, patches, targets, module.padding, config.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= WARM_UP:
            waited += got - begin
            computed += perf_counter() - got
    return {
        "busy": computed / (waited + computed),
        "wait_ms": 1e3 * waited / steps,
        "step_ms": 1e3 * computed / steps,
        "patches_per_s": steps * config.run.batch_size / (waited + computed),
    }


def main(
    configs: Annotated[list[Path], typer.Argument(help="Recipes.")],
    steps: int = 60,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As run.threads=3.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print, for each recipe, how busy the processor is with training."""
    from bpr_service.config import parse_settings
    from refiner_training.config import load_config

    overrides = parse_settings(set_ or ())
    results = {}
    for path in configs:
        result = results[path.stem] = measure(load_config(path, overrides), steps)
        typer.echo(
            f"{path.stem:20} busy {100 * result['busy']:5.1f} %   waits {result['wait_ms']:6.1f} ms, "
            f"computes {result['step_ms']:6.1f} ms a step, {result['patches_per_s']:.0f} patches/s"
        )
    if as_json:
        as_json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
