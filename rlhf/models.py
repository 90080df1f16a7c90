"""Hugging Face models as the training loops use them: loading, the trunk and the head apart, LoRA, saving.

Models are kept as transformers' own classes. The trunk is the model below its language-model head; the head is applied
to chosen positions only. With LoRA the model is peft's wrapper, whose adapter can be switched off to get the reference.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.config import Lora
from rlhf.devices import Compute
from rlhf.distributed import current
from rlhf.sharding import consolidate, local
from rlhf.tokens import Codec, load_codec
from store.errors import UsageError
from store.files import explain_os_errors, remove, sync_file
from store.locks import LOADING

Model = Any
"""A transformers PreTrainedModel, or peft's wrapper around one: neither is typed."""


def load_policy(name: str, compute: Compute, *, trained: bool = False) -> tuple[Model, Codec]:
    """A causal language model with its tokenizer.

    `trained`: weights stay float32 (see rlhf.devices); else they are frozen. Forward passes are made under
    `compute.autocast()`. Raises UsageError, in one sentence, where `name` is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    model = load_pretrained(AutoModelForCausalLM, name, compute, trained=trained)
    codec = load_codec(name, model.config, model.generation_config)
    _require_known_head(model, name, compute)
    return model, codec


def load_pretrained(
    auto: Any, name: str, compute: Compute, *, trained: bool, may_lack: Sequence[str] = (), **options: Any
) -> Model:
    """`auto.from_pretrained` with every failure in one sentence.

    Weights that the checkpoint lacks would be random: that is an error, but for parameters whose name contains one of
    `may_lack` (a new head).
    """
    folder = Path(name)
    if (folder.exists() or name.startswith((".", "/", "~"))) and not (folder / "config.json").is_file():
        raise UsageError(f"{name!r} is no model directory: it has no config.json. Give a Hugging Face model folder.")
    try:
        with LOADING, quiet():
            model, info = auto.from_pretrained(
                name,
                # FSDP converts all weights as it gathers them, so frozen ones may as well lie there converted.
                dtype=compute.dtype if compute.sharded and not trained else torch.float32,
                attn_implementation=compute.attention,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"The model {name!r} cannot be loaded ({reason}): give a Hugging Face model.") from error
    absent = sorted(key for key in info["missing_keys"] if not any(part in key for part in may_lack))
    if absent:
        raise UsageError(
            f"The model {name!r} lacks {len(absent)} weights that {type(model).__name__} needs ({absent[0]}, ...): "
            "give a complete checkpoint of that kind."
        )
    model.to(compute.device)
    disable_dropout(model)
    model.eval()
    model.config.use_cache = False
    if trained:
        if compute.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()  # transformers recomputes only in training mode; dropout is off anyway
    else:
        model.requires_grad_(False)
        narrow(model, compute)
    if compute.compile:
        # In place, so that names of weights and saved folders stay as they are; lengths differ from batch to batch.
        model.base_model.compile(dynamic=True)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and reports off: what it would say of a checkpoint is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, also those that layers read from attributes instead of from a module.

    With dropout the ratio of the first optimisation pass is not 1: old and new log-probs come from different networks.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def unwrap(model: Model) -> Model:
    """The transformers model inside peft's wrapper, adapters included; the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(model: Model) -> Model:
    """The transformer below the head: from ids to hidden states."""
    return unwrap(model).base_model


def narrow(model: Model, compute: Compute) -> None:
    """Keep the frozen weights of products in the compute type, each converted once, in half the memory.

    To the bit what autocast makes of them, but it converts a frozen weight at each use: it remembers those of trained
    ones alone. Embeddings, norms and biases stay, so that a frozen model computes as a trained one does: a reference
    as the policy before its first step, a reward model, whose head stays too, as when it was trained.
    """
    if compute.sharded or compute.dtype == torch.float32:
        return
    body, words = trunk(model), unwrap(model).get_output_embeddings()
    tables = [module for module in body.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(value) for module in tables for value in module.parameters()}
    for value in (*body.parameters(), *(() if words is None else words.parameters())):
        if value.ndim > 1 and not value.requires_grad and id(value) not in looked_up:
            value.data = value.data.to(compute.dtype)


def is_flash(model: Model) -> bool:
    """Whether its attention is a flash kernel, which takes no float32 and no mask of a whole row."""
    return "flash" in str(unwrap(model).config._attn_implementation)


