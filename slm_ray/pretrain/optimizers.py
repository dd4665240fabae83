"""Optimisers: which parameters decay, the four kinds, and their state kept by parameter name.

AdamW is torch's own; Lion, LAMB and Muon are ``pytorch_optimizer``'s, with everything that is not in the published
update switched off. Weight decay is decoupled in all four.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from slm_ray.pretrain.components import OptimizerConfig


def _embeddings(model: nn.Module) -> set[int]:
    """Ids of the token embedding's and the output head's weights."""
    found = set()
    for module in model.modules():
        for getter in ("get_input_embeddings", "get_output_embeddings"):
            table = getattr(module, getter)() if hasattr(module, getter) else None
            if isinstance(table, nn.Module) and isinstance(getattr(table, "weight", None), nn.Parameter):
                found.add(id(table.weight))
    return found


def _exempt(model: nn.Module, embeddings: set[int]) -> set[int]:
    """Ids of what never decays: vectors, everything in a norm, learned position tables."""
    found = {id(parameter) for parameter in model.parameters() if parameter.ndim < 2}
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        is_position_table = isinstance(module, nn.Embedding) and id(module.weight) not in embeddings
        if is_norm or is_position_table:
            found.update(id(parameter) for parameter in module.parameters(recurse=False))
    return found


def _group(name: str, members: list[tuple[str, nn.Parameter]], weight_decay: float) -> dict[str, Any]:
    return {
        "name": name,
        "params": [parameter for _, parameter in members],
        "param_names": [parameter_name for parameter_name, _ in members],
        "weight_decay": weight_decay,
    }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters, split into those that decay and those that do not.

    Matrices decay, the token embedding and the output head among them. Biases, everything in a norm, and tables of
    learned positions do not. A tied parameter appears once, under its first name.
    """
    exempt = _exempt(model, _embeddings(model))
    members = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        _group("decay", [member for member in members if id(member[1]) not in exempt], weight_decay),
        _group("no_decay", [member for member in members if id(member[1]) in exempt], 0.0),
    ]
    return [group for group in groups if group["params"]]


def _muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of :func:`parameter_groups`, the layers' own matrices moved from ``decay`` to ``matrices``."""
    embeddings, groups = _embeddings(model), []
    for group in parameter_groups(model, weight_decay):
        members = list(zip(group["param_names"], group["params"], strict=True))
        inside = [m for m in members if group["name"] == "decay" and m[1].ndim == 2 and id(m[1]) not in embeddings]
        others = [member for member in members if not any(member[1] is one[1] for one in inside)]
        groups += [{**_group("matrices", inside, weight_decay), "use_muon": True}] if inside else []
        groups += [{**_group(group["name"], others, group["weight_decay"]), "use_muon": False}] if others else []
    return groups


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, fused: bool, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Make an optimiser for a model's trainable parameters, grouped by :func:`parameter_groups`.

    - ``adamw``: arXiv 1711.05101, torch's.
    - ``lion``: arXiv 2302.06675. Its authors advise a learning rate 3 to 10 times below AdamW's, a decay as much
      higher, and betas of 0.95 and 0.98 for language models.
    - ``lamb``: arXiv 1904.00962, version 3 (no bias correction, which the trust ratio cancels but for the decay). As in
      its authors' code, what does not decay has a trust ratio of 1.
    - ``muon``: Keller Jordan, https://kellerjordan.github.io/posts/muon/, for the matrices inside the layers: Nesterov
      momentum 0.95, five Newton-Schulz steps in bf16. The update is scaled by ``0.2 * sqrt(max(rows, columns))``
      (arXiv 2502.16982, so that its size is AdamW's and one learning rate and decay serve both). Everything else gets
      AdamW, in the same object; its betas are the config's, Muon's momentum is not.
    """
    name, lr = config.optimizer, config.rate
    options: dict[str, Any] = {
        "lr": lr, "betas": (config.beta1, config.beta2), "eps": eps, "weight_decay": config.weight_decay
    }  # fmt: skip
    groups = (_muon_groups if name == "muon" else parameter_groups)(model, config.weight_decay)
    if name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, fused=fused, **options)
    else:
        optimizer = _from_library(name, groups, options)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer


def zero_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an elementwise optimiser (AdamW, Lion) the state that its first update would begin with."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {"exp_avg": torch.zeros_like(parameter)}
            if isinstance(optimizer, torch.optim.AdamW):
                device = parameter.device if group["fused"] else "cpu"
                state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            optimizer.state[parameter] = state


def _from_library(name: str, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """Lion, LAMB or Muon as published."""
    import pytorch_optimizer  # here because it takes as long to import as torch itself

    if name == "lion":
        return pytorch_optimizer.Lion(groups, **{key: value for key, value in options.items() if key != "eps"})
    if name == "lamb":
        for group in groups:
            group["adam"] = group["name"] == "no_decay"
        # Not "decoupled" in the library's sense, which would shrink the weight outside of the trust ratio.
        optimizer = pytorch_optimizer.Lamb(groups, **options, weight_decouple=False, adam_debias=True)
        optimizer.clamp = math.inf  # the library's limit of a weight's norm, 10, is not in the paper
        return optimizer
    return pytorch_optimizer.Muon(
        groups, lr=options["lr"], momentum=0.95, nesterov=True, ns_steps=5, use_adjusted_lr=True,
        weight_decay=options["weight_decay"], adamw_lr=options["lr"], adamw_betas=options["betas"],
        adamw_eps=options["eps"],
    )  # fmt: skip


def _state_keys(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> tuple[str, ...]:
    """What an update of a group's parameters depends on; ``step`` only where it does."""
    if group.get("use_muon"):
        return ("momentum_buffer",)
    return {"Lion": ("exp_avg",), "Lamb": ("exp_avg", "exp_avg_sq")}.get(
        type(optimizer).__name__, ("exp_avg", "exp_avg_sq", "step")
    )


def _named(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Parameter]]:
    """Every parameter of the optimiser with its group and its name in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield group, names[id(parameter)], parameter


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """What an optimiser has gathered, by parameter name, in plain tensors (moments are not copied).

    Returns for every parameter that was updated at least once, its moments in its own shape and, where the update
    depends on it, ``step``: the number of updates, a 0-d fp32 tensor on the CPU.
    """
    found = {}
    for group, name, parameter in _named(optimizer, model):
        state = optimizer.state.get(parameter)
        if state:
            # torch counts the steps of every parameter, pytorch_optimizer those of a group.
            step = torch.as_tensor(state.get("step", group.get("step", 0))).to("cpu", torch.float32)
            found[name] = {key: {**state, "step": step}[key].detach() for key in _state_keys(optimizer, group)}
    return found


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Give an optimiser the state that :func:`state_by_name` returned; a run goes on bit for bit.

    Parameters that the state does not name (the new layers of a grown model) start fresh.
    """
    places = {name: (group, parameter) for group, name, parameter in _named(optimizer, model)}
    for name, entry in state.items():
        group, parameter = places[name]
        kept = {key: value.detach().to(parameter.device).clone() for key, value in entry.items() if key != "step"}
        if isinstance(optimizer, torch.optim.AdamW):
            # The fused kernel reads the count where the parameter is.
            kept["step"] = entry["step"].detach().to(parameter.device if group["fused"] else "cpu").clone()
        elif "step" in entry:
            group["step"] = int(entry["step"])
        optimizer.state[parameter] = kept
