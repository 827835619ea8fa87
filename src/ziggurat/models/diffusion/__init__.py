"""Diffusion: how images are mixed with noise, and how samplers take the noise out again."""

from ziggurat.models.diffusion.plans import Method, Sampling, SamplingPlan, plan_of
from ziggurat.models.diffusion.process import (
    DiscreteNoise,
    Prediction,
    Process,
    RectifiedFlow,
    image_and_noise,
    mixed,
    target,
)
from ziggurat.models.diffusion.sampling import Predict, guided, row_noise, sample

__all__ = [
    "DiscreteNoise",
    "Method",
    "Predict",
    "Prediction",
    "Process",
    "RectifiedFlow",
    "Sampling",
    "SamplingPlan",
    "guided",
    "image_and_noise",
    "mixed",
    "plan_of",
    "row_noise",
    "sample",
    "target",
]
