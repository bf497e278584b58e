"""What may change between a run and the run that continues it."""

from collections.abc import Iterable
from pathlib import Path

from kit.device import Runtime
from kit.errors import UserError

UNIMPORTANT = ("resume", "output_dir", "world_size")  # of a run's settings: where it lies and how it was continued


def check_resume(settings: dict, saved: dict, origin: str | Path, fixed: Iterable[str], runtime: Runtime) -> None:
    """Compare a run's `settings` with those `saved` in the checkpoint it continues.

    Raises UserError for a change of what is `fixed`, or of the samples in a step: batch_size x grad_accum x processes, on
    which the length of an epoch and the schedule depend. Other changes are allowed, and printed.
    """
    changed = {
        name: value
        for name, value in settings.items()
        if name in saved and value != saved[name] and name not in UNIMPORTANT
    }
    check_fixed(settings, saved, origin, [name for name in fixed if name in changed])
    before, now = samples_per_step(saved, runtime), samples_per_step(settings, runtime)
    if before != now:
        raise UserError(
            f"{origin} was trained on {before} samples a step, and batch size, accumulation and {runtime.world_size} "
            f"process(es) now make {now}: epochs and schedule would change; choose them so that their product is {before}"
        )
    if changed and runtime.is_main:
        print(
            f"changed since {origin}: "
            + ", ".join(f"{name} {saved[name]} -> {value}" for name, value in changed.items())
        )


def check_fixed(settings: dict, saved: dict, origin: str | Path, names: Iterable[str]) -> None:
    """Raises UserError if one of the settings `names` differs from the saved one."""
    for name in names:
        if settings[name] != saved.get(name):
            raise UserError(
                f"{origin} was trained with `{name}` {saved.get(name)}, not {settings[name]}; pass the same"
            )


def samples_per_step(settings: dict, runtime: Runtime) -> int:
    """Samples of all forward passes of all processes before the weights change."""
    return settings["batch_size"] * settings.get("grad_accum", 1) * settings.get("world_size", runtime.world_size)