def hidden_states(model: Model, ids: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """[r * w, d] last hidden states of packed rows [r, w]; see rlhf.sequences for how rows are told apart.

    mask: of whole rows, instead of the one that positions imply (rlhf.reward_batches).
    """
    more: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
    if is_flash(model):
        # Sequences are told apart in a single row only: several would attend to each other across borders, silently.
        ids, positions = ids.view(1, -1), positions.view(1, -1)
        more = _borders(positions)
    output = trunk(model)(input_ids=ids, position_ids=positions, use_cache=False, **more)
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def _borders(positions: Tensor) -> dict[str, Any]:
    """What a flash kernel is told of the sequences in a row: else each layer would find out, and wait for the GPU."""
    starts = (positions.flatten() == 0).nonzero()[:, 0]
    borders = F.pad(starts, (0, 1), value=positions.numel()).to(torch.int32)
    longest = int(borders.diff().max())
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def head(model: Model) -> Callable[[Tensor], Tensor]:
    """From hidden states [n, d] to logits [n, v], with the scaling that some families apply behind their head."""
    causal = unwrap(model)
    config = causal.config.get_text_config()
    layer = causal.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)

    def logits(states: Tensor) -> Tensor:
        value: Tensor = layer(states)
        if factor is not None:
            value = value * factor
        if divisor is not None:
            value = value / divisor
        return value if cap is None else torch.tanh(value / cap) * cap

    return logits


def _require_known_head(model: Model, name: str, compute: Compute) -> None:
    """A family whose head does more than `head` knows would train on wrong log-probs: refuse it once, here."""
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad(), compute.autocast():
        ours = head(model)(hidden_states(model, ids, ids))
        theirs = model(input_ids=ids, use_cache=False).logits[0]
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"The model {name!r} ({type(model).__name__}) does something behind its head that rlaif does not know: "
            "use another model family."
        )


def attach_lora(model: Model, lora: Lora, task: str = "CAUSAL_LM", compute: Compute | None = None) -> Model:
    """Wrap `model` in peft with trainable adapters (and a trainable reward head for SEQ_CLS) over frozen weights.

    compute: in whose type the frozen weights are kept (`narrow`); None leaves them.
    """
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type=task,
        ),
    )
    if unwrap(model).is_gradient_checkpointing:
        # The embeddings are frozen: without this no gradient enters the recomputed blocks.
        wrapped.enable_input_require_grads()
    if compute is not None:
        narrow(wrapped, compute)
    return wrapped


def merged(model: Model) -> Model:
    """A plain transformers model with the adapters added to the weights; the adapters are gone afterwards.

    In float32: to weights in bfloat16 most of what was learnt would add nothing.
    """
    return model.float().merge_and_unload() if hasattr(model, "merge_and_unload") else model


@contextlib.contextmanager
def adapter_off(model: Model) -> Iterator[Model]:
    """The same weights as before training: the reference of a LoRA policy."""
    trained = list(trainable(model).values())
    with model.disable_adapter():
        # peft freezes adapters that are off. FSDP notes, each time it gathers weights, in which type gradients of the
        # trained ones are to be; of none it would note nothing, and the next update has gradients in bfloat16.
        for value in trained:
            value.requires_grad_(True)
        yield model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, each once although tied weights have two names."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trained parameters on the CPU; of sharded ones, of this process's shards."""
    return {name: local(value.detach()).to("cpu", copy=True).contiguous() for name, value in trainable(model).items()}


def restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Write a snapshot back. Raises ValueError where it is of another model."""
    parameters = trainable(model)
    if parameters.keys() != saved.keys():
        raise ValueError("the snapshot has other parameters than the model")
    with torch.no_grad():
        for name, value in parameters.items():
            local(value).copy_(saved[name])


def save_model(folder: Path, model: Model, codec: Codec, also: Callable[[Path], None] | None = None) -> Path:
    """Write model and tokenizer as a Hugging Face folder (safetensors), whole or not at all.

    also: writes further files into the folder that it is given, before the folder gets its name. Called by all
    processes; the main one writes. A sharded model cannot be used any more afterwards.
    """
    consolidate(model)
    if not current().is_main:
        return folder
    beside = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    model = merged(model)
    model.config.use_cache = True
    with explain_os_errors(folder):
        try:
            with quiet():
                model.save_pretrained(beside)
            codec.tokenizer.save_pretrained(beside)
            if also is not None:
                also(beside)
            for path in beside.rglob("*"):
                if path.is_file():
                    sync_file(path)
            remove(folder) if folder.exists() else None
            os.replace(beside, folder)
        finally:
            if beside.exists():
                remove(beside)
    return folder
