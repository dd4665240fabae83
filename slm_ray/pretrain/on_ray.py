"""What Ray's processes run. The module itself is light: only the workers import torch, and not what watches them."""

from __future__ import annotations

from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.recorder import Recorder


def ray_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    import ray
    from ray import train as ray_train

    from slm_ray.pretrain.build import Place
    from slm_ray.pretrain.launch import prepare_process
    from slm_ray.pretrain.loop import train

    job, recorders = TrainJob(**config["job"]), config["recorders"]
    if ray.get(recorders.status.remote(job.name))["failure"]:
        return  # a restart after a mistake that a restart cannot mend
    context = ray_train.get_context()
    device = ray_train.torch.get_device()
    place = Place(context.get_world_rank(), context.get_world_size(), device)

    def say(kind: str, record: dict[str, Any]) -> None:
        told = recorders.say.remote(job.name, kind, record)
        if kind != "step":
            ray.get(told)  # and with it everything said before: a checkpoint comes after its records

    try:
        prepare_process(job, device.type, config["threads"])
        train(job, place, say)
    except UserError as error:
        ray.get(recorders.say.remote(job.name, "failure", {"message": str(error)}))
        if place.world > 1:
            raise  # ends the other workers, who wait for this one


class Recorders:
    """The recorders of all models, as one actor on the driver's machine: records reach its disk from any node."""

    def __init__(self, folders: dict[str, str]) -> None:
        """Record every model into a folder of its own."""
        self._recorders = {name: Recorder(folder) for name, folder in folders.items()}

    def say(self, name: str, kind: str, record: dict[str, Any]) -> None:
        """Take one model's record."""
        self._recorders[name].say(kind, record)

    def status(self, name: str) -> dict[str, Any]:
        """Where one model's training stands."""
        return self._recorders[name].status()
