"""DeepSpeed: the only module that knows its keys and its objects."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.models.precision import DTYPES
from slm_ray.pretrain.engine import Engine, EngineSettings, cpu_weights
from slm_ray.pretrain.module import StudentLoss
from slm_ray.pretrain.optimizers import load_state_by_name, state_by_name, zero_state
from slm_ray.pretrain.state import Tensors, TrainingState
from slm_ray.records.training import EngineFacts

_STEP = "step"
_MOST_IN_A_BUCKET = 100_000_000


def prepare_deepspeed(device: str) -> None:
    """Import DeepSpeed as our trainings use it; call it in every process before anything else imports it."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError("DeepSpeed is not installed: pip install deepspeed, or give --engine torch") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its table of what it can compile. On a CPU it would compile a module for exchanging activations, which only
    # inference does: the better part of a minute, and no training where there is no compiler.
    deepspeed.ops.__compatible_ops__ = {}


def deepspeed_config(settings: EngineSettings, num_params: int) -> dict[str, Any]:
    """DeepSpeed's configuration for our settings.

    Buckets hold as many elements as the model has: DeepSpeed's default of 5e8 takes 4 GB for two, of any model.

    Mixed precision is DeepSpeed's ``torch_autocast``: the weights themselves stay fp32, so that checkpoints are exact
    and the same with every ZeRO stage.
    """
    bucket = min(num_params, _MOST_IN_A_BUCKET)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "train_batch_size": settings.micro_batch * settings.accumulation * settings.world,
        "gradient_clipping": settings.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
        "zero_optimization": {
            "stage": settings.zero, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
        },
        "timers": {"throughput": {"enabled": False}},  # it waits for the device at every step
    }
    if settings.zero == 3:
        # Every parameter is cut up, small ones too: then what is saved does not depend on a threshold.
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    if settings.offload:
        config["zero_optimization"] |= {"offload_optimizer": {"device": "cpu"}}
    if settings.precision != "fp32":
        config["torch_autocast"] = {"enabled": True, "dtype": str(DTYPES[settings.precision]).removeprefix("torch.")}
    return config


