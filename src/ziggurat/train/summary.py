"""The report of a finished run, gathered from the run itself."""

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import jax

from ziggurat.checkpoint import StepReader
from ziggurat.profile.hardware import chip_count
from ziggurat.profile.memory import device_memory, host_memory
from ziggurat.train.metrics import read_metrics
from ziggurat.train.outcome import TrainingOutcome
from ziggurat.train.report import Picture, RunReport, Sample, SavedCheckpoint, write_report

PACKAGES = ("ziggurat", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def report(
    outcome: TrainingOutcome, samples: Sequence[Sample] = (), pictures: Sequence[Picture] = ()
) -> Path:
    """Write a run's ``report.html`` and return its path."""
    run, experiment, directory = outcome.run.value, outcome.experiment, outcome.directory
    devices = list(experiment.layout.mesh.devices.flatten())
    rows = read_metrics(directory.metrics)
    sessions = directory.read_sessions()
    steps = int(outcome.state.step)
    speed = outcome.timer.median_tokens_per_s()
    return write_report(
        directory.report,
        RunReport(
            name=run.name,
            device=f"{chip_count(devices)} x {devices[0].device_kind}",
            steps=steps,
            total_steps=run.train.steps,
            tokens=steps * experiment.data.batch_size * experiment.data.sequence_length,
            parameters=experiment.model.parameter_count,
            status=outcome.status,
            started=sessions[0]["time"] if sessions else "",
            metrics=rows,
            median_tokens_per_s=speed,
            ledger_s=outcome.timer.ledger(),
            peak_host_bytes=host_memory()["host_rss_peak_bytes"],
            peak_device_bytes=device_memory().get("device_peak_bytes_in_use"),
            skipped_steps=int(outcome.state.skipped),
            resumes=[row["step"] for row in sessions[1:]],
            config=outcome.run.table(),
            samples=samples,
            pictures=pictures,
            checkpoints=[
                SavedCheckpoint(step=info.step, path=str(info.path), size_bytes=info.bytes)
                for info in StepReader(directory.checkpoints).steps()
            ],
            environment=_environment(),
        ),
    )


def _environment() -> dict[str, str]:
    facts = {"python": platform.python_version(), "machine": platform.platform()}
    facts["devices"] = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    for package in PACKAGES:
        facts[package] = importlib.metadata.version(package)
    return facts
