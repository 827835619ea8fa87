"""Supervised fine-tuning of models that read images: packed conversations with their images."""

import dataclasses
from collections.abc import Callable

import jax

from ziggurat.data import HuggingFaceTokenizer, ImageTextData, build_image_text
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.models.image_batches import ImageBatches, RowRoom, structs
from ziggurat.models.loading import pretrained_vision_language
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.optim import LossConfig
from ziggurat.post import image_tuning, tuning
from ziggurat.post.image_tuning import LANGUAGE, TOWER, Freezing, ImageTuned
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.objectives.lm import multimodal_language_modelling
from ziggurat.train.parts import Parts, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums


def image_parts(
    run: RunConfig,
    layout: Layout,
    loss: LossConfig,
    freezing: Freezing,
    templated: Callable[[HuggingFaceTokenizer], HuggingFaceTokenizer],
) -> Parts:
    """Model, parameters and data of a run on conversations with images.

    Args:
        run: the run file, with ``data.kind = "image_text"``.
        layout: where arrays live.
        loss: the objective's loss.
        freezing: which parts of the model stay as they are.
        templated: the model's tokenizer to the one with the run's chat template.

    Raises:
        ConfigError, DataError, ModelError: the model, the data and what is frozen do not fit
            together; the text says which.
    """
    data = run.data
    assert isinstance(data, ImageTextData), "looked at before"
    start = image_tuning.begin(run, layout, freezing)
    tuned, vision = start.tuned, start.tuned.vision
    tokenizer = templated(text.load_tokenizer(run, start.loaded, vision.language))
    loaded = dataclasses.replace(start.loaded, tokenizer=tokenizer)
    room = RowRoom(data.sequence_length, data.images_per_row, data.patches_per_row)
    images = ImageBatches(vision, loaded.processor, loaded.text_of, room)
    cache, longest = run.output / "cache", vision.config.language.max_sequence_length
    training, held_out = text.first_alone(
        "data", lambda: build_image_text(data, tokenizer, images, run.seed, cache, longest)
    )
    files = pretrained_vision_language.files_of(loaded, tokenizer)

    def trained(params: Params) -> Pretrained:
        return start.whole(params, tokenizer, run)

    return Parts(
        program=TrainingProgram(
            model=tuned,
            sums=image_fine_tuning(tuned, images, run, loss, layout),
            batch=batch_struct(images, layout, data.batch_size, data.sequence_length),
            frozen=tuning.shapes_of(start.frozen),
            frozen_axes=tuned.frozen_axes(start.frozen),
            router_bias_rate=loss.router_bias_rate,
        ),
        data=training,
        files=files | tuning.adapter_files(run),
        start=start.params,
        frozen=start.frozen,
        kept=start.kept,
        tokenizer=tokenizer,
        eval_data=held_out,
        perplexity=True,
        pretrained=trained,
    )


def batch_struct(
    images: ImageBatches, layout: Layout, batch: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of text and images."""
    made = text.batch_struct(layout, batch, length)
    for name, struct in structs(images.shapes, batch).items():
        sharding = layout.sharding(("batch", *[None] * (len(struct.shape) - 1)))
        made[name] = jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)
    return made


def image_fine_tuning(
    tuned: ImageTuned, images: ImageBatches, run: RunConfig, loss: LossConfig, layout: Layout
) -> Objective:
    """Loss of language modelling over the targets that ``loss_mask`` counts, where embeddings of
    images stand in the place of their tokens.

    Args:
        tuned: the model, and which parts of it are trained.
        images: layout of images in a batch.
        run: the run file.
        loss: the objective's loss.
        layout: where arrays live.
    """
    adapted = tuned.language.lora is not None
    recompute = run.train.remat != "none"
    inner = multimodal_language_modelling(tuned.vision.language, loss, layout, frozen_base=adapted)

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        whole = tuned.policy(params, frozen)
        with jax.named_scope("vision_tower"):
            inputs, last_seen = images.inputs(whole[TOWER], batch, recompute=recompute)
        sums = inner(whole[LANGUAGE], batch, inputs, last_seen)
        return sums if not adapted else sums._replace(loads={})

    return objective