class DeepSpeedEngine(Engine):
    """A DeepSpeed engine with our optimiser as its client optimiser."""

    def __init__(self, module: StudentLoss, optimizer: torch.optim.Optimizer, settings: EngineSettings) -> None:
        """Hand a module and its optimiser to DeepSpeed; a process group must exist.

        Raises:
            RuntimeError: DeepSpeed runs something else than was asked for.
        """
        import deepspeed
        from deepspeed.runtime import torch_autocast

        # A global of DeepSpeed's: after an engine in half precision, every later one of the process would have it on.
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        self.settings, self.module, self._client = settings, module, optimizer
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, dist_init_required=False,
            config=deepspeed_config(settings, sum(parameter.numel() for parameter in module.parameters())),
        )
        if settings.zero in (1, 2):
            # ZeRO links its parameters to the optimiser's tensors once, while the first group is updated, and would
            # miss those of the other groups (DeepSpeed 0.19): here all of them exist by then.
            zero_state(self._client)
        self._check()

    def _check(self) -> None:
        """What really runs must be what was asked for: DeepSpeed replaces some optimisers without a word."""
        engine, settings = self._engine, self.settings
        asked = {"optimizer": type(self._client).__name__, "precision": settings.precision, "zero": settings.zero}
        runs = self.describe()
        wrong = {name: (value, getattr(runs, name)) for name, value in asked.items() if getattr(runs, name) != value}
        if (self._scaler() is not None) != (settings.precision == "fp16"):
            wrong["loss scale"] = (settings.precision == "fp16", self._scaler() is not None)
        if wrong or runs.weights != "float32" or engine.gradient_accumulation_steps() != settings.accumulation:
            raise RuntimeError(f"DeepSpeed does not run what was asked for: {wrong or runs}")

    def describe(self) -> EngineFacts:
        """What really runs, read off DeepSpeed's own objects."""
        engine = self._engine
        autocast_type = engine.torch_autocast_dtype() if engine.torch_autocast_enabled() else torch.float32
        names = {dtype: name for name, dtype in DTYPES.items()}
        basic = getattr(engine.optimizer, "optimizer", engine.optimizer)
        return EngineFacts(
            engine="deepspeed", optimizer=type(basic).__name__, precision=names[autocast_type],
            weights=str(next(self.module.parameters()).dtype).removeprefix("torch."),
            zero=engine.zero_optimization_stage(),
        )  # fmt: skip

    def backward(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """One micro-batch, forward and backward."""
        parts = self._engine(**inputs)
        self._engine.backward(parts[0])
        self._is_last = self._engine.is_gradient_accumulation_boundary()
        if not self._is_last:
            self._engine.step()  # counts the micro-batch; the weights change at the last one only
        return tuple(part.detach() for part in parts)

    def step(self, factor: float) -> float:
        """Exchange, clip and update."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        scale = self._sharded_scale()
        if scale is not None:
            self._engine.optimizer.clip_grad = self.settings.clip * scale
        norm = None if self.settings.zero else self._plain_norm()
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm()) / (scale or 1.0)
            if scale is not None and not math.isfinite(norm):
                # ZeRO skips such a step before its scaler hears of it (DeepSpeed 0.19): the scale would never fall.
                scaler = self._scaler()
                scaler.update(scale * scaler.get_backoff_factor())
        return norm

    def _plain_norm(self) -> float:
        """The gradients' norm without ZeRO, where DeepSpeed clips but does not tell it; the exchange is done by now."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) / (self._scale() or 1.0)

    def _sharded_scale(self) -> float | None:
        """The loss scale where ZeRO clips gradients before it takes the scale out (DeepSpeed 0.19), else None."""
        return self._scale() if self.settings.zero else None

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.module.student.named_parameters())

    def _keys(self) -> list[str]:
        """The names of the optimiser's tensors that have the shape of their parameter."""
        states = [entry for entry in self._client.state.values() if entry]
        tensors = [(key, value) for entry in states for key, value in entry.items() if torch.is_tensor(value)]
        return sorted({key for key, value in tensors if value.numel() > 1})

    def state(self) -> TrainingState:
        """Gather the whole state, parameter by parameter."""
        if not self.settings.zero:
            if self.settings.rank:
                return TrainingState()
            state = state_by_name(self._client, self.module.student)
            return TrainingState(cpu_weights(self.module), state, self._scale())
        return self._gathered()

    def _gathered(self) -> TrainingState:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found, keys = TrainingState(scale=self._scale()), self._keys()
        step = self._scalar_step()
        for name, parameter in self._parameters():
            weight = safe_get_full_fp32_param(parameter)
            entry: Tensors = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            if self.settings.rank:
                continue  # every worker takes part in the gathering, the first one keeps it
            found.weights[name] = weight.detach().cpu().clone()
            if keys:
                found.optimizer[name] = {key: value.detach().cpu().clone() for key, value in entry.items()}
                if step is not None:
                    found.optimizer[name][_STEP] = step.clone()
        return found

    def _scalar_step(self) -> torch.Tensor | None:
        """The optimiser's own step count (the same for all parameters), where it keeps one."""
        for entry in self._client.state.values():
            if _STEP in entry:
                return torch.as_tensor(entry[_STEP]).detach().cpu().reshape(())
        return None

    def _scaler(self) -> Any:
        """What scales the loss in fp16: the engine's without ZeRO, else the sharded optimiser's; None otherwise."""
        without_zero = getattr(self._engine, "torch_autocast_z0_gradscaler", None)
        return without_zero or getattr(self._engine.optimizer, "torch_autocast_gradscaler", None)

    def _scale(self) -> float | None:
        scaler = self._scaler()
        return None if scaler is None else float(scaler.get_scale())

    def load_optimizer(self, state: TrainingState) -> None:
        """Put back the optimiser's state and the loss scale; with ZeRO each worker keeps its own part of a tensor."""
        if state.optimizer and self.settings.zero:
            self._load_sharded(state)
        elif state.optimizer:
            load_state_by_name(self._client, self.module.student, state.optimizer)
        if state.scale is not None and (scaler := self._scaler()) is not None:
            scaler.load_state_dict(scaler.state_dict() | {"scale": state.scale, "_growth_tracker": 0})

    def _load_sharded(self, state: TrainingState) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self._make_state()
        for name, parameter in self._parameters():
            for key, value in state.optimizer.get(name, {}).items():
                if key != _STEP:
                    safe_set_full_optimizer_state(parameter, value.to(self.settings.device), key)
        steps = [entry[_STEP] for entry in state.optimizer.values() if _STEP in entry]
        for entry in self._client.state.values():
            if _STEP in entry and steps:
                entry[_STEP] = steps[0].to(entry[_STEP].device, copy=True)

    def _make_state(self) -> None:
        """Have the sharded optimiser make its zero state: a step at rate 0 with gradients of 0, which moves nothing."""
        vocabulary = self.module.student.config.vocab_size
        ids = torch.arange(2, device=self.settings.device).remainder(vocabulary).repeat(self.settings.micro_batch, 1)
        weights = torch.zeros(self.settings.micro_batch, device=self.settings.device)
        for _ in range(self.settings.accumulation):
            self.backward({"ids": ids, "positions": None, "weights": weights})
        self.step(0.0)
